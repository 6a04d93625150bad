"""The command line: parses, calls one function, prints. `python -m vlae` is the same."""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.logging import RichHandler

from vlae.cli.evaluate import doctor, evaluate
from vlae.cli.export import export
from vlae.cli.files import compress, decompress, info
from vlae.cli.installation import models, verify
from vlae.cli.output import fail, nobody_reads, system_error
from vlae.cli.sample import sample_prior
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
    except KeyboardInterrupt:
        return fail("interrupted; a training run continues with --resume", code=130)


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
    return COMMANDS[name][0](rest) or 0


def split_command(words: list[str]) -> tuple[str, list[str]]:
    """The command's name and the words after it; dotted and underscored spellings are the same as words with dashes.

    Example:
        >>> split_command(["viz.recon_grid", "--count", "8"])
        ('viz recon-grid', ['--count', '8'])
    """
    plain = words[0].replace(".", " ").replace("_", "-").split()
    candidates = [(" ".join(plain), words[1:])]
    if len(words) > 1 and not words[1].startswith("-"):
        candidates.insert(0, (" ".join([*plain, words[1].replace("_", "-")]), words[2:]))
    for name, rest in candidates:
        if name in COMMANDS:
            return name, rest
    group = [name for name in COMMANDS if name.startswith(plain[0] + " ")]
    close = group or difflib.get_close_matches(candidates[-1][0], COMMANDS, n=1)
    hint = f"did you mean {' or '.join(repr(name) for name in close)}?" if close else "see vlae --help"
    raise VlaeError(f"unknown command {' '.join(words[:2])!r}: {hint}")


def help_text() -> str:
    """The list of commands."""
    lines = ["usage: vlae COMMAND [OPTIONS]   (vlae COMMAND --help for its options)", ""]
    lines += [f"  {name:18s}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(lines)


COMMANDS: dict[str, tuple[Command, str]] = {
    "train": (train, TRAIN),
    "eval": (evaluate, "all metrics of a run or model on held-out images: tables and an HTML report"),
    "doctor": (doctor, "what is wrong with a run or a model, and what to change"),
    "sample prior": (sample_prior, "draw images from the prior"),
    "viz recon-grid": (viz_recon_grid, "draw reconstructions"),
    "viz samples": (viz_samples, "draw samples beside data"),
    "compare dae": (compare_dae, "VAE, VLAE and denoising autoencoder side by side: a table and a picture"),
    "experiment": (experiment, "a study: models trained and measured alike, a table and plots; no name lists them"),
    "compress": (compress, "image files to one .vlae file, of the size that the bound promises"),
    "decompress": (decompress, "a .vlae file to image files, exact in every pixel"),
    "info": (info, "what a .vlae file holds"),
    "export": (export, "encoder and decoder as programs that need no vlae: torch.export, and ONNX with --onnx"),
    "models": (models, "list the pretrained models"),
    "verify": (verify, "check this installation against exact answers, in seconds"),
}
