"""The optimiser's schedule, the guard against bad steps, reports and warnings."""

import csv
import math
from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch

from vlae.data import Batches, ImageDataset
from vlae.errors import VlaeError
from vlae.evaluation import BITS
from vlae.evaluation.collapse import levels_warning
from vlae.models import VAE, DenoisingAutoencoder, LadderVAE
from vlae.objectives import ELBO
from vlae.training.callbacks import AveragedWeights, EpochReport, collapse_warning, write_row
from vlae.training.logs import quiet
from vlae.training.task import BadStepGuard, OptimizerSettings, Task, step_seed


def small_task(model=None, **options) -> Task:
    torch.manual_seed(0)
    model = model or VAE((1, 4, 4), latent_dim=2, architecture="mlp", widths=[8])
    return Task(model, ELBO(), OptimizerSettings("adam", lr=1e-2, schedule="constant"), **options)


def fit(task: Task, epochs=1, callbacks=(), images=64):
    torch.manual_seed(0)
    data = ImageDataset.from_any((torch.rand(images, 1, 4, 4) < 0.5).float())
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
    )
    with quiet():
        trainer.fit(task, Batches(data, 8, shuffle=True, drop_last=True), Batches(data, 8))
    return trainer


def test_learning_rate_schedule():
    settings = OptimizerSettings(lr=1.0, warmup_steps=10, schedule="cosine", final_lr=0.1)
    assert settings.factor(0, 110) == pytest.approx(0.1)
    assert settings.factor(9, 110) == pytest.approx(1.0)
    assert settings.factor(60, 110) == pytest.approx(0.1 + 0.9 * 0.5)
    assert settings.factor(110, 110) == pytest.approx(0.1)
    assert OptimizerSettings(schedule="constant").factor(1000, 10) == 1.0


def test_frozen_parts_stay_and_the_others_learn():
    torch.manual_seed(0)
    model = VAE((1, 4, 4), latent_dim=2, architecture="mlp", widths=[8], flow_steps=1, flow_hidden=[4])
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    task = Task(model, ELBO(), OptimizerSettings("adamw", lr=1e-2, weight_decay=0.1, frozen=["encoder", "decoder"]))
    fit(task)
    for name, weights in model.state_dict().items():
        if name.startswith(("encoder.", "decoder.")):
            assert torch.equal(weights, before[name]), name
    moved = [name for name, weights in model.named_parameters() if not torch.equal(weights, before[name])]
    assert moved == [name for name, _ in model.named_parameters() if name.startswith("prior_module.")]


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (["encoder", "decodr"], "encoder, decoder; got decodr"),
        (["encoder", "decoder"], "all parts"),
        (["prior_module"], "got prior_module"),  # a standard normal has no parameters
        ("encoder", r"a list of names, such as \[encoder\]"),
    ],
)
def test_frozen_parts_are_of_the_model_and_not_all_of_it(frozen, message):
    model = VAE((1, 4, 4), latent_dim=2, architecture="mlp", widths=[8])
    with pytest.raises(VlaeError, match=message):
        Task(model, ELBO(), OptimizerSettings(frozen=frozen))


def test_what_one_training_froze_the_next_may_train():
    model = VAE((1, 4, 4), latent_dim=2, architecture="mlp", widths=[8], flow_steps=1)
    fit(Task(model, ELBO(), OptimizerSettings(lr=1e-2, frozen=["encoder", "decoder"])))
    before = [weights.detach().clone() for weights in model.encoder.parameters()]
    fit(Task(model, ELBO(), OptimizerSettings(lr=1e-2)))
    assert before and not any(map(torch.equal, before, model.encoder.parameters()))


@pytest.mark.parametrize("options", [{"name": "sgdx"}, {"schedule": "step"}, {"lr": 0.0}, {"lr": math.nan}])
def test_bad_optimizer_settings(options):
    with pytest.raises(VlaeError, match="optimizer"):
        OptimizerSettings(**options)


