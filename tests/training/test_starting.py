"""A training that starts from a saved model begins with its weights, and with those of no other model."""

import logging
import shutil
from pathlib import Path

import pytest
import torch

from vlae import VlaeError, cli
from vlae.models import VAE, VLAE, VQVAE, load
from vlae.objectives import ELBO
from vlae.training import run
from vlae.training.checkpoints import take_weights
from vlae.training.settings import DataSettings, TrainerSettings
from vlae.training.task import OptimizerSettings

SMALL = {"latent_dim": 4, "encoder_widths": (4,), "encoder_hidden": 16, "channels": 4, "flow_hidden": (8,)}
STILL = 1e-12  # a learning rate at which no weight moves by more


def a_model(seed: int, **changes) -> VLAE:
    torch.manual_seed(seed)
    return VLAE((1, 8, 8), **{"decoder_layers": 1, **SMALL, **changes})


def train(directory: Path, start_from, model=None, lr=STILL, epochs=1, frozen=(), **options):
    return run.train(
        model or a_model(1),
        ELBO(),
        OptimizerSettings(lr=lr, schedule="constant", frozen=frozen),
        DataSettings("digits", binarize="dynamic", batch_size=400),
        TrainerSettings(epochs, precision="32-true", accelerator="cpu", progress_bar=False),
        directory,
        config="",
        start_from=start_from,
        **options,
    )


def distance(one, other) -> float:
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def test_it_begins_with_the_saved_weights(tmp_path):
    source = a_model(2)
    saved = source.save_pretrained(tmp_path / "source")
    started, fresh = load(train(tmp_path / "started", str(saved))), load(train(tmp_path / "fresh", None))
    assert distance(started.state_dict(), source.state_dict()) < 1e-6
    assert distance(fresh.state_dict(), source.state_dict()) > 0.01
    assert started.metadata["started_from"] == str(saved)
    assert "started_from" not in fresh.metadata


def test_weights_of_another_precision_are_taken(tmp_path):
    source = a_model(2).bfloat16()
    started = load(train(tmp_path / "started", str(source.save_pretrained(tmp_path / "source"))))
    assert {weight.dtype for weight in started.parameters()} == {torch.float32}
    assert distance(started.state_dict(), source.state_dict()) < 1e-6


def test_to_resume_the_saved_model_is_not_needed_and_not_taken_again(tmp_path):
    """Going on from a checkpoint ends where the training that was not stopped ends."""
    saved = str(a_model(2).save_pretrained(tmp_path / "source"))
    options = {"lr": 0.01, "start_from": saved}
    whole = load(train(tmp_path / "whole", epochs=2, **options))
    train(tmp_path / "parts", epochs=1, **options)
    shutil.rmtree(saved)
    parts = load(train(tmp_path / "parts", epochs=2, resume=True, **options))
    assert parts.metadata["started_from"] == saved
    assert distance(parts.state_dict(), whole.state_dict()) == 0
    assert distance(parts.state_dict(), a_model(2).state_dict()) > 0.01


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: a_model(2, channels=8), "another channels"),
        (lambda: a_model(2, latent_dim=3, flow_steps=1), "another latent_dim; .* prior, .* may differ"),
        (lambda: VAE((1, 8, 8), latent_dim=4), "is a VAE, not a VLAE"),
    ],
)
def test_another_model_is_refused(other, words, tmp_path):
    saved = other().save_pretrained(tmp_path / "other")
    with pytest.raises(VlaeError, match=words):
        train(tmp_path / "run", str(saved))
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(VlaeError, match="no saved model at 'nowhere'"):
        train(tmp_path / "run", "nowhere")
    assert not (tmp_path / "run").exists()


def test_on_the_command_line(tmp_path, capsys):
    words = ["train", "--config", "digits", "--run.root", str(tmp_path), "--trainer.max_epochs", "1"]
    words += ["--trainer.compile", "false", "--trainer.progress_bar", "false", "--data.limit", "256"]
    assert cli.main([*words, "--run.name", "first"]) == 0
    assert cli.main([*words, "--run.name", "second", "--start_from", str(tmp_path / "first")]) == 0
    assert f"from the weights of {tmp_path / 'first'}" in (tmp_path / "second" / "logs" / "train.log").read_text()
    assert f"start_from: {tmp_path / 'first'}" in (tmp_path / "second" / "config.yaml").read_text()
    first, second = (
        load(tmp_path / name / "model").metadata.get("started_from", "nothing") for name in ("first", "second")
    )
    assert (first, second) == ("nothing", str(tmp_path / "first"))
    assert cli.main([*words, "--run.name", "third", "--start_from", "mnist-dynamic"]) == 2
    assert "start_from: mnist-dynamic has another" in capsys.readouterr().err


