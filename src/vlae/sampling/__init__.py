"""Sampling tools over a trained model."""

from vlae.sampling.latent import decompressions, prior_samples, save_array

__all__ = ["decompressions", "prior_samples", "save_array"]
