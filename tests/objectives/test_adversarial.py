"""The adversarial term: what moves, by which loss, and that its discriminator and optimiser travel with checkpoints."""

import copy
import io

import pytest
import torch
from torch.nn import functional as F

from vlae import VlaeError
from vlae.objectives import Adversarial, WithTerms
from vlae.objectives.adversarial import Discriminator


@pytest.fixture
def prepared():
    def make(model, **options):
        torch.manual_seed(2)
        objective = WithTerms([Adversarial(**{"channels": 4, "stages": 2, "lr": 0.01, **options})])
        objective.prepare(model)
        return objective, objective.terms[0]

    return make


def computed(objective, model, x):
    torch.manual_seed(6)
    return objective.compute(model, x, 0.0)


def made_images(model, x):
    """What the discriminator was shown: the mean images of the bound's z and of the prior's samples."""
    torch.manual_seed(6)
    bound = model.elbo(x)
    z = model.prior().sample((len(x),))
    return model.decode(bound.z.detach()).mean, model.decode(z).mean


@pytest.mark.parametrize("shape", [(1, 5, 4), (3, 7, 1), (2, 1, 1)])
def test_discriminator_takes_any_size(shape):
    assert Discriminator(shape, channels=2, stages=3)(torch.rand(4, *shape)).shape == (4,)


def test_the_term_is_the_non_saturating_loss(tiny_vae, binary, prepared):
    model, x = tiny_vae(), binary(6)
    objective, term = prepared(model, weight=0.3)
    loss, bound = computed(objective, model, x)
    value = sum(-F.logsigmoid(term.discriminator(images)).mean() for images in made_images(model, x)) / 2
    torch.testing.assert_close(loss, -bound.elbo.mean() + 0.3 * value)


def test_only_the_decoder_gets_a_gradient(tiny_vae, binary, prepared, gradients_of):
    model, x = tiny_vae(flow_steps=1), binary(6)
    _, term = prepared(model)
    value = term(model, x, model.elbo(x), None)
    gradients = gradients_of(value, model)
    assert all(g.any() for name, g in gradients.items() if name.startswith("decoder"))
    assert not any(g.any() for name, g in gradients.items() if not name.startswith("decoder"))
    value.backward()
    assert all(p.grad is None for p in term.discriminator.parameters())


def test_its_gradient_lets_images_pass_for_real(tiny_vae, binary, prepared):
    model, x = tiny_vae(), binary(6)
    _, term = prepared(model)
    before = term(model, x, model.elbo(x), None)
    logits = [term.discriminator(images).mean().item() for images in made_images(model, x)]
    before.backward()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter -= 0.05 * parameter.grad
    after = [term.discriminator(images).mean().item() for images in made_images(model, x)]
    assert after[0] > logits[0] and after[1] > logits[1]


