"""Sampling tools over a trained model."""

from vlae.sampling.arithmetic import arithmetic
from vlae.sampling.completion import Completion, complete
from vlae.sampling.decoding import decode, posterior_means
from vlae.sampling.interpolation import interpolate
from vlae.sampling.latent import decompressions, prior_samples, save_array
from vlae.sampling.traversal import (
    dimension_rates,
    informative_dimensions,
    prior_quantiles,
    traverse,
    traverse_noise,
)

__all__ = [
    "Completion",
    "arithmetic",
    "complete",
    "decode",
    "decompressions",
    "dimension_rates",
    "informative_dimensions",
    "interpolate",
    "posterior_means",
    "prior_quantiles",
    "prior_samples",
    "save_array",
    "traverse",
    "traverse_noise",
]
