"""Evaluation: the instruments and metrics that measure a clip."""
