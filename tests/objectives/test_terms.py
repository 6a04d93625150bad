"""Extra terms: each against its formula, and that none of them touches the bound."""

import math

import pytest
import torch
from torch import nn

import vlae
from vlae import VlaeError
from vlae.data import ImageDataset
from vlae.evaluation import classifier
from vlae.models import VQVAE, LadderVAE, PixelCNN
from vlae.objectives import (
    ELBO,
    GECO,
    IWAE,
    Adversarial,
    Contrastive,
    InfoVAE,
    LatentNoise,
    Linear,
    Perceptual,
    Term,
    WithTerms,
)


class Constant(Term):
    """5 times the first pixel's mean, and a count of updates."""

    updates = 0

    def forward(self, model, x, bound, context):
        return 5 * x[:, 0, 0, 0].mean()

    def update(self):
        self.updates += 1


def features():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Dropout(0.5)).double()


TERMS = {
    "perceptual": lambda: Perceptual(0.7, features()),
    "adversarial": lambda: Adversarial(0.7, channels=4, stages=2),
    "contrastive": lambda: Contrastive(0.7),
    "noisy views": lambda: Contrastive(0.7, noise=0.2),
    "latent noise": lambda: LatentNoise(0.7),
}


@pytest.fixture(params=TERMS)
def term(request):
    return TERMS[request.param]()


def computed(objective, model, x, progress=0.0, context=None):
    torch.manual_seed(4)
    return objective.compute(model, x, progress, context)


def test_weights_multiply_terms_and_schedules_are_read(tiny_vae, binary):
    model, x = tiny_vae(), binary(4)
    terms = [Constant(2.0), Constant(Linear(0.0, 4.0))]
    objective, value = WithTerms(terms, ELBO(beta=0.3)), 5 * x[:, 0, 0, 0].mean()
    plain, _ = computed(ELBO(beta=0.3), model, x)
    for progress, weights in [(0.0, 2.0), (0.5, 4.0), (1.0, 6.0)]:
        torch.testing.assert_close(computed(objective, model, x, progress)[0], plain + weights * value)
    objective.update(model.elbo(x))
    assert [term.updates for term in terms] == [1, 1]


def test_a_term_without_weight_is_not_computed(tiny_vae, binary):
    class Expensive(Term):
        def forward(self, model, x, bound, context):
            raise AssertionError

    objective = WithTerms([Expensive(Linear(0.0, 1.0, begin=0.5))])
    objective.compute(tiny_vae(), binary(2), 0.4)
    with pytest.raises(AssertionError):
        objective.compute(tiny_vae(), binary(2), 0.6)


def test_the_reported_bound_is_the_objectives_own(term, tiny_vae, binary):
    model, x = tiny_vae(), binary(5)
    objective = WithTerms([term], ELBO(free_nats=9.0))
    objective.prepare(model)
    (plain, own), (loss, bound) = computed(ELBO(free_nats=9.0), model, x), computed(objective, model, x)
    for name in ("distortion", "rate", "rate_per_dimension", "elbo"):
        assert torch.equal(getattr(bound, name), getattr(own, name))
    assert loss.ndim == 0 and loss.isfinite() and loss != plain


def test_every_term_has_the_gradient_of_its_value(term, linear_gaussian, flat_images, gradients_are_right):
    if isinstance(term, Perceptual):
        term = Perceptual(0.7, nn.Sequential(nn.Flatten(), nn.Linear(6, 3).double(), nn.Tanh()))
    model = linear_gaussian()
    objective = WithTerms([term])
    objective.prepare(model)
    if not isinstance(term, Adversarial):  # its value keeps a gradient from the encoder
        assert gradients_are_right(objective, model, flat_images(4))


def test_terms_take_ladders_and_conditional_models(term, tiny_vae, binary):
    x = binary(4)
    ladder = LadderVAE((1, 5, 4), latent_dims=(3, 2), widths=[6], hidden=8).double()
    for model, context in [(ladder, None), (tiny_vae(classes=3), torch.tensor([0, 2, 1, 0]))]:
        objective = WithTerms([term])
        objective.prepare(model)
        assert computed(objective, model, x, context=context)[0].isfinite()


def test_objective_inside_keeps_its_ways(tiny_vae, binary):
    objective = WithTerms([Constant()], GECO(target_nats=1.0))
    objective.update(tiny_vae().elbo(binary(4)))
    assert objective.objective.multiplier > 1
    lagging = WithTerms([Constant()], vlae.objectives.LaggingInference())
    model = tiny_vae()
    assert lagging.frozen(model, 0, 0.0) and not lagging.frozen(model, 0, 1.0)
    with pytest.raises(VlaeError, match="one term or more"):
        WithTerms([])
    with pytest.raises(VlaeError, match="weight must be"):
        Constant(-1.0)


