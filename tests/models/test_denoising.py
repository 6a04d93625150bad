"""The denoising autoencoder: its noise, its distortion, and that nothing passes off as a bound what is none."""

import csv
import json
import math

import pytest
import torch

import vlae
from vlae import DenoisingAutoencoder, VlaeError
from vlae.cli import main
from vlae.data import ImageDataset
from vlae.evaluation import evaluate
from vlae.evaluation.measurements import Settings
from vlae.evaluation.report import show
from vlae.evaluation.suite import measure

CORRUPTIONS = {"bernoulli_flip": 0.2, "gaussian": 0.3, "masking": 0.4}


def make(image_shape=(1, 5, 4), **options):
    """A small model in float64 and eval mode."""
    settings = {"latent_dim": 3, "architecture": "mlp", "widths": [6], **options}
    return DenoisingAutoencoder(image_shape, **settings).double().eval()


# -- the noise --------------------------------------------------------------------------------------------------------


def test_flips_and_masks_have_their_probability():
    x = torch.rand(500, 1, 5, 4).double() * 0.4 + 0.3  # no value is what it becomes
    for corruption, changed in (("bernoulli_flip", 1 - x), ("masking", torch.zeros_like(x))):
        seen = make(corruption=corruption, noise=0.2).corrupt(x)
        hit = seen != x
        assert torch.equal(seen[hit], changed[hit])
        assert abs(hit.double().mean().item() - 0.2) < 5 * math.sqrt(0.16 / x.numel())
        pairs = hit.flatten(1).double().t().corrcoef() - torch.eye(20)
        assert pairs.abs().max() < 6 / math.sqrt(500)  # each sub-pixel on its own


def test_gaussian_noise_has_its_standard_deviation_and_is_not_clipped():
    x = torch.zeros(1000, 1, 5, 4).double()
    noise = make(corruption="gaussian", noise=0.3).corrupt(x)
    assert noise.std().item() == pytest.approx(0.3, abs=0.006)
    assert abs(noise.mean().item()) < 0.01
    assert noise.min() < -0.5


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_no_noise_is_no_corruption(binary, corruption):
    x = binary(4)
    assert torch.equal(make(corruption=corruption, noise=0.0).corrupt(x), x)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_noise_follows_the_global_seed_or_a_generator(binary, corruption):
    model, x = make(corruption=corruption).train(), binary(6)

    def seeded(seed):
        torch.manual_seed(seed)
        return model.elbo(x).distortion

    assert torch.equal(seeded(1), seeded(1))
    assert not torch.equal(seeded(1), seeded(2))
    first, again = (model.elbo(x, generator=torch.Generator().manual_seed(3)).distortion for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_evaluation_is_of_clean_images_and_training_of_corrupted_ones(binary, corruption):
    model, x = make(corruption=corruption, noise=CORRUPTIONS[corruption]), binary(6)
    clean = -model.decode(model.encode(x).mean).log_prob(x)
    assert torch.equal(model.elbo(x).distortion, clean)
    assert torch.equal(model.reconstruct(x), model.decode(model.encode(x).mean).mean)
    torch.manual_seed(1)
    assert torch.equal(model.elbo(x).distortion, clean)
    model.train()
    found = model.elbo(x, generator=torch.Generator().manual_seed(3))
    seen = model.corrupt(x, torch.Generator().manual_seed(3))
    z = model.encoder(seen)
    logits = model.decoder(z)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3))
    torch.testing.assert_close(found.distortion, expected)  # of the clean x, given the corrupted one
    assert torch.equal(found.z, z)
    assert not torch.equal(found.distortion, clean)
    torch.testing.assert_close(model.reconstruct(x), model.eval().reconstruct(x))


# -- what it says of itself -------------------------------------------------------------------------------------------


