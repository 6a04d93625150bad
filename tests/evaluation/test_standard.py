"""FID, Inception Score and LPIPS: what reaches the network, the numbers, a plain line where there are none."""

import hashlib
import math
import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from torch import nn
from torchmetrics.functional.image import lpips as torchmetrics_lpips
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from vlae import VlaeError
from vlae.data import sources
from vlae.evaluation import standard
from vlae.evaluation.networks import LPIPS, Inception


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """Neither files nor a network."""

    def offline(url, **options):
        raise requests.ConnectionError(f"{url} can't be reached")

    monkeypatch.delenv("VLAE_DATA", raising=False)
    monkeypatch.setattr(sources, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(sources.pooch, "retrieve", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


class StandIn(nn.Module):
    """A network of the same form on the mean colours of images; keeps what it was given."""

    def __init__(self, features=5, classes=4):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.head = nn.Linear(3 * 4, features).double(), nn.Linear(features, classes).double()
        self.dropout = nn.Dropout(0.5)
        self.given = []

    def forward(self, x):
        self.given.append(x)
        quarters = nn.functional.adaptive_avg_pool2d(x.double() / 255, 2).flatten(1)
        features = self.dropout(self.hidden(quarters).tanh())
        return features, 60 * self.head(features)


class Part(nn.Module):
    """One of a network's two outputs, for torchmetrics."""

    def __init__(self, network, index):
        super().__init__()
        self.network, self.index = network, index
        self.num_features = network.hidden.out_features

    def forward(self, x):
        return self.network(x)[self.index]


# -- what reaches Inception -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_arrive_as_bytes_in_colour(dtype):
    module = StandIn()
    network = standard.InceptionNetwork(module)
    levels = torch.arange(256, dtype=dtype).reshape(1, 1, 16, 16)
    network(levels / 255)
    (given,) = module.given
    assert given.dtype == torch.uint8
    assert torch.equal(given, levels.to(torch.uint8).expand(1, 3, 16, 16))  # every level is itself: rounded, not cut

    colours = torch.rand(2, 3, 5, 7, dtype=dtype)
    network(colours)
    assert torch.equal(module.given[-1], (colours * 255).round().to(torch.uint8))  # its own size: the network resizes
    network(torch.tensor([-1e-6, 1 + 1e-6], dtype=dtype).reshape(1, 1, 1, 2).expand(1, 1, 2, 2))
    assert module.given[-1].unique().tolist() == [0, 255]


def test_the_network_is_in_eval_mode_and_chunks_change_nothing(monkeypatch):
    network = standard.InceptionNetwork(StandIn().train())
    x = torch.rand(7, 3, 6, 6)
    features, log_probabilities = network(x)
    assert torch.equal(features, network.features(x))
    assert torch.equal(log_probabilities, network.log_probabilities(x))
    torch.testing.assert_close(log_probabilities.exp().sum(1), torch.ones(7, dtype=torch.float64))
    assert not features.requires_grad and features.dtype == torch.float64
    monkeypatch.setattr(standard, "CHUNK", 3)
    torch.testing.assert_close(network.features(x), features, rtol=1e-12, atol=1e-12)
    assert [len(given) for given in network.module.given[-3:]] == [3, 3, 1]


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.rand(2, 2, 4, 4), "C = 1 or 3; got \\[2, 2, 4, 4\\]"),
        (torch.rand(3, 4, 4), "grey or RGB"),
        (torch.rand(0, 3, 4, 4), "grey or RGB"),
        (torch.rand(2, 3, 4, 4) * 255, "in \\[0, 1\\]; got values from"),
        (torch.full((2, 3, 4, 4), math.nan), "in \\[0, 1\\]"),
    ],
)
def test_other_images_are_refused(images, said):
    with pytest.raises(VlaeError, match=said):
        standard.InceptionNetwork(StandIn())(images)
    with pytest.raises(VlaeError, match=said):
        standard.perceptual_distance(Distance(), images, images)


# -- the numbers ------------------------------------------------------------------------------------------------------


def sets():
    torch.manual_seed(0)
    return torch.rand(40, 3, 8, 8), torch.rand(30, 3, 8, 8) ** 2


