"""Latent maps, priors and posteriors by name, and the bound they make together."""

import copy
import math

import pytest
import torch
from torch.nn.utils.parametrize import is_parametrized

import vlae
from vlae import VlaeError
from vlae.models.latents import each, joined
from vlae.nn.spectralnorm import LAYERS

VECTOR_PRIORS = ["spline", "autoregressive_mixture", "mixture", "vamp", "delta"]
SMALL = {"spline": {"hidden": [8]}, "autoregressive_mixture": {"hidden": [8]}, "vamp": {"components": 3}}


def small(kind, **options):
    if kind == "vae":
        return vlae.VAE((1, 6, 5), architecture="resnet", widths=[4, 4], **{"latent_dim": 3, **options}).double()
    settings = {"latent_dim": 3, "encoder_widths": [4, 4], "encoder_hidden": 8, "channels": 4, "context_channels": 3}
    return vlae.VLAE((1, 6, 5), decoder_layers=1, **{**settings, "flow_steps": 0, **options}).double()


CASES = [
    *[{"prior": name, "prior_options": SMALL.get(name, {})} for name in VECTOR_PRIORS],
    {"flow_steps": 2, "flow_hidden": (8,)},
    {"posterior": "iaf", "posterior_options": {"hidden": [8]}},
    {"posterior": "iaf", "posterior_options": {"hidden": [8]}, "flow_steps": 1, "flow_hidden": (8,)},
    {"posterior_options": {"mean_norm": 0.5}},
    {"latent_maps": 2},
    {"latent_maps": 2, "flow_steps": 2, "prior_options": {"channels": 4}},
    {"latent_maps": 2, "prior": "mixture"},
    {"latent_maps": 2, "prior": "vamp", "prior_options": {"components": 3}},
]


@pytest.mark.parametrize("kind", ["vae", "vlae"])
@pytest.mark.parametrize("options", CASES, ids=str)
def test_every_choice_makes_a_whole_model(kind, options, binary, tmp_path):
    model, x = small(kind, **options), binary(4, (1, 6, 5))
    model.initialise(x)
    model.train().elbo(x).elbo.sum().backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    model.eval()
    bound = model.elbo(x, generator=torch.Generator().manual_seed(0))
    q, prior = model.encode(x), model.prior()
    torch.testing.assert_close(bound.rate_per_dimension.flatten(1).sum(1), bound.rate)
    exact = q.log_prob(bound.z) - prior.log_prob(bound.z)
    if options.get("posterior") == "iaf" or options.get("prior") not in (None, "delta") or "flow_steps" in options:
        torch.testing.assert_close(bound.rate, exact, atol=1e-7, rtol=1e-7)
    weights = torch.cat(list(model.log_weights(x, 5, torch.Generator().manual_seed(0), chunk=8)))
    z = q.sample((5,), torch.Generator().manual_seed(0))
    for k in range(5):
        one = model.decode(z[k]).log_prob(x) + prior.log_prob(z[k]) - q.log_prob(z[k])
        torch.testing.assert_close(weights[k], one.detach(), atol=1e-7, rtol=1e-7)
    assert model.sample(3).shape == (3, 1, 6, 5)
    assert model.reconstruct(x).shape == x.shape
    assert model.latent_size == math.prod(model.latent_shape) == bound.rate_per_dimension[0].numel()
    again = vlae.load(model.save_pretrained(tmp_path / "model"))
    assert torch.equal(again.elbo(x, generator=torch.Generator().manual_seed(0)).elbo, bound.elbo)


@pytest.mark.parametrize("options", [*CASES[:6], *CASES[8:10]], ids=str)
def test_the_rate_is_not_negative_on_average_and_both_estimates_agree(options, binary):
    model, x = small("vae", **options).eval(), binary(1, (1, 6, 5)).expand(4000, -1, -1, -1)
    with torch.no_grad():
        rates = {analytic: model.elbo(x, analytic=analytic).rate for analytic in (True, False)}
    error = rates[False].std() / math.sqrt(4000)
    assert rates[False].mean() > -3 * error
    assert abs(rates[True].mean() - rates[False].mean()) < 5 * error + 1e-9


