"""What `test_devices.py` runs twice: in one process, and under torchrun in two; the numbers must be the same.

Under torchrun: `torchrun --nproc-per-node 2 together.py DIRECTORY` leaves `steps.pt`, `evaluation.pt` and runs there,
and ends with a training in which the second process fails.
"""

import logging
import os
import sys
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

import vlae
from vlae import data, models, objectives, processes
from vlae.errors import VlaeError
from vlae.evaluation import evaluate
from vlae.training import run
from vlae.training.settings import DataSettings, TrainerSettings
from vlae.training.task import OptimizerSettings

IMAGES = 7  # of a whole batch: three for one process, four for the other


def small_vlae(**options):
    sizes = {"latent_dim": 3, "encoder_widths": [4], "encoder_hidden": 8, "channels": 4, "context_channels": 3}
    return models.VLAE((1, 6, 5), decoder_layers=1, flow_hidden=(8,), **sizes, **options)


def small_vae(**options):
    return models.VAE((1, 6, 5), latent_dim=3, architecture="mlp", widths=[6], **options)


def features():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(nn.Flatten(), nn.Linear(30, 4), nn.Tanh()).double()


def terms():
    return objectives.WithTerms(
        [
            objectives.Contrastive(0.7, noise=0.1),
            objectives.LatentNoise(0.5, sigma=0.3),
            objectives.Perceptual(2.0, network=features()),
            objectives.Adversarial(3.0, channels=4, stages=2, lr=0.01),
        ],
        objectives.ELBO(beta=0.5),
    )


# Models and objectives whose loss is not simply a mean over images, and some whose is. Floors and targets lie between
# the two processes' means in the first step.
CASES = {
    "plain": (small_vlae, objectives.ELBO),
    "dropout": (lambda: small_vlae(dropout=0.4), objectives.ELBO),
    "dropout of pseudo-inputs": (
        lambda: small_vlae(dropout=0.4, prior="vamp", prior_options={"components": 4}),
        objectives.ELBO,
    ),
    "dropout of several samples": (lambda: small_vlae(dropout=0.4), lambda: objectives.IWAE(3)),
    "free bits of an image": (small_vlae, lambda: objectives.ELBO(free_nats=0.9)),
    "free bits of a dimension": (small_vlae, lambda: objectives.ELBO(beta=0.5, free_nats=0.3, per="dimension")),
    "free bits of a channel": (
        lambda: models.VAE((1, 6, 5), architecture="resnet", widths=[4], latent_maps=2),
        lambda: objectives.ELBO(free_nats=3.0, per="channel"),
    ),
    "soft free bits": (small_vlae, lambda: objectives.SoftFreeBits(2.0, interval=1)),
    "capacity": (small_vae, lambda: objectives.Capacity(0.5)),
    "geco": (small_vae, lambda: objectives.GECO(target_nats=20.0, speed=0.5)),
    "iwae": (small_vae, lambda: objectives.IWAE(3)),
    "dreg": (small_vae, lambda: objectives.IWAE(3, estimator="dreg")),
    "info": (lambda: small_vae(prior="vamp"), lambda: objectives.InfoVAE(0.3, 10.0)),
    "terms": (lambda: small_vae(likelihood="gaussian", likelihood_options={"sigma": "optimal"}), terms),
    "codes": (
        lambda: models.VQVAE((1, 6, 5), codes=5, code_dim=3, architecture="resnet", revival=0.5),
        objectives.ELBO,
    ),
    "denoising": (
        lambda: models.DenoisingAutoencoder((1, 6, 5), latent_dim=3, architecture="mlp", widths=[6]),
        objectives.ELBO,
    ),
}


def steps(name: str) -> dict[str, torch.Tensor]:
    """Two steps of plain gradient descent: losses, the first gradient, all weights and buffers afterwards."""
    torch.manual_seed(0)
    make_model, make_objective = CASES[name]
    model, objective = make_model().double().train(), make_objective().double()
    objective.prepare(model)
    images = torch.randint(0, 2, (2, IMAGES, *model.image_shape), dtype=torch.float64)
    mine = processes.rows(IMAGES, processes.index(), processes.count())
    found = {}
    for step, batch in enumerate(images):
        torch.manual_seed(step)
        with processes.batch_of(IMAGES):
            loss, bound = objective.compute(model, batch[mine], 0.5)
            learned = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
            gradients = torch.autograd.grad(loss, list(learned.values()), allow_unused=True)
            for (key, parameter), own in zip(learned.items(), gradients, strict=True):
                if own is not None:
                    gradient = processes.summed(own)
                    found[f"gradient of {key} in step {step}"] = gradient
                    parameter.data -= 0.05 * gradient
            objective.update(bound)
        found[f"loss of step {step}"] = loss.detach()
        found[f"rate of step {step}"] = bound.rate.detach()
    state = {**model.state_dict(), **{f"objective {k}": v for k, v in objective.state_dict().items()}}
    return {**found, **{k: v.clone() for k, v in state.items() if isinstance(v, torch.Tensor)}}