def test_a_run_that_was_stopped_is_started_from(tmp_path):
    """It has checkpoints and no saved model yet; with one, it would look finished."""
    best = load(train(tmp_path / "stopped", None, lr=0.01))
    shutil.rmtree(tmp_path / "stopped" / "model")
    (tmp_path / "stopped" / "config.yaml").write_text("a run's")
    train(tmp_path / "run", str(tmp_path / "stopped"))
    assert distance(load(tmp_path / "run").state_dict(), best.state_dict()) < 1e-6
    assert not (tmp_path / "stopped" / "model").exists()


def test_an_empty_name_is_none(tmp_path):
    train(tmp_path / "run", "")
    train(tmp_path / "run", None, epochs=2, resume=True)
    assert load(tmp_path / "run").metadata["epochs"] in (1, 2)


@pytest.mark.parametrize("part", [".", "model"])
def test_a_run_is_not_replaced_by_what_starts_from_it(part, tmp_path):
    train(tmp_path / "run", None)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(VlaeError, match="would be replaced by what starts from it"):
        train(tmp_path / "run", str(tmp_path / "run" / part))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("stacks", ["two", "slanted"])
@pytest.mark.parametrize("weight_norm", [False, True])
@pytest.mark.parametrize("conditioning", ["bias", "input"])
@pytest.mark.parametrize("layers", [2, 4])
def test_a_deeper_decoder_begins_as_the_saved_one(stacks, weight_norm, conditioning, layers, tmp_path):
    """The same bound; a far pixel that it does not look at yet, and can learn to."""
    alike = {"stacks": stacks, "weight_norm": weight_norm, "conditioning": conditioning}
    source, deep = a_model(2, **alike).double(), a_model(1, decoder_layers=layers, **alike).double()
    take_weights(deep, str(source.save_pretrained(tmp_path / "source")))
    x = (torch.rand(3, 1, 8, 8, dtype=torch.float64) > 0.5).double()
    bounds = [m.elbo(x, generator=torch.Generator().manual_seed(0)) for m in (source, deep)]
    assert torch.allclose(bounds[0].elbo, bounds[1].elbo, rtol=0, atol=1e-12)
    assert torch.allclose(bounds[0].rate, bounds[1].rate, rtol=0, atol=1e-12)

    @torch.no_grad()
    def far() -> float:
        """How much a pixel's conditional changes with the one three rows above: the saved model sees two."""
        z = torch.ones(1, 4, dtype=torch.float64)
        one, other = torch.zeros(2, 1, 1, 8, 8, dtype=torch.float64)
        other[..., 7 - 3, 7] = 1
        maps = deep.decoder(z)
        return float((deep.decoder.pixels(one, maps) - deep.decoder.pixels(other, maps))[..., 7, 7].abs().max())

    assert far() == 0
    optimiser = torch.optim.SGD(deep.parameters(), lr=0.01)
    for _ in range(3):
        optimiser.zero_grad()
        (-deep.elbo(x).elbo.mean()).backward()
        optimiser.step()
    assert far() > 0


def test_a_deeper_decoder_on_the_command_line(tmp_path, capsys):
    words = ["train", "--config", "digits", "--run.root", str(tmp_path), "--trainer.max_epochs", "1"]
    words += ["--trainer.compile", "false", "--trainer.progress_bar", "false", "--data.limit", "256"]
    assert cli.main([*words, "--run.name", "first"]) == 0
    deeper = [*words, "--start_from", str(tmp_path / "first"), "--model.decoder_layers"]
    assert cli.main([*deeper, "4", "--run.name", "second"]) == 0
    assert load(tmp_path / "second").config["decoder_layers"] == 4
    assert cli.main([*deeper, "0", "--run.name", "third"]) == 2
    assert "decoder_layers: set as many or more; got 0" in capsys.readouterr().err


def test_dropout_may_be_another_since_it_is_of_the_training(tmp_path):
    source = a_model(2)
    saved = str(source.save_pretrained(tmp_path / "source"))
    started = a_model(1, dropout=0.3, decoder_layers=2)
    take_weights(started, saved)
    assert started.config["dropout"] == 0.3
    x = torch.rand(3, 1, 8, 8).round()
    bounds = [m.eval().elbo(x, generator=torch.Generator().manual_seed(0)).elbo for m in (source, started)]
    torch.testing.assert_close(*bounds)
    take_weights(a_model(3), str(a_model(4, dropout=0.3).save_pretrained(tmp_path / "dropping")))