def test_latent_maps_keep_their_place():
    """A map's number reaches the pixels around it and no others."""
    model = vlae.VAE((1, 16, 16), architecture="conv", widths=[4, 4], latent_maps=2).double().eval()
    assert model.latent_shape == (2, 4, 4)
    z = torch.zeros(2, 2, 4, 4).double()
    z[1, 0, 0, 0] = 1
    changed = model.decode(z).mean[0] != model.decode(z).mean[1]
    assert changed[0, :4, :4].any() and not changed[0, 12:, 12:].any()


@pytest.mark.parametrize(
    "options",
    [
        {"architecture": "mlp", "latent_maps": 2},
        {"latent_maps": -1},
        {"latent_maps": 1.5},
        {"latent_maps": 2, "prior": "spline"},
        {"latent_maps": 2, "posterior": "iaf"},
        {"prior": "map_flow"},
        {"prior": "nonesuch"},
        {"posterior": "nonesuch"},
        {"prior": "mixture", "prior_options": {"component": 3}},
        {"posterior_options": {"mean_norm": -1.0}},
        {"posterior": "iaf", "prior": "vamp"},
        {"prior": "vamp", "posterior_options": {"mean_norm": 0.5}},
        {"prior": "vamp", "prior_options": {"image_shape": (1, 4, 4)}},
        {"prior": "spline", "flow_steps": 7},
    ],
)
def test_what_does_not_fit_is_refused_with_one_line(options):
    with pytest.raises(VlaeError) as caught:
        vlae.VAE((1, 8, 8), **options).elbo(torch.zeros(2, 1, 8, 8))
    assert len(str(caught.value).splitlines()) == 1


def test_spectral_norm_bounds_every_layer_of_the_decoder():
    model = vlae.VAE((1, 8, 8), latent_dim=3, architecture="resnet", widths=[4, 4], spectral_norm=True)
    for parameter in model.decoder.parameters():
        torch.nn.init.normal_(parameter, std=3)
    for _ in range(60):  # the power iteration goes on at each step
        model.train().decode(torch.randn(2, 3))
    layers = [m for m in model.decoder.modules() if isinstance(m, LAYERS)]
    assert len(layers) >= 8
    for layer in layers:
        weight = layer.weight.transpose(0, 1) if isinstance(layer, torch.nn.ConvTranspose2d) else layer.weight
        assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)
    assert not any("parametrizations" in name for name in model.encoder.state_dict())


DECODERS = {
    "DenoisingAutoencoder": {"latent_dim": 3},
    "VQVAE": {"codes": 4, "code_dim": 3, "prior_layers": 1, "prior_channels": 4},
    "LadderVAE": {"latent_dims": [3, 2], "hidden": 6},
}


@pytest.mark.parametrize("name", DECODERS)
def test_spectral_norm_is_of_the_decoder_alone_and_off_unless_asked_for(name, tmp_path, binary):
    def build(**option):
        options = {"architecture": "resnet", "widths": [4, 4], **DECODERS[name], **option}
        return getattr(vlae, name)((1, 8, 8), **options)

    plain, model, x = build(), build(spectral_norm=True), binary(4, (1, 8, 8)).float()
    layers = [m for m in model.decoder.modules() if isinstance(m, LAYERS)]
    assert layers and all(is_parametrized(layer, "weight") for layer in layers)
    assert not any(is_parametrized(m) for m in plain.modules())
    ours, others = ({key for key in m.state_dict() if not key.startswith("decoder.")} for m in (model, plain))
    assert ours == others
    assert plain.state_dict().keys() == build(spectral_norm=False).state_dict().keys()
    assert not any("parametrizations" in key for key in [*ours, *plain.state_dict()])
    for parameter in model.decoder.parameters():
        torch.nn.init.normal_(parameter, std=3)
    for _ in range(60):
        model.train().elbo(x)
    for layer in layers:
        weight = layer.weight.transpose(0, 1) if isinstance(layer, torch.nn.ConvTranspose2d) else layer.weight
        assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)
    again = vlae.load(model.eval().save_pretrained(tmp_path / "model"))
    torch.testing.assert_close(again.reconstruct(x), model.reconstruct(x))


