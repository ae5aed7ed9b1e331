"""Training: one generic loop, and one stage file a part."""