@pytest.mark.parametrize(
    "objective",
    [lambda: InfoVAE(), lambda: IWAE(2), lambda: WithTerms([Contrastive()]), lambda: WithTerms([LatentNoise()])],
)
def test_codes_that_are_not_continuous_are_refused(objective, binary):
    """Through a VQ-VAE's codes no gradient passes, and an unconditional PixelCNN has none."""
    x = binary(4, (1, 8, 8)).float()
    with pytest.raises(VlaeError, match="needs a continuous z, and a VQVAE has discrete codes"):
        objective().compute(VQVAE((1, 8, 8)), x, 0.0)
    model = PixelCNN((1, 8, 8), channels=4, decoder_layers=1)
    if isinstance(objective(), IWAE):
        torch.testing.assert_close(objective().compute(model, x, 0.0)[0], -model.log_prob(x).mean())
    else:
        with pytest.raises(VlaeError, match="a PixelCNN has no code"):
            objective().compute(model, x, 0.0)


def test_images_of_discrete_codes_have_terms(binary):
    x, model = binary(4, (1, 8, 8)).float(), VQVAE((1, 8, 8))
    objective = WithTerms([Perceptual(1.0, nn.Identity()), Adversarial(1.0, channels=2)])
    objective.prepare(model)
    loss, bound = objective.compute(model, x, 0.0)
    loss.backward()
    objective.update(bound)
    assert loss.isfinite()


# -- perceptual --------------------------------------------------------------------------------------------------------


def test_perceptual_distance_is_its_formula(tiny_vae, binary):
    model, x, network = tiny_vae(), binary(5), features()
    loss, bound = computed(WithTerms([Perceptual(0.7, network)]), model, x)
    network.eval()
    mean = model.decode(bound.z).mean
    expected = sum(((network(x[i : i + 1]) - network(mean[i : i + 1])) ** 2).sum() for i in range(5)) / 5
    torch.testing.assert_close(loss, -bound.elbo.mean() + 0.7 * expected)


def test_perceptual_distance_of_several_layers_adds_up(tiny_vae, binary):
    class Layers(nn.Module):
        def forward(self, x):
            return [x, 2 * x.flatten(1)]

    model, x = tiny_vae(), binary(3)
    bound = model.elbo(x)
    value = Perceptual(1.0, Layers())(model, x, bound, None)
    torch.testing.assert_close(value, 5 * ((x - model.decode(bound.z).mean) ** 2).flatten(1).sum(1).mean())


