"""Priors p(z), by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vlae.distributions.delta import AR1, DeltaPrior
from vlae.distributions.flows import AutoregressiveFlowPrior, FlowPrior, SplineFlowPrior
from vlae.distributions.latent import Prior, PriorModule
from vlae.distributions.making import make
from vlae.distributions.mapflow import MapFlowPrior
from vlae.distributions.mixtures import AutoregressiveMixturePrior, MixturePrior, VampPrior
from vlae.distributions.normal import StandardNormal, StandardNormalPrior
from vlae.errors import VlaeError

__all__ = [
    "AR1",
    "AutoregressiveFlowPrior",
    "AutoregressiveMixturePrior",
    "DeltaPrior",
    "FlowPrior",
    "MapFlowPrior",
    "MixturePrior",
    "Prior",
    "PriorModule",
    "SplineFlowPrior",
    "StandardNormal",
    "StandardNormalPrior",
    "VampPrior",
    "make_prior",
]

OF_ANY_SHAPE: dict[str, Callable[..., PriorModule]] = {
    "normal": StandardNormalPrior,
    "mixture": MixturePrior,
    "vamp": VampPrior,
}
OF_VECTORS: dict[str, Callable[..., PriorModule]] = {
    "flow": AutoregressiveFlowPrior,
    "spline": SplineFlowPrior,
    "autoregressive_mixture": AutoregressiveMixturePrior,
    "delta": DeltaPrior,
}
OF_MAPS: dict[str, Callable[..., PriorModule]] = {"map_flow": MapFlowPrior}
PRIORS = {**OF_ANY_SHAPE, **OF_VECTORS, **OF_MAPS}


def make_prior(name: str, latent_shape: Sequence[int], **options: Any) -> PriorModule:
    """The module that makes the prior of that name over z of that shape; refuses options that it does not take.

    Args:
        name: "normal", "mixture" or "vamp" (any shape; the last also needs the option `image_shape`); "flow", "spline",
            "autoregressive_mixture" or "delta" (vectors); "map_flow" (maps).
        latent_shape: (D,) or (C, H, W).
        options: those of the class that `PRIORS` names.

    Example:
        >>> make_prior("autoregressive_mixture", (8,), components=3)().sample((2,)).shape
        torch.Size([2, 8])
    """
    shape = tuple(latent_shape)
    wrong = OF_VECTORS if len(shape) != 1 else OF_MAPS
    if name in wrong:
        fitting = ", ".join(known for known in PRIORS if known not in wrong)
        kind = "vector" if name in OF_VECTORS else "map of shape (C, H, W)"
        raise VlaeError(
            f"the prior {name!r} needs z to be a {kind}; its shape is {list(shape)}: choose one of {fitting}"
        )
    return make("prior", name, PRIORS, shape if name in OF_VECTORS else (shape,), options)