def test_there_is_no_bound(binary):
    model, x = make(), binary(6)
    assert not model.has_bound
    bound = model.elbo(x)
    assert not bound.rate.any() and not bound.rate_per_dimension.any()
    assert bound.rate_per_dimension.shape == bound.z.shape == (6, 3)
    with pytest.raises(VlaeError, match="no density of z"):
        model.log_likelihood(x)
    with pytest.raises(VlaeError, match="no density of z"):
        next(model.importance_weights(x, 3))
    with pytest.raises(VlaeError, match="no rate"):
        model.compute_loss(x, beta=2.0)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_evaluation_and_report_give_the_distortion_and_no_bound(binary, capsys, likelihood):
    model, x = make(likelihood=likelihood), binary(6)
    result = evaluate(model, lambda: [(x[:4], range(4)), (x[4:], range(4, 6))], nll_samples=5)
    distortion = model.elbo(x).distortion
    assert result.distortion == pytest.approx(distortion.mean().item())
    shuffled = -model.decode(model.encode(x).mean.roll(1, 0)).log_prob(x)
    assert result.shuffled_gap == pytest.approx((shuffled - distortion).mean().item())
    values = result.to_dict()
    for name in ("rate", "rate_bits", "negative_elbo", "negative_elbo_error", "bits_per_dim", "nll", "ess"):
        assert values[name] is None, name
    assert values["bits_per_latent"] == []
    found = measure(model, ImageDataset.from_any(x.float(), split="test"), None, Settings(only=("bound", "nll")))
    assert found.values["distortion"] == pytest.approx(result.distortion)
    show(found)
    table, _, below = capsys.readouterr().out.partition("└")
    assert f"{result.distortion:.2f}" in table and f"{result.shuffled_gap:.2f}" in table
    assert "a DenoisingAutoencoder has no density of z" in " ".join(below.split())
    for word in ("ELBO", "NLL", "rate ", "KL"):
        assert word not in table, word


def test_reports_still_show_bounds_of_other_models(tiny_vae, binary, capsys):
    found = measure(tiny_vae(), ImageDataset.from_any(binary(6).float(), split="test"), None, Settings(only=("bound",)))
    show(found)
    shown = capsys.readouterr().out
    assert f"{found.values['rate']:.2f}" in shown and f"{found.values['distortion'] / math.log(2):.2f}" in shown
    assert "density of z" not in shown


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["mlp", "conv", "resnet"])
def test_every_parameter_gets_a_gradient(binary, architecture):
    model = make(architecture=architecture).train()
    model.elbo(binary(8)).distortion.mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_gradient_is_that_of_finite_differences(binary):
    model, x = make().train(), binary(5)
    weight = model.encoder.layers[1].weight

    def loss():
        torch.manual_seed(4)
        return model.compute_loss(x).loss

    loss().backward()
    expected = weight.grad[2, 3].item()
    with torch.no_grad():
        weight[2, 3] += 1e-5
        above = loss().item()
        weight[2, 3] -= 2e-5
        below = loss().item()
    assert (above - below) / 2e-5 == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_a_few_steps_lower_the_distortion_and_undo_noise():
    rows = torch.randint(0, 5, (64,))
    x = torch.nn.functional.one_hot(rows, 5).double()[:, None, :, None].expand(-1, 1, 5, 4).contiguous()
    model = make(widths=[16]).train()
    before = model.eval().elbo(x).distortion.mean()
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    model.train()
    for _ in range(150):
        optimizer.zero_grad()
        model.compute_loss(x).loss.backward()
        optimizer.step()
    model.eval()
    assert model.elbo(x).distortion.mean() < 0.3 * before
    seen = model.corrupt(x)
    error = (model.decode(model.encode(seen).mean).mode != x).double().mean()
    assert error < 0.3 * (seen != x).double().mean()
    drawn = model.decode(model.prior().sample((100,))).mode
    assert len(drawn.flatten(1).unique(dim=0)) >= 4