class PoisonedVAE(VAE):
    """Its bound is NaN on chosen calls in training mode."""

    bad = staticmethod(lambda call: False)
    calls = 0

    def elbo(self, x, **options):
        bound = super().elbo(x, **options)
        if self.training:
            self.calls += 1
            if self.bad(self.calls):
                return replace(bound, distortion=bound.distortion * float("nan"))
        return bound


def poisoned(bad) -> PoisonedVAE:
    torch.manual_seed(0)
    model = PoisonedVAE((1, 4, 4), latent_dim=2, architecture="mlp", widths=[8])
    model.bad = bad
    return model


def test_bad_steps_are_skipped_and_counted_and_leave_the_weights_alone():
    task = small_task(poisoned(lambda call: call % 2 == 0))
    trainer = fit(task)
    assert task.guard.total == 4
    assert trainer.global_step == 4  # eight batches, every second one skipped
    assert all(torch.isfinite(p).all() for p in task.model.parameters())
    assert trainer.callback_metrics["train/bad_steps"] == 4
    assert math.isfinite(trainer.callback_metrics["train/elbo"])


def test_too_many_bad_steps_stop_with_an_explanation():
    with pytest.raises(VlaeError, match=r"3 steps in a row.*optimizer\.lr"):
        fit(small_task(poisoned(lambda call: call > 2), max_bad_steps=3))


def test_when_no_step_could_be_taken_the_end_says_so():
    """Fewer bad steps than would have stopped the training, in two epochs."""
    with pytest.raises(VlaeError, match=r"at step 0: .*NaN or infinite in 16 steps in a row.*optimizer\.lr"):
        fit(small_task(poisoned(lambda call: True)), epochs=2)
    fit(small_task(poisoned(lambda call: call <= 8)), epochs=2)


@pytest.mark.parametrize("noise", [math.inf, math.nan, -1.0])
def test_noise_with_which_every_step_would_be_bad_is_refused(noise):
    with pytest.raises(VlaeError, match=r"noise of the corruption 'gaussian' is .* finite"):
        DenoisingAutoencoder((1, 4, 4), latent_dim=2, architecture="mlp", corruption="gaussian", noise=noise)


def test_guard_counts_in_a_row():
    guard = BadStepGuard(2)
    guard.bad(1, 0.1)
    guard.good()
    guard.bad(2, 0.1)
    assert guard.total == 2
    with pytest.raises(VlaeError):
        guard.bad(3, 0.1)


def test_gradient_is_clipped():
    task = small_task(gradient_clip=1e-8)
    before = [p.detach().clone() for p in task.model.parameters()]
    # Plain gradient descent, whose step is proportional to the gradient: Adam's would not be.
    task.settings.make = lambda parameters: torch.optim.SGD(parameters, lr=1.0)
    fit(task)
    moved = math.sqrt(
        sum(float(((a - b.detach()) ** 2).sum()) for a, b in zip(before, task.model.parameters(), strict=True))
    )
    assert 0 < moved <= 8 * 1e-8 * 1.01


