"""Metrics of the field's standard networks: FID and Inception Score of Inception v3, LPIPS of AlexNet.

The networks are in `vlae.evaluation.networks`; their weights, 96 and 244 MB, are looked for where data files are (the
folder `networks` of `$VLAE_DATA` and of the cache) and where torch.hub keeps its own, else downloaded, held against
their published checksums and read without unpickling. Where they can't be had, `Unavailable` says so in a line.

Grey images count as RGB with three equal channels. Both networks have learned from photographs: of other images their
numbers compare models with one another, and mean little by themselves.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlae.data.sources import File, fetch, find, verify
from vlae.errors import VlaeError, one_line
from vlae.evaluation.networks import LPIPS, Inception
from vlae.evaluation.quality import check_range, frechet_distance, inception_score

INCEPTION_WEIGHTS = File(
    "weights-inception-2015-12-05-6726825d.pth",
    ("networks",),
    "sha256:6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    (  # the same file under two names
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    ),
)
ALEXNET_WEIGHTS = File(
    "alexnet-owt-7be5be79.pth",
    ("networks",),
    "sha256:7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    ("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",),
)
CHUNK = 50  # images at a time: memory, not the result

Network = TypeVar("Network", bound=nn.Module)


class Unavailable(VlaeError):
    """A standard network's weights can't be had; the message says which file, and where to put it."""


class InceptionNetwork:
    """What Inception v3 makes of images.

    Args:
        module: uint8 images [B, 3, H, W] -> features [B, D] and logits [B, K], D = 2048 and K = 1008 of the real one.
    """

    def __init__(self, module: nn.Module):
        self.module = module.eval()

    def features(self, x: Tensor) -> Tensor:
        """The last pooling layer, [N, D], of images x [N, C, H, W] in [0, 1]."""
        return self(x)[0]

    def log_probabilities(self, x: Tensor) -> Tensor:
        """log p(class | x) in nats, [N, K], of images x [N, C, H, W] in [0, 1]."""
        return self(x)[1]

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and log-probabilities in one pass, float64.

        Images are rounded to 256 levels, as they would be in a file; the network itself resizes them.
        """
        device = next(self.module.parameters()).device
        parts = [self.module((part * 255).round().to(device, torch.uint8)) for part in as_rgb(x).split(CHUNK)]
        features, logits = (torch.cat(tensors).double().cpu() for tensors in zip(*parts, strict=True))
        return features, logits.log_softmax(1)


def load_inception(device: str | torch.device = "cpu") -> InceptionNetwork:
    """The standard Inception network in eval mode; on a CPU it takes about 0.1 seconds of one core an image.

    Raises:
        Unavailable: its weights are not here and can't be downloaded, or are damaged.
    """
    network = _with(Inception(), _weights("FID and Inception Score", INCEPTION_WEIGHTS)).to(device)
    # The layout makes a CPU a third faster.
    return InceptionNetwork(network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]


def load_lpips(device: str | torch.device = "cpu") -> LPIPS:
    """The network of LPIPS in eval mode: AlexNet, and the weights of its layers that torchmetrics holds.

    Raises:
        Unavailable: AlexNet's weights are not here and can't be downloaded, or are damaged.
    """
    alexnet = _weights("LPIPS", ALEXNET_WEIGHTS)
    of_layers = _read("LPIPS", _layer_weights(), "reinstall torchmetrics")
    state = {name: value for name, value in alexnet.items() if name.startswith("features.")}
    state |= {
        f"weights.{name[len('lin')]}": value.flatten() for name, value in of_layers.items()
    }  # lin0.model.1.weight
    return _with(LPIPS(), state).to(device)


def standard_sample_quality(network: InceptionNetwork, data: Tensor, samples: Tensor) -> dict[str, float]:
    """FID of samples and data, both [N, C, H, W] in [0, 1], and the samples' Inception Score: fid, inception_score.

    Published numbers are of 50,000 images and ten splits. The FID of fewer is larger and the Inception Score of fewer
    is smaller: compare at equal numbers only.
    """
    of_samples, log_probabilities = network(samples)
    score, _ = inception_score(log_probabilities)
    return {"fid": frechet_distance(network.features(data), of_samples), "inception_score": score}


@torch.no_grad()
def perceptual_distance(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """LPIPS of images x and y [N, C, H, W] in [0, 1], 0 for equal ones, [N], float64.

    Images with a side under 31 pixels are enlarged (bilinear, both sides by one factor) until it has 31, the least that
    the network takes; values of different sizes are not comparable.
    """
    if x.shape != y.shape:
        raise VlaeError(f"images must be [N, C, H, W], both of one shape; got {list(x.shape)} and {list(y.shape)}")
    x, y = as_rgb(x), as_rgb(y)
    like = next(network.parameters())

    def prepared(part: Tensor) -> Tensor:
        return enlarged(part.to(like), LPIPS.SIDE) * 2 - 1

    parts = [network(prepared(a), prepared(b)) for a, b in zip(x.split(CHUNK), y.split(CHUNK), strict=True)]
    return torch.cat(parts).double().cpu()


def as_rgb(x: Tensor) -> Tensor:
    """Grey or RGB images [N, C, H, W] as [N, 3, H, W], clipped to [0, 1] where rounding left it.

    Raises:
        VlaeError: another shape, no images, or values that are not in [0, 1].
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3) or not x.numel():
        raise VlaeError(f"a standard network takes grey or RGB images [N, C, H, W], C = 1 or 3; got {list(x.shape)}")
    check_range(x)
    return x.clamp(0, 1).expand(-1, 3, -1, -1)


def enlarged(x: Tensor, side: int) -> Tensor:
    """Images [N, C, H, W] with neither side under `side`: as they are, or interpolated."""
    shorter = min(x.shape[2:])
    if shorter >= side:
        return x
    height, width = (max(side, round(size * side / shorter)) for size in x.shape[2:])
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=False)


# -- weights ----------------------------------------------------------------------------------------------------------


def _weights(what: str, file: File) -> dict[str, Tensor]:
    """A published file of weights: from torch.hub's cache, else where data files are, else downloaded.

    Raises:
        Unavailable: it is nowhere and the download fails, or it is damaged.
    """
    shared = Path(torch.hub.get_dir()) / "checkpoints" / file.name
    try:
        elsewhere = find(file, None)
        if shared.is_file() and elsewhere is None:
            verify(shared, file.checksum)
            path = shared
        else:
            (path,) = fetch(what, [file], None)
    except (VlaeError, OSError) as error:
        raise Unavailable(str(error)) from error
    return _read(what, path)


def _layer_weights() -> Path:
    """LPIPS's own weights, in torchmetrics' package; the file may be missing."""
    found = find_spec("torchmetrics")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / "functional" / "image" / "lpips_models" / "alex.pth"


def _read(what: str, path: Path, remedy: str = "delete it and fetch it again") -> dict[str, Tensor]:
    """A file of tensors by name; nothing in it is run."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for damaged files
        raise Unavailable(f"{what}: {path} can't be read ({one_line(error)}); {remedy}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise Unavailable(f"{what}: {path} holds other things than weights; {remedy}")
    return state


def _with(network: Network, state: dict[str, Tensor]) -> Network:
    """The network with these weights, in eval mode."""
    name = type(network).__name__
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise Unavailable(f"these weights are not those of {name} ({one_line(error)})") from error
    return network.eval().requires_grad_(False)