@pytest.mark.parametrize(
    "other",
    [
        {"flow_order": "same"},
        {"flow_steps": 0},
        {"flow_steps": 3, "flow_hidden": (5,), "flow_affine": False},
        {"prior": "mixture", "prior_options": {"components": 3}},
        {"prior": "autoregressive_mixture", "decoder_layers": 4},
    ],
    ids=lambda other: " ".join(other),
)
def test_another_prior_begins_anew_beside_the_saved_weights(other, tmp_path):
    source, started = a_model(2), a_model(1, **other)
    anew = {name: weights.clone() for name, weights in started.prior_module.state_dict().items()}
    take_weights(started, str(source.save_pretrained(tmp_path / "source")))
    for name, weights in started.prior_module.state_dict().items():
        assert torch.equal(weights, anew[name]), "its masks too are those of its own order"
    x = torch.rand(3, 1, 8, 8).round()
    bounds = [m.eval().elbo(x, analytic=False, generator=torch.Generator().manual_seed(0)) for m in (source, started)]
    torch.testing.assert_close(bounds[0].distortion, bounds[1].distortion)
    z = source.encode(x).mean
    torch.testing.assert_close(z, started.encode(x).mean)
    difference = source.prior().log_prob(z) - started.prior().log_prob(z)
    assert difference.abs().max() > 1e-3


def test_an_order_of_its_own_can_be_scanned_after_the_start(tmp_path):
    """The saved masks would let a dimension see later ones."""
    saved = str(a_model(2, latent_dim=4).save_pretrained(tmp_path / "source"))
    started = a_model(1, latent_dim=4, flow_order="same")
    take_weights(started, saved)
    z = torch.randn(2, 4)
    seen = torch.autograd.functional.jacobian(started.prior().noise_of, z[:1])[0, :, 0]
    assert torch.equal(seen.triu(1), torch.zeros(4, 4))
    started.prior().scan(lambda sites, conditional: z[:, sites.index], 2)


def test_a_new_vamp_prior_begins_at_images(tmp_path):
    torch.manual_seed(0)
    options = {"latent_dim": 3, "architecture": "mlp", "widths": [8]}
    saved = VAE((1, 8, 8), **options).save_pretrained(tmp_path / "source")
    model = VAE((1, 8, 8), prior="vamp", prior_options={"components": 8}, **options)
    train(tmp_path / "run", str(saved), model)
    assert ((model.prior_module.pseudo_inputs - 0.5).abs() > 0.4).all(), "they are binary images, softened"


def test_the_log_says_that_the_prior_begins_anew(tmp_path, caplog):
    caplog.set_level(logging.INFO, "vlae")
    saved = str(a_model(1).save_pretrained(tmp_path / "source"))
    for name, order in (("same", "reversed"), ("other", "same")):
        train(tmp_path / name, saved, a_model(2, flow_order=order))
        text = (tmp_path / name / "logs" / "train.log").read_text()
        assert "from the weights of" in text
        assert ("begins anew: another flow_order" in text) == (name == "other")


def test_no_prior_may_differ_where_it_is_no_argument(tmp_path):
    options = {"codes": 4, "widths": [4], "prior_channels": 4}
    saved = VQVAE((1, 8, 8), **options).save_pretrained(tmp_path / "source")
    with pytest.raises(VlaeError, match="another prior_layers") as error:
        take_weights(VQVAE((1, 8, 8), prior_layers=1, **options), str(saved))
    assert "its prior" not in str(error.value)


@pytest.mark.parametrize("learning", ["ema", "gradient"])
def test_a_frozen_codebook_stays(tmp_path, learning):
    """Averages, revival and the first batch's start move none of it: the prior can be trained over fixed codes."""
    torch.manual_seed(0)
    options = {"codes": 16, "code_dim": 4, "widths": [4], "prior_channels": 4, "prior_layers": 1, "revival": 0.9}
    options |= {"architecture": "resnet", "codebook": learning}
    saved = train(tmp_path / "source", None, VQVAE((1, 8, 8), **options), lr=0.01)
    parts = ["encoder", "decoder", "codebook"]
    found = train(tmp_path / "run", str(saved), VQVAE((1, 8, 8), **options), lr=0.01, frozen=parts, epochs=3)
    before, after = load(saved).state_dict(), load(found).state_dict()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved and all(name.startswith("prior_network.") for name in moved)
