"""`vlae eval` and `vlae doctor`: how good a model is, and what is wrong with it."""

from __future__ import annotations

import shlex
from pathlib import Path

from vlae import processes
from vlae.cli.choices import (
    add_choice,
    add_data,
    choose_data,
    choose_model,
    data_settings,
    parse_choice,
    parser_for,
    run_of,
)
from vlae.errors import VlaeError


def evaluate(words: list[str]) -> int:
    """Every metric that applies, on held-out images: tables, JSON, CSV and an HTML report."""
    parser = parser_for("eval")
    add_choice(parser)
    add_data(parser)
    parser.add_argument("--only", type=list[str], default=[], help="these groups or metrics: --only bound nll mig")
    parser.add_argument("--standard", type=bool, default=False, help="with FID, Inception Score and LPIPS")
    parser.add_argument("--nll_samples", type=list[int], default=[1, 10, 100], help="K, one or several; 0: no NLL")
    parser.add_argument("--nll_images", type=int, default=500, help="NLL on so many images, a fixed choice; 0: all")
    parser.add_argument(
        "--nll_of_all_samples",
        type=int | None,
        default=None,
        help="measure all images with so many, to tell the NLL of all with the most more closely",
    )
    parser.add_argument(
        "--keep", type=str | None, default=None, help="file that keeps each image's NLL: go on from there another time"
    )
    parser.add_argument(
        "--information_images",
        type=int | None,
        default=None,
        help="mutual information among so many; else 2000, of an IAF posterior 300",
    )
    parser.add_argument("--quality_images", type=int, default=1000, help="reconstructions, and as many samples")
    parser.add_argument("--train_images", type=int, default=5000, help="training images that probes learn from")
    parser.add_argument("--batch_size", type=int, default=250, help="memory, not the result")
    parser.add_argument("--seed", type=int, default=0, help="of all noise")
    parser.add_argument("--double", type=bool, default=False, help="in float64")
    parser.add_argument(
        "--check", type=bool, default=False, help="compare with the model's expected numbers; exit 1 if off"
    )
    parser.add_argument("--criteria", type=bool, default=False, help="say which criteria of success are met")
    parser.add_argument("--pixelcnn", type=str | None, default=None, help="for the criteria: a model without a code")
    parser.add_argument("--vae", type=str | None, default=None, help="for the criteria: a VAE of MLPs")
    parser.add_argument("--strict", type=bool, default=False, help="exit 1 where a criterion is not met")
    parser.add_argument("--output", type=str | None, default=None, help="where the reports go; else the run's reports/")
    flags = ["--check", "--double", "--criteria", "--standard", "--strict"]
    settings = parse_choice(parser, words, flags=flags, lists=["--only", "--nll_samples"])
    from vlae.evaluation import report
    from vlae.evaluation.criteria import load_references
    from vlae.evaluation.judge import judge_of
    from vlae.evaluation.measurements import Settings

    names = (
        "nll_of_all_samples",
        "information_images",
        "quality_images",
        "train_images",
        "batch_size",
        "seed",
        "standard",
    )
    wanted = Settings(
        tuple(settings.only),
        nll_samples=tuple(k for k in settings.nll_samples if k),
        nll_images=settings.nll_images or None,
        **{name: settings[name] for name in names},
    )
    for name in ("pixelcnn", "vae", "strict"):
        if settings[name] and not settings.criteria:
            raise VlaeError(f"--{name} is for the criteria of success: add --criteria")
    processes.connect()
    model, directory = processes.after_first(lambda: choose_model(settings))
    others = [name for name in ("name", "binarize", "options", "limit") if settings.data.get(name)]
    others += ["split"] if settings.data.split != "test" else []
    if settings.check and others:
        raise VlaeError(f"the expected numbers are of the model's own whole test set: leave out --data.{others[0]}")
    data, test = data_settings(settings, model), choose_data(settings, model)
    wants_references = settings.criteria and processes.first()
    references = load_references(test, settings.pixelcnn, settings.vae) if wants_references else None
    return report.run(
        model,
        test,
        Path(settings.output or directory / "reports"),
        wanted,
        training=lambda: data.load("train"),
        judging=lambda train: judge_of(data.name, train, test, data.root, data.options),
        run=run_of(settings, directory),
        double=settings.double,
        check=settings.check,
        criteria=settings.criteria,
        references=references,
        strict=settings.strict,
        command=shlex.join(["vlae", "eval", *words]),
        keep=Path(settings.keep) if settings.keep else None,
    )


def doctor(words: list[str]) -> int:
    """What is wrong with a run or a model, and what to change; the findings as a table and as JSON."""
    parser = parser_for("doctor")
    add_choice(parser)
    add_data(parser)
    parser.add_argument("--images", type=int, default=1000, help="measure on the first so many test images")
    parser.add_argument("--batch_size", type=int, default=250, help="memory, not the result")
    parser.add_argument("--seed", type=int, default=0, help="of all noise")
    parser.add_argument("--strict", type=bool, default=False, help="exit 1 where there is a problem")
    settings = parse_choice(parser, words, flags=["--strict"])
    from vlae.evaluation import doctor

    model, directory = choose_model(settings)
    return doctor.run(
        model,
        choose_data(settings, model),
        directory / "reports",
        run_of(settings, directory),
        **{key: settings[key] for key in ("images", "batch_size", "seed", "strict")},
    )
