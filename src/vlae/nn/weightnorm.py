"""Weight normalisation with data-dependent initialisation (Salimans and Kingma 2016, arXiv 1602.07868)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def apply_weight_norm(module: nn.Module) -> nn.Module:
    """Writes every convolution and linear layer of `module` as gain x direction, one gain per output map; in place."""
    for layer in module.modules():
        if isinstance(layer, LAYERS) and not is_parametrized(layer):
            # A transposed convolution keeps its output channels in the second dimension.
            weight_norm(layer, dim=1 if isinstance(layer, nn.ConvTranspose2d) else 0)
    return module


@torch.no_grad()
def set_to_zero(layer: nn.Conv2d | nn.Linear) -> None:
    """Makes a layer with a bias give zeros: of a weight-normalised one, the gains."""
    parametrizations = cast(Any, layer).parametrizations.weight if is_parametrized(layer, "weight") else None
    (layer.weight if parametrizations is None else parametrizations.original0).zero_()
    cast(Tensor, layer.bias).zero_()


@torch.no_grad()
def data_dependent_init(module: nn.Module, run: Callable[[], object], scale: float = 1.0) -> int:
    """Rescales each weight-normalised layer so that its outputs on a batch have mean 0 and standard deviation `scale`.

    `run` passes the batch through `module` once; the layers are set in the order in which it meets them, each seeing
    the inputs that the layers before it give after their own rescaling. A layer used several times is set at its first
    use; one without a bias keeps its mean. Returns the number of layers set.
    """
    seen: set[nn.Module] = set()

    def rescale(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if layer in seen:
            return output
        seen.add(layer)
        channel = output.ndim - 1 if isinstance(layer, nn.Linear) else 1
        others = [d for d in range(output.ndim) if d != channel]
        mean = output.mean(others)
        factor = scale / output.std(others).clamp(min=1e-6)
        # A layer that is constant on this batch (a zero input, say) keeps its gain: only its bias is centred.
        factor = torch.where(factor < scale / 1e-5, factor, torch.ones_like(factor))
        gain = cast(Any, layer).parametrizations.weight.original0
        gain.mul_(factor.reshape(gain.shape))
        shape = [-1 if d == channel else 1 for d in range(output.ndim)]
        if layer.bias is None:
            return output * factor.reshape(shape)
        layer.bias.copy_((layer.bias - mean) * factor)  # type: ignore[operator]
        return (output - mean.reshape(shape)) * factor.reshape(shape)

    layers = [m for m in module.modules() if isinstance(m, LAYERS) and is_parametrized(m, "weight")]
    handles = [layer.register_forward_hook(rescale) for layer in layers]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return len(seen)
