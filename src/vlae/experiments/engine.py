"""Runs a study: plans it, does its cells, one or many at a time, and writes the table and the plots.

outputs/experiments/<study>/
    plan.json                   the budget, and how many training images it means
    cells/                      one run for each cell; see `vlae.experiments.job`
    table.md, table.csv         obtained beside published
    results.json                everything that was measured
    *.png                       the plots
"""

from __future__ import annotations

import importlib
import json
import shlex
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from vlae.errors import VlaeError
from vlae.experiments import tables
from vlae.experiments.calibration import calibrate
from vlae.experiments.cells import do
from vlae.experiments.job import Job, State, load_of, read_result, state
from vlae.experiments.plan import Load, Timing, chosen, duration, images_within, makespan, with_budget
from vlae.experiments.study import Study
from vlae.files import holding, write_bytes, write_text

T = TypeVar("T")
R = TypeVar("R")
ENGINES = ("loky", "ray", "dask")


@dataclass(frozen=True)
class Spread:
    """Where cells are done.

    Attributes:
        workers: cells at a time; each has one thread where it is more than one.
        engine: "loky" (processes of this machine), "ray" or "dask" (machines), by joblib.
        address: of the Ray or Dask cluster; None: this machine's own.
        threads: of each cell; None: one, or with one worker as many as PyTorch likes.
    """

    workers: int = 1
    engine: str = "loky"
    address: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise VlaeError(f"workers must be at least 1; got {self.workers}")
        if self.engine not in ENGINES:
            raise VlaeError(f"engine must be one of {', '.join(ENGINES)}; got {self.engine!r}")
        if self.threads is not None and self.threads < 1:
            raise VlaeError(f"threads must be at least 1; got {self.threads}")
        if self.address and self.engine == "loky":
            raise VlaeError("an address is of a Ray or Dask cluster: add --engine ray or --engine dask")

    @property
    def alone(self) -> bool:
        """Whether all is done in this process."""
        return self.workers == 1 and self.engine == "loky"

    @property
    def each(self) -> int | None:
        """Threads of each cell."""
        return self.threads if self.threads is not None or self.alone else 1

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """The function of every item, in order; at several at a time where there are workers."""
        if self.alone or not items:
            return [function(item) for item in items]
        from joblib import Parallel, delayed

        with self._backend():
            return Parallel(n_jobs=self.workers, batch_size=1, pre_dispatch="all")(delayed(function)(i) for i in items)

    def check(self) -> None:
        """Refuses workers that can't be had, before anything is removed to be made anew."""
        if not self.alone:
            with self._backend():
                pass

    @contextmanager
    def _backend(self) -> Iterator[None]:
        """Joblib's backend of the engine, as long as it is needed."""
        from joblib import parallel_config

        with ExitStack() as stack:
            if self.engine == "ray":
                ray, registered = _needed("ray"), _needed("ray.util.joblib")
                if not ray.is_initialized():
                    ray.init(address=self.address, **({} if self.address else {"num_cpus": self.workers}))
                    stack.callback(ray.shutdown)
                registered.register_ray()
            elif self.engine == "dask":
                distributed = _needed("dask.distributed")
                local = {"n_workers": self.workers, "threads_per_worker": 1}
                stack.enter_context(distributed.Client(self.address, **({} if self.address else local)))
            stack.enter_context(parallel_config(backend=self.engine))
            yield


def _needed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        extra = module.partition(".")[0]
        raise VlaeError(f"the engine {extra} is not there ({error}): pip install 'vlae[{extra}]'") from None


