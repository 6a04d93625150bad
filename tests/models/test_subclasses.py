"""Models of somebody's own, made of this package's: measured, sampled, trained, saved and loaded as what they are."""

import copy

import pytest
import torch
from torch import nn

import vlae
from vlae import VlaeError
from vlae.models import LatentVariableModel, saving
from vlae.nn.pixelcnn import GatedPixelCNN
from vlae.objectives import ELBO, Adversarial, Objective, WithTerms
from vlae.training.run import train
from vlae.training.settings import DataSettings, TrainerSettings
from vlae.training.task import OptimizerSettings, Task

SHAPE = (1, 8, 8)
SMALL = {"latent_dim": 3, "encoder_widths": [4], "encoder_hidden": 8, "channels": 4, "decoder_layers": 1}
MLP = {"latent_dim": 3, "architecture": "mlp", "widths": [8]}


@pytest.fixture(autouse=True)
def forgotten():
    """What a test enters into the list of classes is gone afterwards."""
    before = dict(saving._classes)
    yield
    saving._classes.clear()
    saving._classes.update(before)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Trains a model for one epoch on the digits; the saved model's path."""
    monkeypatch.chdir(tmp_path)
    settings = TrainerSettings(max_epochs=1, precision="32-true", accelerator="cpu", devices=1, progress_bar=False)

    def run(model, objective=None, **options):
        data = DataSettings("digits", binarize="threshold", batch_size=200)
        return train(
            model, objective or ELBO(), OptimizerSettings(**options), data, settings, tmp_path / "run", "x: 1\n"
        )

    return run


def nlls(model, x, samples):
    """By importance sampling, in float32 where it may be compiled; and with gradients, by `decode`."""
    with torch.no_grad():
        short = model.log_likelihood(x, samples, generator=torch.Generator().manual_seed(1))
    return short, model.log_likelihood(x, samples, generator=torch.Generator().manual_seed(1)).detach()


class Squashed(vlae.VLAE):
    """Another `decode`."""

    def decode(self, z, temperature=1.0, context=None):
        return super().decode(3 * torch.tanh(z), temperature, context)


def plain(model):
    return model


def softplus(model):
    """Another activation."""
    for module in list(model.decoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ELU):
                setattr(module, name, nn.Softplus())
    return model


def hooked(model):
    """A hook that changes what the decoder's maps are."""
    model.decoder.features.register_forward_hook(lambda module, given, maps: maps + 1)
    return model


class Louder(GatedPixelCNN):
    """Another trunk."""

    def forward(self, x, context):
        return super().forward(x, context) + 0.5


def another_trunk(model):
    model.decoder.pixels.__class__ = Louder
    return model


