"""Schedule, guidance and the sampling loop."""
