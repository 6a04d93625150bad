"""Sampling tools over a trained model."""

from vlae.sampling.latent import prior_samples, save_array

__all__ = ["prior_samples", "save_array"]