def test_perceptual_network_is_a_frozen_hidden_copy(tiny_vae, binary, gradients_of):
    network, model, x = features(), tiny_vae(), binary(4)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    objective = WithTerms([Perceptual(1.0, network)]).train()
    loss, _ = computed(objective, model, x)
    loss.backward()
    assert torch.equal(computed(objective, model, x)[0], loss)  # eval mode: no dropout, no batch statistics
    assert network.training and all(p.grad is None and p.requires_grad for p in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not list(objective.parameters()) and not objective.state_dict()
    assert model.encoder.layers[1].weight.grad.any() and model.decoder.layers[0].weight.grad.any()


def test_the_classifier_is_that_of_the_models_data(tiny_vae, binary, monkeypatch):
    asked = []

    def trained(name, binarize=None, root=None):
        asked.append((name, binarize, root))
        return classifier.Classifier((1, 5, 4), 3).eval()

    monkeypatch.setattr(classifier, "trained_classifier", trained)
    monkeypatch.setattr("vlae.data.load", lambda *_, **__: ImageDataset(torch.zeros(1, 1, 5, 4, dtype=torch.uint8)))
    model = tiny_vae()
    with pytest.raises(VlaeError, match="give the perceptual term's dataset"):
        Perceptual().prepare(model)
    model.metadata = {"data": {"name": "mnist", "binarize": "dynamic", "root": "/data"}}
    objective = WithTerms([Perceptual()])
    with pytest.raises(VlaeError, match="call prepare"):
        objective.compute(model, binary(2), 0.0)
    objective.prepare(model)
    objective.prepare(model)
    WithTerms([Perceptual(dataset="digits")]).prepare(model)
    assert asked == [("mnist", "dynamic", "/data"), ("digits", None, None)]
    assert objective.compute(model, binary(2), 0.0)[0].isfinite()
    with pytest.raises(VlaeError, match="choose another dataset"):
        Perceptual().prepare(tiny_vae_of_another_shape(tiny_vae, model))
    assert len(asked) == 2  # refused before a classifier is trained


def tiny_vae_of_another_shape(tiny_vae, like):
    model = tiny_vae((1, 6, 6))
    model.metadata = like.metadata
    return model


@pytest.mark.parametrize("make", [lambda: Perceptual(1.0, nn.Identity()), lambda: Adversarial(1.0, channels=2)])
def test_autoregressive_decoders_have_no_mean_image(make, tiny_vlae, tiny_vae, binary):
    with pytest.raises(VlaeError, match="needs a decoder with a mean image") as caught:
        WithTerms([make()]).prepare(tiny_vlae())
    assert len(str(caught.value).splitlines()) == 1
    options = {"levels": 2, "channel_means": True, "channels": 1}
    model, term = tiny_vae(likelihood="logistic_mixture", likelihood_options=options), make()
    term.prepare(model)
    with pytest.raises(VlaeError, match="needs a decoder with a mean image"):
        WithTerms([term]).compute(model, binary(2), 0.0)


def test_other_networks_are_refused_by_name():
    with pytest.raises(VlaeError, match="'classifier' or, from Python, a module; got 'vgg'"):
        Perceptual(network="vgg")


# -- contrastive -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_contrastive_loss_is_its_formula(noise, linear_gaussian, flat_images):
    model, x, temperature = linear_gaussian(), flat_images(5), 0.4
    loss, bound = computed(WithTerms([Contrastive(2.0, temperature, noise)]), model, x)
    torch.manual_seed(4)
    model.elbo(x)
    seen = (x + noise * torch.randn_like(x)).clamp(0, 1) if noise else x
    again = model.encode(seen).rsample()
    s = [[torch.cosine_similarity(u, v, dim=0).item() / temperature for v in again] for u in bound.z]
    rows = [math.log(math.exp(s[i][i]) / sum(math.exp(s[i][j]) for j in range(5))) for i in range(5)]
    columns = [math.log(math.exp(s[i][i]) / sum(math.exp(s[j][i]) for j in range(5))) for i in range(5)]
    expected = -(sum(rows) + sum(columns)) / 10
    assert loss.item() == pytest.approx((-bound.elbo.mean() + 2 * expected).item())


def test_codes_that_tell_images_apart_have_no_contrastive_loss(linear_gaussian):
    model = linear_gaussian()
    with torch.no_grad():
        model.encoder.weight.copy_(torch.tensor([[1.0, 0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0, 0]]))
        model.encoder.bias.zero_()
        model.encoder.log_stddev.fill_(-9.0)
    x = torch.eye(6, dtype=torch.float64).view(6, 1, 2, 3)[:2]
    assert Contrastive()(model, x, model.elbo(x), None).item() < 0.01
    same = x[:1].expand(2, -1, -1, -1)
    assert Contrastive()(model, same, model.elbo(same), None).item() == pytest.approx(math.log(2), abs=1e-3)


def test_contrastive_gradient_is_the_encoders(tiny_vae, binary, gradients_of):
    model, x = tiny_vae(), binary(5)
    gradients = gradients_of(Contrastive()(model, x, model.elbo(x), None), model)
    assert all(g.any() == name.startswith("encoder") for name, g in gradients.items())


def test_contrastive_refusals(linear_gaussian, flat_images):
    for options in ({"temperature": 0.0}, {"noise": -1.0}):
        with pytest.raises(VlaeError, match="temperature > 0 and noise >= 0"):
            Contrastive(**options)
    model, x = linear_gaussian(), flat_images(3)
    model.has_bound = False
    with pytest.raises(VlaeError, match="no q"):
        WithTerms([Contrastive()]).compute(model, x, 0.0)


# -- latent noise ------------------------------------------------------------------------------------------------------


def test_latent_noise_is_the_distortion_at_a_noisy_code(tiny_vlae, binary):
    model, x = tiny_vlae(), binary(4)
    loss, bound = computed(WithTerms([LatentNoise(0.5, sigma=0.3)]), model, x)
    torch.manual_seed(4)
    model.elbo(x)
    noisy = bound.z + 0.3 * torch.randn_like(bound.z)
    torch.testing.assert_close(loss, -bound.elbo.mean() - 0.5 * model.decode(noisy).log_prob(x).mean())


def test_latent_noise_of_a_linear_decoder_has_a_closed_form(linear_gaussian, flat_images):
    """E |x - W (z + s eps)|^2 = |x - W z|^2 + s^2 |W|^2."""
    model, x = linear_gaussian(), flat_images(1).expand(20_000, 1, 2, 3)
    with torch.no_grad():
        bound = model.elbo(x)
        extra = LatentNoise(1.0, sigma=0.5)(model, x, bound, None) - bound.distortion.mean()
    expected = 0.5**2 * (model.weight**2).sum().item() / (2 * 0.4**2)
    assert extra.item() == pytest.approx(expected, rel=0.03)


def test_latent_noise_refusals():
    with pytest.raises(VlaeError, match="must be positive; got 0"):
        LatentNoise(sigma=0.0)