class StopAfter(Callback):
    """Ends training after some epochs, as a kill between them would."""

    def __init__(self, epochs: int):
        self.epochs = epochs

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epochs:
            raise KeyboardInterrupt


def train(directory: Path, stop_after: int | None = None, resume: bool = False) -> None:
    """Two epochs in float64 with everything that could differ: weight norm, dynamic binarisation, free bits, EMA."""
    torch.manual_seed(1)
    options = {"latent_dim": 4, "encoder_widths": (4,), "encoder_hidden": 16, "channels": 4, "flow_hidden": (8,)}
    # Wider kernels, since a weight-normalised layer with one weight has a direction whose gradient is rounding alone,
    # which Adam's division by it makes visible.
    options["kernel_size"] = 5
    engine = run._engine
    if stop_after:

        def stopped(*arguments):
            made = engine(*arguments)
            made.callbacks.append(StopAfter(stop_after))
            return made

        run._engine = stopped
    try:
        run.train(
            models.VLAE((1, 8, 8), decoder_layers=1, weight_norm=True, **options),
            objectives.ELBO(free_nats=0.3, per="dimension"),
            OptimizerSettings("adamax", lr=0.01, warmup_steps=3, schedule="plateau", patience=1),
            DataSettings("digits", binarize="dynamic", batch_size=199, limit=600, validation_limit=100),
            TrainerSettings(max_epochs=2, precision="64-true", accelerator="cpu", progress_bar=False),
            directory,
            config="",
            seed=3,
            resume=resume,
        )
    except KeyboardInterrupt:
        if not stop_after:
            raise
    finally:
        run._engine = engine


def evaluation() -> dict:
    """All bounds of a model in float32, whose last bits would tell of other batches."""
    torch.manual_seed(2)
    model = vlae.VLAE((1, 8, 8), latent_dim=3, encoder_widths=[4], encoder_hidden=8, channels=4, decoder_layers=1)
    test = data.load("digits", "test", binarize="static").subset(50)

    def batches():
        return ((batch.images, batch.indices.tolist()) for batch in data.Batches(test, 16))

    found = evaluate(model, batches, nll_samples=[2, 5], nll_images=37, seed=4)
    return {**found.to_dict(), "negative_elbos": found.negative_elbos.tolist()}


def command(directory: Path) -> int:
    """`vlae eval` of the model in a directory, the likelihoods kept in a file there; the exit code."""
    from vlae import cli

    if processes.first():
        torch.manual_seed(2)
        vlae.VAE((1, 8, 8), latent_dim=3, architecture="mlp", widths=[6]).save_pretrained(directory / "model")
    processes.wait()
    chosen = ["--data.name", "digits", "--data.binarize", "static", "--only", "bound", "nll", "--double"]
    chosen += ["--nll_samples", "2", "5", "--nll_images", "200", "--keep", str(directory / "nll.csv")]
    return cli.main(["eval", str(directory / "model"), *chosen, "--output", str(directory / "reports")])


def failing(directory: Path) -> int:
    """A training in which the second process cannot go on; the exit code of the command."""
    from vlae import cli

    if processes.index() == 1:
        cut = data.Batches._cut

        def refuse(self, pixels, indices, epoch, number):
            if self.share[1] > 1 and number == 2:
                raise VlaeError("planted in the second process")
            return cut(self, pixels, indices, epoch, number)

        data.Batches._cut = refuse
    small = ["--model.architecture", "mlp", "--model.widths", "[8]", "--model.latent_dim", "2"]
    quick = ["--trainer.accelerator", "cpu", "--trainer.progress_bar", "false", "--run.root", str(directory)]
    levels = ["--data.binarize", "threshold", "--data.batch_size", "100"]
    return cli.main(["train", "--model", "VAE", *small, *levels, *quick, "--run.name", "failed"])


def main(directory: Path) -> int:
    torch.set_num_threads(1)
    logging.getLogger("vlae").setLevel(logging.INFO)
    processes.connect()
    found = {name: steps(name) for name in CASES}
    measured = evaluation()
    if processes.first():
        torch.save(found, directory / "steps.pt")
        torch.save(measured, directory / "evaluation.pt")
        (directory / "command").mkdir()
    processes.wait()
    assert command(directory / "command") == 0
    train(directory / "whole")
    train(directory / "cut", stop_after=1)
    if processes.first():
        os.system(f"cp -r {directory / 'cut'} {directory / 'half'}")
    train(directory / "cut", resume=True)
    return failing(directory)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
