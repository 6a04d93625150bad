"""Posteriors, priors and likelihoods: everything random is a `torch.distributions.Distribution`."""

from vlae.distributions.autoregressive import Autoregressive
from vlae.distributions.delta import AR1, DeltaPrior
from vlae.distributions.flows import AutoregressiveFlowPrior, FlowPrior, SplineFlow, SplineFlowPrior
from vlae.distributions.iaf import IAFHead, IAFPosterior
from vlae.distributions.latent import Prior, PriorModule
from vlae.distributions.likelihoods import (
    Bernoulli,
    Categorical,
    Charbonnier,
    ContinuousBernoulli,
    Factorised,
    Gaussian,
    Laplace,
    Likelihood,
    LogisticMixture,
    make_likelihood,
)
from vlae.distributions.mapflow import MapFlow, MapFlowPrior
from vlae.distributions.mixtures import (
    AutoregressiveMixture,
    AutoregressiveMixturePrior,
    GaussianMixture,
    MixturePrior,
    NormalMixture,
    VampPrior,
)
from vlae.distributions.normal import StandardNormal, StandardNormalPrior
from vlae.distributions.posteriors import DiagonalGaussian, GaussianHead, make_posterior, rate_per_dimension
from vlae.distributions.priors import make_prior
from vlae.distributions.scan import Dimensions, Pixels

__all__ = [
    "AR1",
    "Autoregressive",
    "AutoregressiveFlowPrior",
    "AutoregressiveMixture",
    "AutoregressiveMixturePrior",
    "Bernoulli",
    "Categorical",
    "Charbonnier",
    "ContinuousBernoulli",
    "DeltaPrior",
    "DiagonalGaussian",
    "Dimensions",
    "Factorised",
    "FlowPrior",
    "Gaussian",
    "GaussianHead",
    "GaussianMixture",
    "IAFHead",
    "IAFPosterior",
    "Laplace",
    "Likelihood",
    "LogisticMixture",
    "MapFlow",
    "MapFlowPrior",
    "MixturePrior",
    "NormalMixture",
    "Pixels",
    "Prior",
    "PriorModule",
    "SplineFlow",
    "SplineFlowPrior",
    "StandardNormal",
    "StandardNormalPrior",
    "VampPrior",
    "make_likelihood",
    "make_posterior",
    "make_prior",
    "rate_per_dimension",
]