def test_the_prior_is_fitted_to_the_training_codes_alone(binary):
    model, x = make(decay=0.5), binary(30)
    fresh = model.prior().mean.clone()
    model.elbo(x)
    model.train()
    with torch.no_grad():
        model.elbo(x)
    assert torch.equal(model.prior().mean, fresh)
    codes = [model.elbo(binary(30)).z.detach() for _ in range(3)]
    means = torch.stack([z.mean(0) for z in codes])
    expected = torch.tensor([0.25, 0.5, 1.0]).double() @ means / 1.75
    torch.testing.assert_close(model.prior().mean, expected)
    samples = model.prior().sample((20_000,), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(samples.t().cov(), model.prior_module.covariance, rtol=0.1, atol=1e-3)
    first, again = (model.sample(3, generator=torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (3, 1, 5, 4)


# -- what all models do -----------------------------------------------------------------------------------------------


def test_save_and_load_keep_the_fitted_prior(binary, tmp_path):
    model, x = make(corruption="masking", noise=0.5).train(), binary(9)
    model.elbo(x)
    again = vlae.load(model.eval().save_pretrained(tmp_path / "model"))
    assert type(again) is DenoisingAutoencoder
    assert torch.equal(again.elbo(x).distortion, model.elbo(x).distortion)
    assert (again.corruption, again.noise) == ("masking", 0.5)
    first, second = (m.sample(4, generator=torch.Generator().manual_seed(1)) for m in (model, again))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corruption": "salt"}, "unknown corruption 'salt'"),
        ({"noise": 0.6}, "from 0 to 0.5"),
        ({"noise": -0.1}, "from 0 to 0.5"),
        ({"corruption": "gaussian", "noise": -1.0}, "0 or more"),
        ({"corruption": "masking", "noise": 1.5}, "from 0 to 1"),
        ({"noise": float("nan")}, "noise"),
        ({"noise": "0.1"}, "noise of the corruption"),
        ({"decay": 1.0}, "decay"),
        ({"latent_dim": 0}, "latent_dim must be"),
        ({"architecture": "vit"}, "unknown architecture"),
        ({"likelihood": "no"}, "likelihood"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(VlaeError, match=message) as caught:
        DenoisingAutoencoder(**{"image_shape": (1, 8, 8), **options})
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("flat", [False, True])
def test_textbook_output_and_loss(binary, flat):
    model = DenoisingAutoencoder.from_config({"input_dim": 20, "hidden_dim": 6, "latent_dim": 3, "noise": 0.1})
    assert (model.image_shape, model.latent_shape, model.noise) == ((1, 1, 20), (3,), 0.1)
    model, x = model.double(), binary(4, (1, 1, 20))
    given = x.flatten(1) if flat else x
    torch.manual_seed(1)
    output = model(given)
    torch.manual_seed(1)
    seen = model.corrupt(x)
    assert output._fields == ("reconstruction", "corrupted", "z")
    assert torch.equal(output.corrupted, seen.reshape(given.shape))
    assert torch.equal(output.z, model.encode(seen).mean)
    assert torch.equal(output.reconstruction, model.decode(output.z).mean.reshape(given.shape))
    model.eval()
    assert torch.equal(model(given).corrupted, given)
    loss = model.compute_loss(given)
    assert loss._fields == ("loss", "reconstruction_loss")
    assert loss.loss == loss.reconstruction_loss == model.elbo(x).distortion.mean()
    with pytest.raises(VlaeError, match="unknown key"):
        DenoisingAutoencoder.from_config({"noise_level": 1})


def test_trains_evaluates_and_samples_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "--model DenoisingAutoencoder --model.latent_dim 8 --model.architecture mlp --model.widths [32]"
    words += " --data.name digits --data.binarize dynamic --optimizer.lr 0.01"
    trainer = (
        "--trainer.max_epochs 3 --trainer.precision 32-true --trainer.accelerator cpu --trainer.progress_bar false"
    )
    assert main(["train", *words.split(), *trainer.split(), "--run.name", "dae"]) == 0
    assert "dying" not in (tmp_path / "outputs/dae/logs/train.log").read_text()
    rows = list(csv.DictReader((tmp_path / "outputs/dae/logs/metrics.csv").open()))
    distortions = [float(row["validation/distortion"]) for row in rows]
    assert distortions[-1] < distortions[0]
    assert main(["eval", "outputs/dae", "--only", "bound", "nll"]) == 0
    assert "a DenoisingAutoencoder has no density of z" in " ".join(capsys.readouterr().out.split())
    result = json.loads((tmp_path / "outputs/dae/reports/evaluation.json").read_text())
    assert result["distortion"] > 0
    assert result["negative_elbo"] is None
    assert "negative_elbo" not in (tmp_path / "outputs/dae/reports/metrics.csv").read_text()
    assert main(["sample", "prior", "--run", "outputs/dae", "--count", "3"]) == 0
    assert main(["viz", "recon-grid", "--run", "outputs/dae", "--count", "3"]) == 0
