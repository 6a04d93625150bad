import lightning.pytorch as pl
import pytest
import torch

from vlae import VlaeError
from vlae.models import PixelCNN
from vlae.objectives import ELBO, LaggingInference
from vlae.training.task import OptimizerSettings, Task


def names(model, parameters):
    wanted = set(map(id, parameters))
    return {name for name, p in model.named_parameters() if id(p) in wanted}


def test_an_encoder_that_is_frozen_can_not_lag(tiny_vae):
    with pytest.raises(VlaeError, match="inference network is frozen"):
        Task(tiny_vae(flow_steps=1), LaggingInference(), OptimizerSettings(frozen=["encoder"]))


def test_schedule(tiny_vae):
    model = tiny_vae(flow_steps=1)
    inference = names(model, model.inference_parameters())
    generator = {name for name, _ in model.named_parameters()} - inference
    assert {n.split(".")[0] for n in inference} == {"encoder"}
    assert {n.split(".")[0] for n in generator} == {"decoder", "prior_module"}
    objective = LaggingInference(inner_steps=3, until=0.5)
    kept = [names(model, objective.frozen(model, step, 0.49)) for step in range(9)]
    assert kept == [generator] * 3 + [inference] + [generator] * 3 + [inference] + [generator]
    assert objective.frozen(model, 0, 0.5) == [] == objective.frozen(model, 3, 1.0)


class Moves(pl.Callback):
    """Which parts moved in each training step."""

    def __init__(self, model):
        self.model, self.steps = model, []
        self.before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def on_train_batch_end(self, *args):
        now = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.steps.append({name.split(".")[0] for name in now if not torch.equal(now[name], self.before[name])})
        self.before = now


def test_in_real_steps_only_the_right_parameters_move(tiny_vae, fit):
    model = tiny_vae(flow_steps=1).float()
    moves = Moves(model)
    fit(model, LaggingInference(inner_steps=2, until=0.75), callbacks=[moves], levels=2)
    generator, both = {"decoder", "prior_module"}, {"encoder", "decoder", "prior_module"}
    # Eight steps, the first six of them aggressive.
    assert moves.steps == [{"encoder"}, {"encoder"}, generator] * 2 + [both, both]


def test_the_loss_is_the_elbos(linear_gaussian, flat_images):
    model, x = linear_gaussian(), flat_images(4)
    losses = []
    for objective in (ELBO(0.5, 3.0, "dimension"), LaggingInference(beta=0.5, free_nats=3.0, per="dimension")):
        torch.manual_seed(0)
        losses.append(objective.compute(model, x, 0.3)[0])
    assert torch.equal(*losses)


def average_gap(objective, model, x, updates):
    """The gap between q(z|x) and p(z|x), averaged over so many updates of the generator, by Adam as in training."""
    optimizer, step, gaps = torch.optim.Adam(model.parameters(), lr=0.02), 0, []
    while len(gaps) < updates:
        optimizer.zero_grad()
        objective.compute(model, x, 0.0)[0].backward()
        frozen = objective.frozen(model, step, 0.0)
        for parameter in frozen:
            parameter.grad = None
        if id(model.weight) not in set(map(id, frozen)):
            gaps.append(model.gap(x).item())
        optimizer.step()
        step += 1
    return sum(gaps) / len(gaps)


def test_the_encoder_does_not_lag_behind(linear_gaussian, flat_images):
    """With a decoder that starts strong and an encoder that starts at nothing."""
    gaps = {}
    for name, objective in {"plain": ELBO(), "lagging": LaggingInference(inner_steps=20, until=1.0)}.items():
        torch.manual_seed(0)
        model = linear_gaussian()
        with torch.no_grad():
            for parameter in model.encoder.parameters():
                parameter.zero_()
        gaps[name] = average_gap(objective, model, flat_images(256), updates=30)
    assert gaps["lagging"] < 0.35 * gaps["plain"]


@pytest.mark.parametrize("options", [{"inner_steps": 0}, {"until": 0.0}, {"until": 1.5}, {"per": "pixel"}])
def test_bad_options_are_refused(options):
    with pytest.raises(VlaeError):
        LaggingInference(**options)


def test_a_model_without_an_encoder_is_refused():
    with pytest.raises(VlaeError, match="no inference network"):
        LaggingInference().prepare(PixelCNN((1, 4, 4), channels=4, decoder_layers=1))
