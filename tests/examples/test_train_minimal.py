import importlib.util
import itertools
import math
import re
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[2] / "examples" / "train_minimal.py"


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("train_minimal", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scrambled(page, *args, **kwargs):
    """A model whose weights are all far from zero, in float64."""
    torch.manual_seed(0)
    model = page.VLAE(*args, **kwargs).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


def test_it_runs_improves_and_draws(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page.main(["--epochs", "1", "--use-flow", "--limit", "400"])
    printed = capsys.readouterr().out
    bounds = [float(text) for text in re.findall(r"= -ELBO (\S+)", printed)]
    assert len(bounds) == 2  # before training, and after the epoch
    assert all(map(math.isfinite, bounds))
    assert bounds[1] < bounds[0] - 5
    picture = tmp_path / "results" / "reconstructions.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("arguments", [["--epochs", "0"], ["--data", "cats"], ["--free-bits", "nan"], ["--speed", "1"]])
def test_bad_arguments_are_one_line(page, arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        page.main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_missing_data_are_one_line(page, monkeypatch, capsys):
    monkeypatch.setenv("VLAE_DATA", "/no/such/directory")
    with pytest.raises(SystemExit):
        page.main(["--data", "mnist"])
    error = capsys.readouterr().err
    assert "VLAE_DATA" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_conditional_sees_its_window_and_nothing_else(page, layers):
    model = scrambled(page, (7, 7), layers=layers, channels=4)
    x = torch.bernoulli(torch.full((1, 1, 7, 7), 0.5, dtype=torch.float64))
    z = torch.randn(1, model.latent_dim, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: model.decode(z, x).logits, x)[0, 0, :, :, 0, 0]
    for i, j, k, m in itertools.product(range(7), repeat=4):
        # One stack of 3x3 layers: r rows up, columns further right than r are in its blind spot.
        up, left = i - k, j - m
        seen = (up > 0 or (up == 0 and left > 0)) and up <= layers and -up <= left <= layers
        assert (jacobian[i, j, k, m] != 0) == seen


@torch.no_grad()
def test_the_decoder_has_mass_1(page):
    model = scrambled(page, (2, 2), layers=2, channels=4)
    images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=torch.float64).reshape(16, 1, 2, 2)
    for z in torch.randn(3, 1, model.latent_dim, dtype=torch.float64):
        log_prob = model.decode(z.expand(16, -1), images).log_prob(images).sum((1, 2, 3))
        torch.testing.assert_close(log_prob.exp().sum().item(), 1.0)


def test_the_flow_inverts_and_knows_its_determinant(page):
    model = scrambled(page, (4, 4), latent_dim=5, flow_steps=2, channels=4)
    z = torch.randn(1, 5, dtype=torch.float64)

    def noise(z):
        for step in model.flow:
            z = step(z)[0].flip(1)
        return z

    log_det = torch.autograd.functional.jacobian(noise, z)[0, :, 0].slogdet().logabsdet
    expected = torch.distributions.Normal(0, 1).log_prob(noise(z)).sum() + log_det
    torch.testing.assert_close(model.log_prior(z)[0], expected)
    step = model.flow[0]
    with torch.no_grad():
        torch.testing.assert_close(step.inverse(step(z)[0]), z)


@torch.no_grad()
def test_the_prior_sampler_inverts_the_density(page, monkeypatch):
    model = scrambled(page, (4, 4), latent_dim=5, flow_steps=2, channels=4)
    eps = torch.randn(3, 5, dtype=torch.float64)
    monkeypatch.setattr(torch, "randn", lambda *shape: eps.clone())
    z = model.sample_prior(3)
    for step in model.flow:
        z = step(z)[0].flip(1)
    torch.testing.assert_close(z, eps)
