"""Sampling tools over a trained model."""

from vlae.sampling.completion import Completion, complete
from vlae.sampling.latent import decompressions, prior_samples, save_array

__all__ = ["Completion", "complete", "decompressions", "prior_samples", "save_array"]
