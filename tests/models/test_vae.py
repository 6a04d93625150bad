import pytest
import torch
from torch.nn import functional as F

import vlae
from vlae import VAE, VlaeError


def by_hand(model, x, z):
    """Reconstruction error and KL summed over pixels and dimensions, averaged over the batch: nats per image."""
    q = model.encode(x)
    mu, log_var = q.mean, q.variance.log()
    logits = model.decoder(z)
    reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)
    kl = -0.5 * (1 + log_var - mu**2 - log_var.exp()).sum() / len(x)
    return reconstruction, kl


@pytest.mark.parametrize("beta", [None, 0.0, 1.0, 4.0])
@pytest.mark.parametrize("flat", [False, True])
def test_loss_is_reconstruction_plus_beta_kl_in_nats_per_image(tiny_vae, binary, beta, flat):
    model, x = tiny_vae(beta=2.5), binary(7)
    torch.manual_seed(3)
    loss = model.compute_loss(x.flatten(1) if flat else x, beta=beta)
    torch.manual_seed(3)
    z = model.encode(x).rsample()
    reconstruction, kl = by_hand(model, x, z)
    torch.testing.assert_close(loss.reconstruction_loss, reconstruction)
    torch.testing.assert_close(loss.kl_loss, kl)
    torch.testing.assert_close(loss.loss, reconstruction + (2.5 if beta is None else beta) * kl)
    assert loss.loss.shape == ()


@pytest.mark.parametrize("flat", [False, True])
def test_forward_gives_reconstruction_mu_log_var_and_a_sample(tiny_vae, binary, flat):
    model, x = tiny_vae(), binary(4)
    torch.manual_seed(3)
    output = model(x.flatten(1) if flat else x)
    torch.manual_seed(3)
    q = model.encode(x)
    z = q.rsample()
    assert output._fields == ("reconstruction", "mu", "log_var", "z")
    assert torch.equal(output.z, z)
    torch.testing.assert_close(output.log_var, q.variance.log())
    assert torch.equal(output.mu, q.mean)
    expected = model.decoder(z).sigmoid()
    torch.testing.assert_close(output.reconstruction, expected.flatten(1) if flat else expected)


def test_mlp_from_its_textbook_names():
    model = VAE.from_config({"architecture": "mlp", "input_dim": 784, "hidden_dim": 400, "latent_dim": 20})
    assert (model.image_shape, model.latent_shape) == ((1, 28, 28), (20,))
    widths = [layer.weight.shape for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    assert widths == [(400, 784), (40, 400), (400, 20), (784, 400)]


@pytest.mark.parametrize(
    ("config", "image_shape"),
    [
        ({}, (1, 28, 28)),
        ({"input_dim": 10, "hidden_dims": [8, 4]}, (1, 1, 10)),
        ({"input_dim": 9, "hidden_dim": 4, "beta": 4.0}, (1, 3, 3)),
        ({"architecture": "conv", "hidden_dims": [4]}, (1, 28, 28)),
        ({"architecture": "conv", "in_channels": 3, "hidden_dims": [4, 8]}, (3, 32, 32)),
        ({"architecture": "conv", "in_channels": 3, "image_size": 16, "hidden_dims": [4]}, (3, 16, 16)),
        ({"architecture": "conv", "image_size": [6, 9], "hidden_dims": [4]}, (1, 6, 9)),
    ],
)
def test_shapes_from_a_configuration(config, image_shape, binary):
    given = dict(config)
    model = VAE.from_config(config)
    assert config == given  # left as it was
    assert model.image_shape == image_shape
    assert model.beta == config.get("beta", 1.0)
    loss = model.compute_loss(binary(3, image_shape).float())
    assert loss.loss.isfinite()


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "transformer"},
        {"inputdim": 784},
        {"architecture": "conv", "input_dim": 784},
        {"input_dim": 0},
        {"input_dim": -4},
        {"latent_dim": 0},
        {"hidden_dim": 0},
        {"hidden_dim": 4, "hidden_dims": [4]},
        {"architecture": "conv", "image_size": 0},
        {"likelihood": "poisson"},
    ],
)
def test_bad_configurations_are_refused_with_one_line(config):
    with pytest.raises(VlaeError) as caught:
        VAE.from_config(config)
    assert len(str(caught.value).splitlines()) == 1


def test_no_hidden_layer_is_no_hidden_layer():
    model = VAE((1, 3, 3), latent_dim=2, architecture="mlp", widths=[])
    assert sum(isinstance(layer, torch.nn.Linear) for layer in model.modules()) == 2


@pytest.mark.parametrize("architecture", ["mlp", "conv", "resnet"])
def test_images_of_a_vae_sum_to_one(architecture, all_images):
    model, images = (
        VAE((1, 3, 3), latent_dim=2, architecture=architecture, widths=[4]).double().eval(),
        all_images((1, 3, 3)),
    )
    with torch.no_grad():
        mass = model.decode(torch.randn(1, 2).double().expand(512, 2)).log_prob(images).exp().sum()
    torch.testing.assert_close(mass.item(), 1.0, atol=1e-10, rtol=0)


