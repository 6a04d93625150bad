"""Training: a run directory from a model, data and settings."""