@pytest.mark.parametrize("samples", [31, 32, 100])
@pytest.mark.parametrize("change", [plain, softplus, hooked, another_trunk])
@pytest.mark.parametrize("kind", [vlae.VLAE, Squashed])
def test_the_number_of_samples_never_changes_the_model(kind, change, samples):
    """From 32 samples on there are shortcuts, which know nothing of what others make of a model."""
    torch.manual_seed(0)
    model = change(kind(SHAPE, **SMALL)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    x = (torch.rand(3, *SHAPE) > 0.5).float()
    short, by_decode = nlls(model, x, samples)
    torch.testing.assert_close(short, by_decode, rtol=1e-4, atol=1e-3)


def test_shortcuts_are_taken_where_nothing_was_changed():
    assert vlae.VLAE(SHAPE, **SMALL)._has_shortcuts
    assert copy.deepcopy(vlae.VLAE(SHAPE, **SMALL, weight_norm=True, dropout=0.1))._has_shortcuts
    assert all(vlae.load(name)._has_shortcuts for name in ("mnist-dynamic", "mnist-static-deep"))
    assert not Squashed(SHAPE, **SMALL)._has_shortcuts
    assert not any(change(vlae.VLAE(SHAPE, **SMALL))._has_shortcuts for change in (softplus, hooked, another_trunk))


def test_another_trunk_is_sampled_as_it_computes():
    model = another_trunk(vlae.VLAE(SHAPE, **SMALL)).eval()
    with torch.no_grad():
        p, u = model.decode(torch.randn(4, 3)), torch.rand(4, *SHAPE)
        wavefront, raster = (p.sample(uniforms=u, method=method) for method in ("wavefront", "raster"))
    assert torch.equal(wavefront, raster)


class Continuous(vlae.VAE):
    """Other values than the base class's defaults, handed on with those that it is given."""

    def __init__(self, image_shape, **options):
        options.setdefault("likelihood", "gaussian")
        super().__init__(image_shape, **options)


class Fixed(vlae.VAE):
    """Arguments that it decides itself, one of them as the base class would."""

    def __init__(self, hidden=7, **options):
        super().__init__(SHAPE, latent_dim=32, architecture="mlp", widths=[hidden], **options)


class Anything(vlae.VAE):
    """All arguments handed on."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)


class Tied(vlae.VAE):
    """A module with two names."""

    def __init__(self, image_shape):
        super().__init__(image_shape, **MLP)
        self.again = self.decoder


@pytest.mark.parametrize(
    "make",
    [
        lambda: Continuous(SHAPE, **MLP),
        lambda: Continuous(SHAPE, **MLP, likelihood="laplace"),
        lambda: Fixed(),
        lambda: Fixed(5, prior="mixture"),
        lambda: Anything(SHAPE, **MLP),
        lambda: Anything(SHAPE, 3, architecture="mlp"),
        lambda: Tied(SHAPE),
    ],
)
def test_what_is_loaded_is_what_was_saved(make, tmp_path):
    model = make().eval()
    again = vlae.load(model.save_pretrained(tmp_path / "model"))
    assert type(again) is type(model) and type(again.likelihood) is type(model.likelihood)
    x = (torch.rand(4, *SHAPE) > 0.5).float()
    first, second = (each.elbo(x, generator=torch.Generator().manual_seed(0)).elbo for each in (model, again))
    assert torch.equal(first, second)


def test_they_train_as_well(trained):
    assert isinstance(vlae.load(trained(Fixed(5))), Fixed)


def test_tied_modules_stay_tied(trained):
    model = vlae.load(trained(Tied(SHAPE)))
    assert all(a is b for a, b in zip(model.decoder.parameters(), model.again.parameters(), strict=True))


class Around(vlae.VAE):
    """Around a module that it is given."""

    def __init__(self, image_shape, backbone):
        super().__init__(image_shape, **MLP)
        self.backbone = backbone


class Forgetful(vlae.VAE):
    """Of a size that none of its arguments says."""

    size = 4

    def __init__(self, image_shape):
        super().__init__(image_shape, **{**MLP, "latent_dim": Forgetful.size})


@pytest.mark.parametrize("kind", ["around", "forgetful"])
def test_what_can_not_be_built_again_is_refused_before_anything_is_written(kind, tmp_path, trained, monkeypatch):
    model = Around(SHAPE, nn.Linear(2, 2)) if kind == "around" else Forgetful(SHAPE)
    x = (torch.rand(4, *SHAPE) > 0.5).float()
    assert model.elbo(x).elbo.isfinite().all()  # it can be used
    monkeypatch.setattr(Forgetful, "size", 5)
    for attempt in (lambda: model.save_pretrained(tmp_path / "model"), lambda: trained(model)):
        before = torch.get_rng_state()
        with pytest.raises(VlaeError, match="built again") as error:
            attempt()
        assert torch.equal(before, torch.get_rng_state())
        assert "\n" not in str(error.value)
    assert not (tmp_path / "model").exists() and not (tmp_path / "run").exists()


def test_a_class_named_like_one_of_ours_takes_nothing_away(tmp_path):
    own = type("VLAE", (vlae.VLAE,), {"__module__": "notebook", "decode": Squashed.decode})
    assert type(vlae.load("mnist-dynamic")) is vlae.VLAE
    model = own(SHAPE, **SMALL)
    assert type(vlae.load(model.save_pretrained(tmp_path / "own"))) is own
    assert type(vlae.load(vlae.VLAE(SHAPE, **SMALL).save_pretrained(tmp_path / "ours"))) is vlae.VLAE
    anew = type("VLAE", (vlae.VLAE,), {"__module__": "notebook"})  # its cell was run again
    assert type(vlae.load(tmp_path / "own")) is anew


class Minimal(LatentVariableModel):
    """The documented contract and no more: encode, decode and prior."""

    def __init__(self, image_shape=SHAPE):
        super().__init__()
        base = vlae.VAE(image_shape, **MLP)
        self.image_shape, self.latent_shape, self.likelihood = base.image_shape, base.latent_shape, base.likelihood
        self.base = base

    def encode(self, x):
        return self.base.encode(x)

    def decode(self, z, temperature=1.0):
        return self.base.decode(z, temperature)

    def prior(self):
        return self.base.prior()


class Weighed(Objective):
    """The distortion under a deviation that is learned: at its best w = log(mean distortion / 64)."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, bound, progress):
        return bound.distortion.mean() * torch.exp(-self.w) + 64 * self.w + bound.rate.mean()


def test_what_an_objective_learns_is_trained(trained):
    objective = Weighed()
    trained(vlae.VAE(SHAPE, **MLP), objective, lr=0.01)
    assert objective.w.item() < -0.01
    both = WithTerms([Adversarial()], Weighed())
    both.prepare(vlae.VAE(SHAPE, **MLP))
    task = Task(vlae.VAE(SHAPE, **MLP), both, OptimizerSettings())
    mine = {name for name, parameter in task.named_parameters() if any(parameter is p for p in task.trained)}
    assert "objective.objective.w" in mine and not any("discriminator" in name for name in mine)
    assert {name for name in mine if name.startswith("model.")} == {
        f"model.{name}" for name, _ in task.model.named_parameters()
    }


def test_a_model_of_the_documented_contract_can_be_trained(trained):
    assert isinstance(vlae.load(trained(Minimal())), Minimal)