def test_the_discriminators_step_is_adams_on_its_loss(tiny_vae, binary, prepared):
    model, x = tiny_vae(), binary(6)
    objective, term = prepared(model)
    expected = copy.deepcopy(term.discriminator)
    optimizer = torch.optim.Adam(expected.parameters(), 0.01, (0.5, 0.999))
    for _ in range(3):
        _, bound = computed(objective, model, x)
        fakes = torch.cat(made_images(model, x)).detach()
        loss = -F.logsigmoid(expected(x)).mean() - F.logsigmoid(-expected(fakes)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        before = [p.detach().clone() for p in model.parameters()]
        objective.update(bound)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    for a, b in zip(expected.parameters(), term.discriminator.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_it_learns_to_tell_them_apart(tiny_vae, binary, prepared):
    model, x = tiny_vae(), binary(32)
    objective, term = prepared(model)
    for _ in range(60):
        objective.update(objective.compute(model, x, 0.0)[1])
    assert term.discriminator(x).mean() > 1 > -1 > term.discriminator(torch.cat(made_images(model, x))).mean()


def test_without_a_step_of_the_model_it_rests(tiny_vae, binary, prepared):
    model, x = tiny_vae(), binary(6)
    objective, term = prepared(model)
    before = copy.deepcopy(term.discriminator.state_dict())
    _, bound = objective.compute(model, x, 0.0)
    assert all(torch.equal(before[k], v) for k, v in term.discriminator.state_dict().items())
    objective.update(bound)
    after = copy.deepcopy(term.discriminator.state_dict())
    assert not torch.equal(before["layers.0.weight"], after["layers.0.weight"])
    objective.update(bound)  # there is nothing new to see
    assert all(torch.equal(after[k], v) for k, v in term.discriminator.state_dict().items())


def test_images_that_are_not_finite_leave_it_alone(tiny_vae, binary, prepared):
    model, x = tiny_vae(), binary(6)
    objective, term = prepared(model)
    _, bound = objective.compute(model, x, 0.0)
    term._seen = (x, torch.full_like(x, float("nan")))
    objective.update(bound)
    assert all(p.isfinite().all() for p in term.discriminator.parameters())


def test_state_survives_a_checkpoint_that_is_read_without_unpickling(tiny_vae, binary, prepared):
    model, x = tiny_vae(), binary(6)
    objective, term = prepared(model)
    for _ in range(3):
        objective.update(computed(objective, model, x)[1])
    file = io.BytesIO()
    torch.save({"state_dict": objective.state_dict()}, file)
    file.seek(0)
    again, other = prepared(model)
    again.load_state_dict(torch.load(file, weights_only=True)["state_dict"])
    for _ in range(2):
        for each in (objective, again):
            each.update(computed(each, model, x)[1])
    for a, b in zip(term.discriminator.parameters(), other.discriminator.parameters(), strict=True):
        assert torch.equal(a, b)
    assert other.optimizer.state_dict()["state"][0]["step"] == 5


def test_state_that_was_loaded_follows_the_weights_to_another_dtype(tiny_vae, binary, prepared):
    """A checkpoint's state is taken back before the objective goes to where it trains: here to float64."""
    single, x = tiny_vae().float(), binary(6)
    before, _ = prepared(single)
    before.update(computed(before, single, x.float())[1])
    after, term = prepared(copy.deepcopy(single))
    after.load_state_dict(before.state_dict())
    after.double()
    after.update(computed(after, single.double(), x)[1])
    states = term.optimizer.state_dict()["state"].values()
    assert all(state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.float64 for state in states)
    assert all(state["step"] == 2 for state in states)


def test_loaded_state_is_a_copy(tiny_vae, binary, prepared):
    model, x = tiny_vae(), binary(6)
    (one, term), (two, _) = prepared(model), prepared(model)
    one.update(computed(one, model, x)[1])
    two.load_state_dict(one.state_dict())
    kept = term.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    two.update(computed(two, model, x)[1])
    assert torch.equal(term.optimizer.state_dict()["state"][0]["exp_avg"], kept)


def test_mixed_precision(tiny_vae, binary, prepared):
    """Weights that were cast without gradients must not be met again with them."""
    model, x = tiny_vae(flow_steps=1).float(), binary(16).float()
    objective, term = prepared(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss, bound = computed(objective, model, x)
        loss.backward()
        before = [p.detach().clone() for p in term.discriminator.parameters()]
        objective.update(bound)
    assert loss.dtype == torch.float32 and all(p.grad is not None for p in model.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, term.discriminator.parameters(), strict=True))


def test_bad_options_are_refused(tiny_vae, binary):
    for options in ({"lr": 0.0}, {"betas": (0.5, 1.0)}, {"channels": 0}, {"stages": 0}, {"weight": -1.0}):
        with pytest.raises(VlaeError):
            Adversarial(**options)
    with pytest.raises(VlaeError, match="call prepare"):
        WithTerms([Adversarial()]).compute(tiny_vae(), binary(2), 0.0)
