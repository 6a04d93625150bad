"""Posteriors, priors and likelihoods: everything random is a `torch.distributions.Distribution`."""

from vlae.distributions.autoregressive import Autoregressive
from vlae.distributions.likelihoods import (
    Bernoulli,
    Categorical,
    Factorised,
    Gaussian,
    Likelihood,
    LogisticMixture,
    make_likelihood,
)
from vlae.distributions.posteriors import DiagonalGaussian
from vlae.distributions.priors import AutoregressiveFlowPrior, FlowPrior, StandardNormal, StandardNormalPrior
from vlae.distributions.scan import Dimensions, Pixels

__all__ = [
    "Autoregressive",
    "AutoregressiveFlowPrior",
    "Bernoulli",
    "Categorical",
    "DiagonalGaussian",
    "Dimensions",
    "Factorised",
    "FlowPrior",
    "Gaussian",
    "Likelihood",
    "LogisticMixture",
    "Pixels",
    "StandardNormal",
    "StandardNormalPrior",
    "make_likelihood",
]