def test_fid_and_inception_score_are_torchmetrics():
    module = StandIn().eval()
    data, samples = sets()
    found = standard.standard_sample_quality(standard.InceptionNetwork(module), data, samples)
    as_bytes = [(x * 255).round().to(torch.uint8) for x in (data, samples)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        score = InceptionScore(feature=Part(module, 1), splits=1)
        distance = FrechetInceptionDistance(feature=Part(module, 0)).set_dtype(torch.float64)
    for x, real in zip(as_bytes, (True, False), strict=True):
        distance.update(x, real=real)
    score.update(as_bytes[1])
    assert found["fid"] == pytest.approx(distance.compute().item(), rel=1e-9)
    assert found["fid"] > 0.01
    with warnings.catch_warnings():  # of one split there is no deviation
        warnings.simplefilter("ignore")
        expected = score.compute()[0].item()
    assert found["inception_score"] == pytest.approx(expected, rel=1e-9)
    assert found["inception_score"] > 1.1


def test_fid_of_known_features():
    class Linear(StandIn):
        def forward(self, x):
            features = x.double().mean((2, 3)) / 255
            return features, features

    network = standard.InceptionNetwork(Linear())
    data = torch.randint(0, 128, (50, 3, 1, 1)) / 255
    assert standard.standard_sample_quality(network, data, data)["fid"] == pytest.approx(0, abs=1e-9)
    moved = standard.standard_sample_quality(network, data, data + 51 / 255)  # the same spread, 0.2 away in 3 channels
    assert moved["fid"] == pytest.approx(3 * 0.2**2, rel=1e-6)
    spread = standard.standard_sample_quality(network, data, 2 * data)  # twice the deviation around twice the mean
    covariance = np.cov(data.double().reshape(50, 3).numpy(), rowvar=False)
    mean = data.double().mean((0, 2, 3)).square().sum().item()
    assert spread["fid"] == pytest.approx(mean + np.trace(covariance), rel=1e-6)


# -- LPIPS ------------------------------------------------------------------------------------------------------------


class Distance(nn.Module):
    """A stand-in for LPIPS: the mean absolute difference; keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.given = []

    def forward(self, x, y):
        self.given.append((x, y))
        return self.scale * (x - y).abs().flatten(1).mean(1)


def test_images_reach_lpips_in_colour_from_minus_one_to_one():
    network, x = Distance(), torch.rand(2, 1, 33, 31, dtype=torch.float64)
    standard.perceptual_distance(network, x, 1 - x)
    ((a, b),) = network.given
    assert a.dtype == torch.float32  # the network's own
    torch.testing.assert_close(a, (2 * x - 1).float().expand(-1, 3, -1, -1))
    torch.testing.assert_close(b, -a)


@pytest.mark.parametrize(
    ("size", "expected"), [((28, 28), (31, 31)), ((8, 8), (31, 31)), ((20, 40), (31, 62)), ((64, 30), (66, 31))]
)
def test_small_images_are_enlarged_to_the_least_that_lpips_takes(size, expected):
    network = Distance()
    rows = torch.linspace(0, 1, size[0], dtype=torch.float64)[:, None].expand(1, 1, *size)
    standard.perceptual_distance(network, rows, rows)
    assert network.given[0][0].shape == (1, 3, *expected)
    enlarged = network.given[0][0][0, 0]
    assert enlarged.diff(dim=0).min() > -1e-6 and enlarged.diff(dim=1).abs().max() < 1e-6  # still a ramp of rows
    assert enlarged.min() == pytest.approx(-1, abs=1e-6) and enlarged.max() == pytest.approx(1, abs=1e-6)


def test_distances_are_one_an_image_and_chunks_change_nothing(monkeypatch):
    x, y = torch.rand(2, 7, 1, 32, 32)
    found = standard.perceptual_distance(Distance(), x, y)
    torch.testing.assert_close(found, 2 * (x - y).double().abs().mean((1, 2, 3)), rtol=1e-5, atol=0)
    assert found.dtype == torch.float64 and not found.requires_grad
    monkeypatch.setattr(standard, "CHUNK", 3)
    torch.testing.assert_close(standard.perceptual_distance(Distance(), x, y), found, rtol=1e-6, atol=0)
    with pytest.raises(VlaeError, match="both of one shape"):
        standard.perceptual_distance(Distance(), x, y[:3])


# -- loading ----------------------------------------------------------------------------------------------------------


def published(name, path, state, monkeypatch):
    """Weights at `path` in place of the published ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    checksum = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    monkeypatch.setattr(standard, name, replace(getattr(standard, name), checksum=checksum))


@pytest.fixture
def alexnet():
    """Weights of a whole AlexNet: the classifier's are not needed."""
    torch.manual_seed(0)
    return {**LPIPS().features.state_dict(prefix="features."), "classifier.1.weight": torch.zeros(2, 2)}


@pytest.mark.parametrize("place", ["cache/networks", "hub/checkpoints", "data/networks"])
def test_lpips_is_loaded_whole(place, alexnet, tmp_path, monkeypatch):
    path = tmp_path / place / standard.ALEXNET_WEIGHTS.name
    published("ALEXNET_WEIGHTS", path, alexnet, monkeypatch)
    if place.startswith("data"):
        monkeypatch.setenv("VLAE_DATA", str(tmp_path / "data"))
    network = standard.load_lpips()
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    x, y = torch.rand(2, 3, 3, 32, 40)
    features = LPIPS().features
    features.load_state_dict({k.removeprefix("features."): v for k, v in alexnet.items() if k.startswith("features")})
    monkeypatch.setattr(torchmetrics_lpips, "_get_tv_model_features", lambda net, pretrained: features)
    reference = torchmetrics_lpips._LPIPS(net="alex")  # with the weights of layers in torchmetrics' package
    expected = reference(x, y, normalize=True).flatten()
    found = standard.perceptual_distance(network, x, y)
    torch.testing.assert_close(found.float(), expected.detach(), rtol=1e-3, atol=1e-7)
    assert found.min() > 0


def test_inception_is_loaded_whole(tmp_path, monkeypatch):
    torch.manual_seed(1)
    original = Inception().eval()
    state = original.state_dict()
    for name in [name for name in state if name.endswith("num_batches_tracked")]:
        del state[name]  # files of weights that are older than this counter are read too
    del state._metadata
    published("INCEPTION_WEIGHTS", tmp_path / "cache/networks" / standard.INCEPTION_WEIGHTS.name, state, monkeypatch)
    network = standard.load_inception()
    x = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        features, logits = original(x)
    torch.testing.assert_close(network.features(x / 255), features.double())
    torch.testing.assert_close(network.log_probabilities(x / 255), logits.double().log_softmax(1))
    assert not any(p.requires_grad for p in network.module.parameters())


LOADERS = [(standard.load_inception, "INCEPTION_WEIGHTS"), (standard.load_lpips, "ALEXNET_WEIGHTS")]


def reason(load):
    with pytest.raises(standard.Unavailable) as caught:
        load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("load", "name"), LOADERS)