@dataclass(frozen=True)
class Plan:
    """What the budget means; kept in `plan.json`.

    Attributes:
        budget: as it was given.
        images: training images shown to each cell; None: what the configurations say.
        seconds: of a duration.
        workers: that it was planned for.
        timings: of the cells, where they were measured.
    """

    budget: str
    images: int | None
    seconds: float | None = None
    workers: int = 1
    timings: dict[str, Timing] | None = None

    def write(self, path: Path) -> None:
        """Writes the plan."""
        write_text(path, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Plan | None:
        """The plan that was kept; None where there is none."""
        try:
            content = json.loads(path.read_text())
            timings = content.pop("timings")
            return cls(**content, timings=timings and {k: Timing(**v) for k, v in timings.items()})
        except OSError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise VlaeError(f"{path} is damaged ({error}): remove it, and give the --budget again") from None


def shard_of(text: str) -> tuple[int, int]:
    """Which shard of how many: "1/4" is the first of four.

    Example:
        >>> shard_of("2/4")
        (2, 4)
    """
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise VlaeError(f"a shard is written I/N with I from 1 to N, such as 1/4; got {text!r}")
    return int(first), int(count)


def run(
    study: Study,
    output: Path,
    budget: str | None = None,
    spread: Spread = Spread(),
    shard: str | None = None,
    again: Collection[str] = (),
    overwrite: bool = False,
    measure_again: bool = False,
    table_only: bool = False,
    dry_run: bool = False,
    called: str | None = None,
) -> int:
    """Does what is left to be done of a study, and writes its table and plots.

    Args:
        study: what.
        output: where to.
        budget: a name of the study's budgets or a duration; None: that of the plan that is there, else the first.
        spread: over processes or machines.
        shard: "I/N": the cells I, I + N, ... only.
        again: names of cells to do again.
        overwrite: do all cells again.
        measure_again: measure again what is trained.
        table_only: write the table of what is there.
        dry_run: plan and print, no more.
        called: the study's name or file as it was given; said in the notes.

    Returns:
        0, or 1 where a cell failed.

    Raises:
        VlaeError: bad input, or a cell that is there and was made otherwise.
    """
    first, count = shard_of(shard) if shard else (1, 1)
    wishes = {"budget": budget, "shard": shard, "again": again, "overwrite": overwrite}
    wishes |= {"measure_again": measure_again, "dry_run": dry_run}
    if table_only and (given := [name for name, value in wishes.items() if value]):
        raise VlaeError(f"--table_only writes the table of what is there: leave --{given[0]} out")
    output = output.resolve()
    anew = _named(study, again)
    jobs = _jobs(study, output, spread, overwrite, anew, measure_again)
    if table_only:
        plan = Plan.read(output / "plan.json")
        if plan is None:
            raise VlaeError(f"there is nothing in {output} yet: run the experiment without --table_only")
    else:
        plan = make_plan(jobs, study, output, budget, spread, count, overwrite)
    jobs = [_within(job, plan) for job in jobs]
    states = {job.cell.slug: state(job) for job in jobs}
    if dry_run:
        print_plan(study, plan, jobs, states)
    elif not table_only:
        refuse_changes(jobs[first - 1 :: count], states)
        spread.check()
    kept = output / "plan.json"
    before = kept.read_bytes() if kept.is_file() else None
    there = [state(replace(job, anew=False, measure_anew=False)) for job in jobs] if dry_run else list(states.values())
    if not any(now.name == "changed" for now in there):
        plan.write(kept)
    if dry_run:
        return 0
    failures: dict[str, str] = {}
    if not table_only:
        mine = cleared(jobs[first - 1 :: count])
        print(f"{study.title}: {len(mine)} cells, {said(plan)}; {output}", flush=True)
        reasons = spread.map(do, mine)
        failures = {job.cell.name: reason for job, reason in zip(mine, reasons, strict=True) if reason}
        if before is not None and len(failures) == len(jobs):  # what was there is there again
            write_bytes(kept, before)
    results = {}
    for job in jobs:
        name, now = job.cell.name, state(replace(job, anew=False, measure_anew=False))
        if now.name == "changed":
            failures.setdefault(name, f"made otherwise ({now.change}), and not shown")
        elif (result := read_result(job)) is not None:
            results[name] = result
    shown = [job.load for job in jobs if job.load is not None]
    tables.write(study, results, output, tables.About(said(plan, shown), command(called or study.name, plan), failures))
    return int(bool(failures))


def cleared(jobs: Sequence[Job]) -> list[Job]:
    """Sets aside what is to be done anew, all of it or, where another process trains one of the cells, nothing."""
    with ExitStack() as held:
        for job in jobs:
            if job.anew and job.directory.exists():
                held.enter_context(holding(job.directory))
        return [job.cleared() for job in jobs]


def _named(study: Study, names: Collection[str]) -> set[str]:
    """Slugs of the cells of these names or slugs."""
    known = {key: cell.slug for cell in study.cells for key in (cell.name, cell.slug)}
    if unknown := [name for name in names if name not in known]:
        raise VlaeError(f"no cell {unknown[0]!r}: choose from {', '.join(cell.slug for cell in study.cells)}")
    return {known[name] for name in names}


def _jobs(
    study: Study, output: Path, spread: Spread, overwrite: bool, anew: set[str], measure_again: bool
) -> list[Job]:
    """The cells, not within a budget yet."""
    timed = "sampling_seconds" in study.columns or any("sampling_seconds" in str(plot) for plot in study.plots)
    loads: dict[str, Load] = {}
    jobs = []
    for cell in study.cells:
        load = None
        if cell.trained:
            key = json.dumps([cell.config.get("data"), cell.config.get("trainer")], sort_keys=True)
            if key not in loads:
                loads[key] = load_of(cell.config)
            load = loads[key]
            config = {**cell.config, "trainer": {**(cell.config.get("trainer") or {}), "progress_bar": False}}
        else:
            config = {"data": cell.config["data"]} if cell.config.get("data") else {}
        jobs.append(
            Job(
                cell=cell,
                config=config,
                load=load,
                measure=study.measure,
                folder=output / "cells",
                timed=timed,
                threads=spread.each,
                anew=overwrite or cell.slug in anew,
                measure_anew=measure_again,
            )
        )
    return jobs


def _within(job: Job, plan: Plan) -> Job:
    """The cell within the budget."""
    if job.load is None or plan.images is None:
        return job
    each, epochs = job.load.budgeted(plan.images)
    config = with_budget(job.config, job.load, plan.images)
    return replace(job, config=config, load=replace(job.load, available=each, epochs=epochs))


# -- planning ---------------------------------------------------------------------------------------------------------


def make_plan(
    jobs: Sequence[Job],
    study: Study,
    output: Path,
    budget: str | None,
    spread: Spread,
    shards: int = 1,
    overwrite: bool = False,
    timing: Callable[[Job], Timing] = calibrate,
) -> Plan:
    """The plan of the budget: the one that is there, where it is of the same budget, else a new one."""
    kept = None if overwrite and budget else Plan.read(output / "plan.json")
    if kept is not None and budget in (None, kept.budget):
        now = kept.images if kept.seconds is not None else chosen(study.budgets, kept.budget)
        if now == kept.images:
            return kept
        if not overwrite:
            raise VlaeError(
                f"{output} holds cells of the budget {kept.budget} when it was {kept.images} images, and it is {now} "
                "now: do all again with --overwrite, or choose another --output"
            )
        budget, kept = kept.budget, None
    if kept is not None and any(job.load is not None and job.directory.exists() for job in jobs):
        raise VlaeError(
            f"{output} holds cells of the budget {kept.budget}, and this is {budget}: do all again with --overwrite, "
            "or choose another --output"
        )
    budget = budget or next(iter(study.budgets))
    seconds = duration(budget)
    if seconds is None:
        return Plan(budget, chosen(study.budgets, budget))
    if shards > 1:
        raise VlaeError(
            f"shards share one plan, and there is none of {budget} yet: make it by the same command with --dry_run "
            f"and --workers {shards * spread.workers} for --shard"
        )
    return _timed_plan(jobs, budget, seconds, spread, timing)


def _timed_plan(
    jobs: Sequence[Job], budget: str, seconds: float, spread: Spread, timing: Callable[[Job], Timing]
) -> Plan:
    """Times every cell, and gives all the same number of images such that the rest of the budget does."""
    started = time.monotonic()
    print(f"timing a few steps of {len(jobs)} cells", flush=True)
    found = spread.map(partial(_tried, timing=timing), jobs)
    timings = {job.cell.slug: each for job, each in zip(jobs, found, strict=True) if each is not None}
    if not timings:
        raise VlaeError("no cell could be timed: see the lines above")
    spent = time.monotonic() - started
    if spent >= seconds:
        raise VlaeError(f"timing the cells alone took {spent:.0f} s of {budget}: give a longer budget or one in images")
    left = seconds - spent
    loads = {job.cell.slug: job.load for job in jobs if job.load is not None and job.cell.slug in timings}
    images = images_within(left, timings, loads, spread.workers)
    return Plan(budget, images, seconds, spread.workers, timings)


def _tried(job: Job, timing: Callable[[Job], Timing]) -> Timing | None:
    """What a cell costs; None, said in a line, where it fails: the study goes on without it."""
    try:
        return timing(job)
    except VlaeError as error:
        print(f"{job.cell.name}: can't be timed: {error}", flush=True)
        return None


def command(called: str, plan: Plan) -> str:
    """What does it again."""
    words = shlex.join(["vlae", "experiment", called, "--budget", plan.budget])
    if plan.seconds is None:
        return words
    meaning = "all epochs of the configurations fit" if plan.images is None else f"it is --budget {plan.images}"
    return f"{words}; planned on this machine, where {meaning}"


def said(plan: Plan, loads: Iterable[Load] = ()) -> str:
    """What the budget is, in words."""
    shown = sorted({load.shown(None) for load in loads})
    if plan.images is None:
        text = f"budget {plan.budget}: as many epochs as the configurations say"
    else:
        text = f"budget {plan.budget}: {plan.images:,} training images for each cell"
    if shown:
        text += f", which is {' or '.join(f'{n:,}' for n in shown)} in whole batches and epochs"
    return text


def print_plan(study: Study, plan: Plan, jobs: Sequence[Job], states: dict[str, State]) -> None:
    """Prints what would be done."""
    print(f"{study.title}: {said(plan)}")
    seconds = []
    for job in jobs:
        now = states[job.cell.slug]
        text = "not trained here" if job.load is None else ""
        if job.load is not None:
            each, epochs = job.load.budgeted(None)
            text = f"{epochs} epoch{'s' if epochs > 1 else ''} of {each:,} images"
        if plan.timings and job.cell.slug in plan.timings:
            work = job.load.work(None) if job.load is not None else 0
            seconds.append(plan.timings[job.cell.slug].seconds(work))
            text += f", about {seconds[-1]:.0f} s"
        print(f"  {job.cell.slug:24s} {now.name:9s} {text}" + (f" ({now.change})" if now.change else ""))
    if seconds:
        workers = plan.workers
        print(f"all cells: about {makespan(seconds, workers) / 60:.1f} minutes with {workers} at a time")
    else:
        print("how long that takes is not known: a duration, such as --budget 20m, is planned for this machine")


def refuse_changes(jobs: Sequence[Job], states: dict[str, State]) -> None:
    """Refuses cells that were made otherwise than they would be now."""
    for job in jobs:
        now = states[job.cell.slug]
        if now.name == "changed":
            advice = f"--again {job.cell.slug} or --overwrite"
            if not now.training_changed:
                advice = "--measure_again, which keeps what is trained"
            raise VlaeError(
                f"the cell {job.cell.name!r} in {job.folder.parent} was made otherwise ({now.change}): do it again "
                f"with {advice}, or choose another --output"
            )