def test_tuples_of_latents_are_handled_as_tensors_are():
    z = (torch.arange(3), torch.arange(6).view(3, 2))
    assert torch.equal(each(lambda t: t[1:], z)[1], z[1][1:])
    assert torch.equal(joined([z, z])[1], torch.cat([z[1], z[1]]))
    assert torch.equal(joined([z[0], z[0]]), torch.cat([z[0], z[0]]))


@pytest.mark.parametrize(
    "options",
    [{}, {"stacks": "plain"}, {"stacks": "attention"}, {"stacks": "row_lstm"}, {"latent_maps": 2, "flow_steps": 1}],
)
def test_scans_stay_out_of_mixed_precision(options):
    """Under autocast, as in training, samples are drawn too (InfoVAE, VAE-GAN), and they are those without it."""
    model = small("vlae", **options).float().eval()
    plain = model.prior().sample((3,), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.prior().sample((3,), generator=torch.Generator().manual_seed(0)), plain)
        assert model.sample(3).shape == (3, 1, 6, 5)
        assert model.decode(plain).mode.dtype == torch.float32


@pytest.mark.parametrize("option", ["layers", "channels", "image_height", "parameters", "kernel", "stacks"])
@pytest.mark.parametrize("kind", [vlae.VLAE, vlae.PixelCNN])
def test_trunk_options_are_the_trunks_own(kind, option):
    with pytest.raises(VlaeError, match=f"'{option}': its options are memory, heads, hidden"):
        kind((1, 8, 8), trunk_options={option: 5})
    with pytest.raises(VlaeError, match="attention"):
        kind((1, 8, 8), trunk_options={"heads": 2})


def test_the_steps_of_a_flow_may_stand_among_the_priors_options():
    model = vlae.VAE((1, 8, 8), latent_dim=3, prior_options={"steps": 2, "hidden": [8]})
    assert len(model.prior_module.steps) == 2
    none = vlae.VAE((1, 8, 8), latent_dim=3, flow_steps=2, prior_options={"steps": 0})
    assert type(none.prior()).__name__ == "StandardNormal"


@pytest.mark.parametrize(("kind", "usual", "other"), [("vae", 0, 2), ("vlae", 2, 4)])
@pytest.mark.parametrize("prior", ["normal", *VECTOR_PRIORS])
def test_steps_that_no_flow_takes_are_refused_by_name(kind, usual, other, prior):
    options = {"prior": prior, "prior_options": SMALL.get(prior, {})}
    with pytest.raises(VlaeError, match=rf"flow_steps={other} are .*'{prior}': set flow_steps to 0, .*prior_options"):
        small(kind, **options, flow_steps=other)
    for steps in (0, usual):
        small(kind, **options, flow_steps=steps)

    class Own(vlae.VAE if kind == "vae" else vlae.VLAE):
        def __init__(self):
            super().__init__((1, 6, 5), **options)

    Own()


@pytest.mark.parametrize("widths", [[8], [4, 4]])
def test_pseudo_inputs_leave_the_running_averages_to_the_images(widths):
    options = {"latent_dim": 3, "architecture": "conv", "widths": widths}
    torch.manual_seed(0)
    model = vlae.VAE((1, 8, 8), prior="vamp", prior_options={"components": 5}, **options).train()
    images, before = torch.rand(6, 1, 8, 8).round(), copy.deepcopy(model.encoder.state_dict())
    prior = model.prior()
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.state_dict().items())
    pseudo = copy.deepcopy(model).encode(model.prior_module.pseudo_inputs)
    torch.testing.assert_close(prior.means.t(), pseudo.mean)  # in training normalised by their own
    alone = copy.deepcopy(model)
    alone.encode(images)
    model.elbo(images)
    for (name, value), expected in zip(model.encoder.named_buffers(), alone.encoder.buffers(), strict=True):
        assert torch.equal(value, expected), name
    assert any((value != before[name]).any() for name, value in model.encoder.state_dict().items())
    pseudo = model.eval().encode(model.prior_module.pseudo_inputs)
    torch.testing.assert_close(model.prior().means.t(), pseudo.mean)
