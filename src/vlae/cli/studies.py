"""`vlae compare dae` and `vlae experiment`: models trained and measured alike."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlae.cli.choices import parser_for
from vlae.cli.output import fail
from vlae.errors import VlaeError
from vlae.training.configuration import parse


def compare_dae(words: list[str]) -> int:
    """VAE, VLAE and denoising autoencoder side by side: trains what is not given; a table and a picture."""
    parser = parser_for("compare dae")
    for name in ("vae", "vlae", "dae"):
        parser.add_argument(
            f"--{name}_ckpt", type=str | None, default=None, help="saved model, run or pretrained name; else trained"
        )
    parser.add_argument("--data.name", type=str, default="digits", help="data set")
    parser.add_argument("--data.root", type=str | None, default=None, help="where its files are")
    parser.add_argument(
        "--data.binarize", type=str | None, default=None, help="static, dynamic, threshold, none; else the usual"
    )
    parser.add_argument("--data.options", type=dict, default={}, help="further options of the data set")
    parser.add_argument("--data.limit", type=int | None, default=None, help="the first so many images only")
    parser.add_argument("--epochs", type=int | None, default=None, help="of each training; else by the set's size")
    parser.add_argument("--latent_dim", type=int | None, default=None, help="numbers in z; else by the image's size")
    parser.add_argument("--images", type=int, default=1000, help="measure on the first so many test images")
    parser.add_argument("--train_images", type=int, default=5000, help="probes learn from the first so many")
    parser.add_argument("--count", type=int, default=16, help="images per row of the picture")
    parser.add_argument("--seed", type=int, default=0, help="of training and of all noise")
    parser.add_argument("--output", type=str, default="outputs/compare-dae", help="where runs, table and picture go")
    parser.add_argument("--overwrite", type=bool, default=False, help="train again what is finished")
    settings = parse(parser, words, flags=["--overwrite"])
    from vlae.experiments import dae
    from vlae.training.settings import DataSettings

    dae.run(
        DataSettings(**settings.data.as_dict()),
        {name: settings[f"{name}_ckpt"] for name in ("vae", "vlae", "dae")},
        output=Path(settings.output),
        columns=settings.count,
        **{key: settings[key] for key in ("epochs", "latent_dim", "images", "train_images", "seed", "overwrite")},
    )
    return 0


def experiment(words: list[str]) -> int:
    """A named study, or one of your own: trains and measures its cells, and writes a table and plots."""
    parser = parser_for("experiment")
    parser.add_argument("name", type=str, nargs="?", default="", help="a study's name or file; none: lists them")
    parser.add_argument("--list", type=bool, default=False, help="list the studies")
    parser.add_argument(
        "--budget",
        type=str | None,
        default=None,
        help="a name in the study, 20m, 1h30m, or images",
    )
    parser.add_argument("--output", type=str | None, default=None, help="outputs/experiments/NAME if not given")
    parser.add_argument("--workers", type=int, default=1, help="cells at a time")
    parser.add_argument("--threads", type=int | None, default=None, help="of each cell")
    parser.add_argument("--engine", type=str, default="loky", help="of workers: loky, ray or dask")
    parser.add_argument("--address", type=str | None, default=None, help="of a Ray or Dask cluster")
    parser.add_argument("--shard", type=str | None, default=None, help="I/N: cells I, I + N, ... only")
    parser.add_argument("--again", type=str, nargs="+", default=[], help="cells to train and measure again")
    parser.add_argument("--overwrite", type=bool, default=False, help="all cells again")
    parser.add_argument("--measure_again", type=bool, default=False, help="measure again what is trained")
    parser.add_argument("--table_only", type=bool, default=False, help="write the table of what is there")
    parser.add_argument("--dry_run", type=bool, default=False, help="plan and print, no more")
    flags = ["--list", "--overwrite", "--measure_again", "--table_only", "--dry_run"]
    settings = parse(parser, words, flags=flags)
    from vlae.experiments import engine, study

    if words and not (settings.list or settings.name):
        raise VlaeError("say which study before its options: vlae experiment NAME ...; no words at all list them")
    if settings.list or not settings.name:
        print(study.listing())
        return 0
    chosen = study.load(study.find(settings.name))
    try:
        with ending_as_interrupted():
            return engine.run(
                chosen,
                Path(settings.output or Path("outputs") / "experiments" / chosen.name),
                settings.budget,
                engine.Spread(settings.workers, settings.engine, settings.address, settings.threads),
                called=settings.name,
                **{
                    key: settings[key]
                    for key in ("shard", "again", "overwrite", "measure_again", "table_only", "dry_run")
                },
            )
    except KeyboardInterrupt:
        return fail("interrupted; the same command goes on from here", code=130)


@contextmanager
def ending_as_interrupted() -> Iterator[None]:
    """A process told to end (SIGTERM) ends as by Ctrl-C, so that it takes its trainings with it."""

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # where Python takes no handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