def test_without_a_network_the_line_says_which_file_goes_where(load, name, tmp_path):
    file = getattr(standard, name)
    said = reason(load)
    assert f"{file.name} not found in {tmp_path / 'cache/networks'}" in said
    assert "no download" in said and "ConnectionError" in said
    assert said.endswith(f"put the files into {tmp_path / 'cache/networks'}")


@pytest.mark.parametrize(("load", "name"), LOADERS)
def test_downloads_have_deadlines_and_checksums(load, name, monkeypatch):
    asked = []

    def silent(url, **options):
        asked.append((url, options["known_hash"], options["downloader"].kwargs["timeout"]))
        raise requests.Timeout("no answer")

    monkeypatch.setattr(sources.pooch, "retrieve", silent)
    assert "Timeout" in reason(load)
    file = getattr(standard, name)
    assert [url for url, *_ in asked] == list(file.urls)
    for _, known_hash, (connect, read) in asked:
        assert known_hash == file.checksum and file.name.split("-")[-1][:8] == known_hash[len("sha256:") :][:8]
        assert connect <= 10 and read <= 60


@pytest.mark.parametrize(("load", "name"), LOADERS)
@pytest.mark.parametrize("place", ["cache/networks", "hub/checkpoints"])
def test_a_damaged_file_is_named(load, name, place, tmp_path):
    path = tmp_path / place / getattr(standard, name).name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half of a file")
    said = reason(load)
    assert str(path) in said and "sha256" in said and "delete the file" in said


class Trap:
    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.parametrize(("load", "name"), LOADERS)
@pytest.mark.parametrize("content", ["garbage", "trap", "list", "other"])
def test_files_with_other_content_are_refused_and_nothing_in_them_is_run(
    load, name, content, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "cache/networks" / getattr(standard, name).name
    states = {"trap": {"fc.weight": Trap()}, "list": [torch.zeros(2)], "other": {"features.0.weight": torch.zeros(2)}}
    published(name, path, states.get(content), monkeypatch)
    if content == "garbage":
        path.write_bytes(pickle.dumps({"a": 1}, protocol=2)[:-3] + b"\x00broken")
        monkeypatch.setattr(sources, "_CHECK", False)
    said = reason(load)
    assert "unpickled" not in capsys.readouterr().out
    assert ("not those of" if content == "other" else str(path)) in said


def test_lpips_needs_the_weights_in_torchmetrics(alexnet, tmp_path, monkeypatch):
    path = tmp_path / "cache/networks" / standard.ALEXNET_WEIGHTS.name
    published("ALEXNET_WEIGHTS", path, alexnet, monkeypatch)
    monkeypatch.setattr(standard, "_layer_weights", lambda: Path("/nowhere/alex.pth"))
    said = reason(standard.load_lpips)
    assert "/nowhere/alex.pth can't be read" in said and said.endswith("reinstall torchmetrics")