def test_average_follows_the_formula():
    seen = []

    class Record(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            seen.append(next(pl_module.model.parameters()).detach().clone())

    task, average = small_task(), AveragedWeights(0.5)
    start = next(task.model.parameters()).detach().clone()
    fit(task, callbacks=[Record(), average], images=24)
    expected = start
    for n, current in enumerate(seen):
        # The first update copies; later ones decay by min(0.5, (1 + n) / (10 + n)).
        decay = 0.0 if n == 0 else min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * current
    torch.testing.assert_close(next(task.model.parameters()).detach(), expected)  # training ends with the average


def test_plateau_halves_the_rate_and_keeps_it_halved():
    """A model that can't improve (a learning rate of nearly 0) must see its rate fall, epoch after epoch."""
    rates = []

    class Record(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    task = small_task()
    task.settings = OptimizerSettings("adam", lr=1e-6, schedule="plateau", patience=1, warmup_steps=3)
    fit(task, epochs=5, callbacks=[Record()])
    assert rates[0] == pytest.approx(1e-6)
    assert rates[-1] <= 1e-6 / 4


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_plateau_waits_for_so_many_epochs_without_an_improvement(patience):
    """The first epoch sets the mark; `patience` epochs later, none of them better, the rate is halved."""
    rates = []

    class Record(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    task = small_task()
    task.settings = OptimizerSettings("adam", lr=1e-6, schedule="plateau", patience=patience)
    fit(task, epochs=1 + patience + 1, callbacks=[Record()])
    assert rates == [1e-6] * (1 + patience) + [5e-7]


def test_step_seeds_are_distinct():
    seeds = {step_seed(s, e, b) for s in range(3) for e in range(20) for b in range(50)}
    assert len(seeds) == 3 * 20 * 50


def test_collapse_warning_says_what_to_change():
    task = small_task()
    assert collapse_warning(1.0, task) is None
    message = collapse_warning(0.1, task)
    assert "0.14 bits" in message
    assert "free bits" in message
    assert "annealing" in message


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (lambda: LadderVAE((1, 4, 4), latent_dims=(3, 2), widths=[8], hidden=4), ["level_1", "level_2"]),
        (
            lambda: VAE((1, 4, 4), architecture="conv", widths=[4], latent_maps=3),
            ["channel_1", "channel_2", "channel_3"],
        ),
        (lambda: None, []),
    ],
)
def test_the_rate_of_each_group_is_reported(model, names, tmp_path, caplog):
    with caplog.at_level("INFO", logger="vlae.training"):
        fit(small_task(model()), callbacks=[EpochReport(tmp_path / "metrics.csv")])
    with (tmp_path / "metrics.csv").open() as file:
        row = {key: float(value) for key, value in next(csv.DictReader(file)).items()}
    found = {key.removeprefix("validation/bits_"): row[key] for key in row if key.startswith("validation/bits_")}
    assert list(found) == names
    if names:
        assert sum(found.values()) / BITS == pytest.approx(row["validation/rate"], rel=1e-5)
        kind = names[0].partition("_")[0]
        assert f"bits per {kind} {' '.join(f'{found[name]:.1f}' for name in names)} |" in caplog.text


def test_a_level_that_carries_nothing_is_warned_of():
    task = small_task(LadderVAE((1, 4, 4), latent_dims=(3, 2, 2), widths=[8], hidden=4))
    assert levels_warning([9.0, 0.1, 0.2], task.model, task.objective) is None
    assert levels_warning([], task.model, task.objective) is None
    message = levels_warning([9.0, 0.04, 0.0], task.model, task.objective)
    assert message.startswith("z_2 (0.04 bits) and z_3 (0.00 bits) carry nothing: ") and "annealing beta" in message
    assert "z_2 (0.04 bits) carries nothing" in levels_warning([9.0, 0.04], task.model, task.objective)


def test_metrics_file_replaces_rows_of_a_resumed_epoch(tmp_path):
    path = tmp_path / "metrics.csv"
    for epoch, value in [(1, 10.0), (2, 20.0), (3, 30.0), (2, 21.0)]:
        write_row(path, {"epoch": epoch, "x": value})
    assert path.read_text().split() == ["epoch,x", "1,10.0", "2,21.0"]


@pytest.mark.parametrize(
    ("likelihood", "levels", "advice"),
    [
        ("bernoulli", 17, "--data.binarize dynamic"),
        ("categorical", 17, "--model.likelihood_options.levels 17"),
        ("categorical", 2, "bernoulli"),
    ],
)
def test_likelihood_must_fit_the_data(likelihood, levels, advice):
    with pytest.raises(VlaeError, match=advice):
        VAE((1, 4, 4), architecture="mlp", likelihood=likelihood).check_levels(levels, "digits")
    VAE((1, 4, 4), architecture="mlp", likelihood="gaussian").check_levels(levels, "digits")