GRADIENTS = [
    {"stacks": "two"},
    {"stacks": "two", "conditioning": "input", "flow_affine": False},
    {"stacks": "plain", "pointwise_blocks": 2, "tied": True},
    {"stacks": "plain", "conditioning": "input", "weight_norm": True},
    {"stacks": "two", "weight_norm": True, "flow_steps": 3},
    {"likelihood": "categorical", "likelihood_options": {"levels": 2}},
    {"likelihood": "gaussian"},
]


@pytest.mark.parametrize("options", GRADIENTS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_parameter_of_a_vlae_gets_a_gradient(tiny_vlae, binary, options, channels):
    model = tiny_vlae((channels, 5, 4), decoder_layers=3, **options).train()
    model.elbo(binary(8, (channels, 5, 4))).elbo.mean().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize(
    "options", [{}, {"flow_steps": 2}, {"likelihood": "gaussian"}, {"architecture": "conv", "widths": [4]}]
)
def test_every_parameter_of_a_vae_gets_a_gradient(tiny_vae, binary, options):
    model = tiny_vae(**options).train()
    model.elbo(binary(8)).elbo.mean().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("stacks", ["two", "plain"])
def test_initialise_changes_weight_normalised_models_only(tiny_vlae, binary, stacks):
    x = binary(16)
    for weight_norm in (False, True):
        model = tiny_vlae(stacks=stacks, weight_norm=weight_norm)
        before = [p.detach().clone() for p in model.parameters()]
        model.initialise(x)
        changed = any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert changed == weight_norm
        assert model.elbo(x).elbo.isfinite().all()


def test_a_few_steps_improve_the_bound(tiny_vlae, binary):
    model, x = tiny_vlae().train(), (torch.rand(32, 1, 5, 4) < 0.2).double()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    bounds = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = -model.elbo(x).elbo.mean()
        loss.backward()
        optimizer.step()
        bounds.append(loss.item())
    assert bounds[-1] < 0.9 * bounds[0]


def test_public_names():
    model = vlae.VLAE(image_shape=(1, 28, 28), latent_dim=32, decoder_layers=3, kernel_size=3, flow_steps=2)
    field = model.decoder.receptive_field
    assert field.mask.shape == (5, 9) and field.mask.dtype == torch.bool
    assert field.size == field.mask.sum() == 40
    assert model.networks()[0] is model.encoder


@pytest.mark.parametrize("output", [-1e5, 1e5])
def test_posterior_scales_are_bounded(tiny_vae, binary, output):
    model = tiny_vae()
    with torch.no_grad():
        model.encoder.layers[-1].bias[3:] = output
    q = model.encode(binary(2))
    assert (q.stddev > 0.999e-3).all() and (q.stddev < 1.001e3).all()
    assert model.elbo(binary(2)).rate.isfinite().all()


@pytest.mark.parametrize("kind", ["vae", "vlae"])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("order", ["same", "reversed"])
def test_options_of_the_flow_reach_the_prior(tiny_vae, tiny_vlae, kind, affine, order):
    make = tiny_vae if kind == "vae" else tiny_vlae
    prior = make(flow_steps=2, flow_affine=affine, flow_order=order, flow_hidden=(64,)).prior()  # no path off by chance
    jacobian = torch.autograd.functional.jacobian(prior.noise_of, torch.randn(3).double())
    assert (jacobian.det().item() == pytest.approx(1, abs=1e-12)) == (not affine)
    assert prior.scannable == (order == "same")
    assert (jacobian.triu(1) != 0).any() == (order == "reversed")


def test_a_posterior_without_a_variance_has_no_log_var():
    model = VAE((1, 4, 4), latent_dim=2, architecture="mlp", posterior="iaf")
    with pytest.raises(VlaeError, match="IAFPosterior"):
        model(torch.zeros(2, 1, 4, 4))
    assert model.compute_loss(torch.zeros(2, 1, 4, 4)).loss.isfinite()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_classes": 10, "classes": 3}, "num_classes and classes say the same"),
        ({"hidden_dim": 5, "widths": [3]}, "hidden_dim and widths say the same"),
        ({"hidden_dim": 5, "hidden_dims": [3]}, "hidden_dim and hidden_dims say the same"),
        ({"input_dim": 784, "image_size": 28}, "input_dim and image_size say the same"),
        ({"hidden_dims": 400}, "hidden_dims is a list"),
        ({"image_size": 28.0}, "image_size is a whole number"),
        ({"image_size": None}, "image_size is a whole number"),
        ({"image_size": [28]}, "image_size is a whole number"),
        ({"architecture": "conv", "input_dim": 784}, "input_dim"),
    ],
)
def test_a_textbooks_words_that_contradict_each_other(config, message):
    with pytest.raises(VlaeError, match=message):
        VAE.from_config(config)


def test_grey_images_are_told_of_their_likelihood():
    model = VAE.from_config({"architecture": "mlp", "input_dim": 64, "latent_dim": 2})
    with pytest.raises(VlaeError, match="likelihood='continuous_bernoulli'"):
        model(torch.rand(3, 1, 8, 8))
    grey = VAE.from_config({"input_dim": 64, "latent_dim": 2, "likelihood": "continuous_bernoulli"})
    assert grey.compute_loss(torch.rand(3, 1, 8, 8)).loss.isfinite()
