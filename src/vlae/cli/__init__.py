"""The command line: parses, calls one function, prints. `python -m vlae` is the same."""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout

from rich.console import Console
from rich.logging import RichHandler

from vlae import processes
from vlae.cli.charts import (
    viz_aggregate_posterior,
    viz_bits,
    viz_latent_scatter,
    viz_rate_distortion,
    viz_receptive_field,
    viz_training_curves,
)
from vlae.cli.codes import viz_decompressions, viz_traverse
from vlae.cli.evaluate import doctor, evaluate
from vlae.cli.explore import explore
from vlae.cli.export import export
from vlae.cli.files import compress, decompress, info
from vlae.cli.installation import models, verify
from vlae.cli.interpolate import sample_interpolate
from vlae.cli.output import fail, nobody_reads, system_error
from vlae.cli.sample import sample_arithmetic, sample_complete, sample_prior
from vlae.cli.studies import compare_dae, experiment
from vlae.cli.train import train
from vlae.cli.viz import viz_recon_grid, viz_samples
from vlae.errors import VlaeError
from vlae.training.configuration import TRAIN

__all__ = ["COMMANDS", "fail", "main", "split_command"]

Command = Callable[[list[str]], int | None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; its exit code: 0, 1 (a check failed), 2 (bad input, in one line) or 130 (interrupted)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[
            RichHandler(console=Console(width=None), show_path=False, show_level=False, omit_repeated_times=False)
        ],
    )
    for noisy in ("httpx", "pooch", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("vlae").setLevel(logging.INFO)
    try:
        try:
            return run(words)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a broken pipe is caught
    except VlaeError as error:
        return fail(str(error))
    except BrokenPipeError:
        return nobody_reads()
    except OSError as error:
        return fail(system_error(error))
    except (RuntimeError, MemoryError) as error:
        if processes.ended_elsewhere(error):
            return fail("another process of this command has ended; a training run continues with --resume")
        if out_of_memory(error):
            return fail("out of memory: make --batch_size smaller (of a training data.batch_size), or the model")
        raise
    except KeyboardInterrupt:
        return fail("interrupted; a training run continues with --resume", code=130)


def out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether a device has no more memory; of the CPU's PyTorch tells by the words alone."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def run(words: list[str]) -> int:
    """Finds the command and calls it."""
    if not words or words[0] in ("-h", "--help"):
        print(help_text())
        return 0
    if words[0] == "--version":
        from vlae import __version__

        print(f"vlae {__version__}")
        return 0
    name, rest = split_command(words)
    check_launch(name)
    with silent_unless_first():
        return COMMANDS[name][0](rest) or 0


# What several processes can do together.
SHARED = ("train", "eval")


def check_launch(command: str) -> None:
    """Refuses several processes where one does all the work, and those that nothing lets talk to each other."""
    if processes.launched() > 1 and command not in SHARED:
        raise VlaeError(f"vlae {command} runs in one process: start it without torchrun")
    if processes.launched() == 1 and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        raise VlaeError(
            "srun started several tasks that know nothing of each other: start one on each machine, and in it torchrun "
            "(srun --ntasks-per-node=1 torchrun ... -m vlae ...)"
        )


@contextmanager
def silent_unless_first() -> Iterator[None]:
    """Of several processes only the first prints, and logs more than errors."""
    if processes.first():
        yield
        return
    logging.getLogger("vlae").setLevel(logging.ERROR)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def split_command(words: list[str]) -> tuple[str, list[str]]:
    """The command's name and the words after it; its words may be joined by dots, dashes or underscores.

    Example:
        >>> split_command(["viz.recon_grid", "--count", "8"])
        ('viz recon-grid', ['--count', '8'])
    """
    plain = _plain(words[0])
    candidates = [(plain, words[1:])]
    if len(words) > 1 and not words[1].startswith("-"):
        candidates.insert(0, (_plain(" ".join(words[:2])), words[2:]))
    known = {_plain(name): name for name in COMMANDS}
    for spelled, rest in candidates:
        if spelled in known:
            return known[spelled], rest
    group = [name for name in COMMANDS if name.startswith(plain.split("-")[0] + " ")]
    close = group or [known[near] for near in difflib.get_close_matches(candidates[-1][0], known, n=1)]
    hint = f"did you mean {' or '.join(repr(name) for name in close)}?" if close else "see vlae --help"
    said = words[:1] if len(words) < 2 or words[1].startswith("-") else words[:2]
    raise VlaeError(f"unknown command {' '.join(said)!r}: {hint}")


def _plain(name: str) -> str:
    """A command's name with dashes alone between its words."""
    return re.sub(r"[\s._]", "-", name)


def help_text() -> str:
    """The list of commands."""
    lines = ["usage: vlae COMMAND [OPTIONS]   (vlae COMMAND --help for its options)", ""]
    lines += [f"  {name:25s}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(lines)


COMMANDS: dict[str, tuple[Command, str]] = {
    "train": (train, TRAIN),
    "eval": (evaluate, "all metrics of a run or model on held-out images: tables and an HTML report"),
    "doctor": (doctor, "what is wrong with a run or a model, and what to change"),
    "sample prior": (sample_prior, "draw images from the prior"),
    "sample interpolate": (
        sample_interpolate,
        "draw paths between the codes of images, or between draws from the prior",
    ),
    "sample arithmetic": (sample_arithmetic, "add and subtract the codes of images, and draw the result"),
    "sample complete": (sample_complete, "give a part of an image and draw the rest, several times"),
    "viz recon-grid": (viz_recon_grid, "draw reconstructions"),
    "viz decompressions": (viz_decompressions, "draw several x ~ p(x|z), z ~ q(z|x), beside each image"),
    "viz traverse": (viz_traverse, "draw what moves with single dimensions of z"),
    "viz samples": (viz_samples, "draw samples beside data"),
    "viz latent-scatter": (viz_latent_scatter, "draw posterior means in a plane, by label"),
    "viz aggregate-posterior": (viz_aggregate_posterior, "draw codes of data beside the prior"),
    "viz bits": (viz_bits, "draw what each image spends on each latent dimension"),
    "viz receptive-field": (viz_receptive_field, "draw which pixels a pixel sees; --check measures it"),
    "viz training-curves": (viz_training_curves, "draw how a run's bound moved"),
    "viz rate-distortion": (viz_rate_distortion, "draw models in the rate-distortion plane"),
    "compare dae": (compare_dae, "VAE, VLAE and denoising autoencoder side by side: a table and a picture"),
    "experiment": (experiment, "a study: models trained and measured alike, a table and plots; no name lists them"),
    "explore": (explore, "a page in the browser: move codes, interpolate, complete drawings, see what images cost"),
    "compress": (compress, "image files to one .vlae file, of the size that the bound promises"),
    "decompress": (decompress, "a .vlae file to image files, exact in every pixel"),
    "info": (info, "what a .vlae file holds"),
    "export": (export, "encoder and decoder as programs that need no vlae: torch.export, and ONNX with --onnx"),
    "models": (models, "list the pretrained models"),
    "verify": (verify, "check this installation against exact answers, in seconds"),
}
