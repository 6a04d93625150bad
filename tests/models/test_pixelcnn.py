"""The PixelCNN without a latent code: an exact likelihood that fits wherever a latent-variable model does."""

import csv
import json
import math

import pytest
import torch

import vlae
from vlae import PixelCNN, VlaeError
from vlae.cli import main
from vlae.evaluation import evaluate

STACKS = {
    "two": {},
    "slanted": {"stacks": "slanted", "decoder_layers": 2},
    "plain": {"stacks": "plain", "decoder_layers": 3, "pointwise_blocks": 1, "tied": True},
}


@pytest.fixture(params=STACKS.values(), ids=STACKS.keys())
def make(request):
    """A factory of small models in float64 and eval mode with random weights."""

    def make(image_shape=(1, 5, 4), **options):
        settings = {"decoder_layers": 1, "channels": 5, **request.param, **options}
        return PixelCNN(image_shape, **settings).double().eval()

    return make


def test_all_binary_images_have_mass_1(make, all_images):
    images = all_images((1, 3, 3))
    assert len(images) == 512
    assert make((1, 3, 3)).log_prob(images).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_all_colour_images_have_mass_1(make, all_images):
    model = make((2, 2, 2), likelihood="categorical", likelihood_options={"levels": 3})
    assert model.log_prob(all_images((2, 2, 2), 3)).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_rate_is_zero_and_the_bound_is_the_likelihood(make, binary):
    model, x = make(), binary(6)
    exact = model.log_prob(x)
    bound = model.elbo(x)
    assert torch.equal(bound.rate, torch.zeros(6, dtype=torch.float64))
    assert torch.equal(bound.elbo, exact)
    assert bound.z.shape == bound.rate_per_dimension.shape == (6, 0)
    assert torch.equal(model.elbo(x, analytic=False).elbo, exact)
    torch.testing.assert_close(model.log_likelihood(x, samples=7), exact)
    (weights,) = model.log_weights(x, samples=7)
    assert torch.equal(weights, exact.expand(7, 6))


def test_every_parameter_that_matters_is_trained(make, binary):
    model = make().train()
    model.elbo(binary(6)).distortion.mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_evaluation_says_that_there_is_no_code(make, binary):
    model, x = make(), binary(6)
    result = evaluate(model, lambda: [(x[:4], range(4)), (x[4:], range(4, 6))], nll_samples=5)
    assert (result.rate, result.active_units, result.latent_dim, result.bits_per_latent) == (0, None, 0, [])
    assert math.isnan(result.shuffled_gap)  # there is no other image's code to decode with
    assert result.negative_elbo == pytest.approx(-model.log_prob(x).mean().item())
    assert result.nll == pytest.approx(result.negative_elbo)
    assert result.ess == pytest.approx(5)


def test_samples_are_the_distributions(make):
    model = make((1, 2, 2))
    assert model.sample(3).shape == (3, 1, 2, 2)
    x = model.sample(4000, generator=torch.Generator().manual_seed(1))
    share = (x == x[0]).flatten(1).all(1).double().mean()
    expected = model.log_prob(x[:1]).exp()
    assert abs(share - expected).item() < 5 * (expected * (1 - expected) / 4000).sqrt().item()
    sharp = model.sample(50, pixel_temperature=1e-3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(sharp, model.distribution(50).mode)


def test_all_reconstructions_are_the_same_image(make, binary):
    model = make()
    assert torch.equal(model.reconstruct(binary(3)), model.distribution(3).mode)


def test_it_sees_its_window_and_nothing_else(make):
    model = make((1, 9, 9))
    x = torch.rand(1, 1, 9, 9, dtype=torch.float64, requires_grad=True)
    parameters = model.decoder(x, torch.zeros(1, 0, 9, 9, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(parameters[0, 0, 0, 5, 4], x)
    seen = {(i - 5, j - 4) for _, i, j in gradient[0].nonzero().tolist()}
    inside = {(i, j) for i, j in model.decoder.receptive_field.offsets if -5 <= i < 4 and -4 <= j <= 4}
    assert seen == inside


def test_save_and_load(make, binary, tmp_path):
    model, x = make(), binary(4)
    again = vlae.load(model.save_pretrained(tmp_path / "model"))
    assert type(again) is PixelCNN
    assert torch.equal(again.log_prob(x), model.log_prob(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stacks": "three"}, "stacks must be"),
        ({"stacks": "two", "tied": True}, "set stacks='plain'"),
        ({"image_shape": (0, 3, 3)}, "image_shape must be"),
        ({"channels": 0}, "channels must be 1 or more"),
        ({"likelihood": "no"}, "likelihood"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(VlaeError, match=message) as caught:
        PixelCNN(**{"image_shape": (1, 3, 3), **options})
    assert len(str(caught.value).splitlines()) == 1


def test_wrong_images_and_latents_are_refused(make):
    with pytest.raises(VlaeError, match="expected images of shape"):
        make().log_prob(torch.zeros(2, 1, 4, 4, dtype=torch.float64))
    with pytest.raises(VlaeError, match="expected latents of shape"):
        make().decode(torch.zeros(2, 3, dtype=torch.float64))


def test_trains_and_evaluates_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "--model PixelCNN --model.decoder_layers 1 --model.channels 6 --data.name digits --data.binarize dynamic"
    trainer = (
        "--trainer.max_epochs 1 --trainer.precision 32-true --trainer.accelerator cpu --trainer.progress_bar false"
    )
    assert main(["train", *words.split(), *trainer.split(), "--run.name", "pixels"]) == 0
    log = (tmp_path / "outputs/pixels/logs/train.log").read_text()
    assert "rate 0.00 nats" in log
    assert "dying" not in log
    (row,) = csv.DictReader((tmp_path / "outputs/pixels/logs/metrics.csv").open())
    assert float(row["validation/rate"]) == 0
    words = ["--only", "bound", "nll", "--nll_samples", "3", "--nll_images", "20"]
    assert main(["eval", "--run", "outputs/pixels", *words]) == 0
    result = json.loads((tmp_path / "outputs/pixels/reports/evaluation.json").read_text())
    assert result["rate"] == 0
    assert result["negative_elbo"] == pytest.approx(-float(row["validation/elbo"]), abs=3)
    assert main(["sample", "prior", "--run", "outputs/pixels", "--count", "3"]) == 0
    assert main(["viz", "recon-grid", "--run", "outputs/pixels", "--count", "3"]) == 0
