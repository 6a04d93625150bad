"""`vlae explore`: the explorer in a browser."""

from __future__ import annotations

from pathlib import Path

from vlae.cli.choices import add_choice, check_one_choice, choose_run, parse_choice, parser_for
from vlae.errors import VlaeError


def explore(words: list[str]) -> int:
    """Serves a page with sliders over z, interpolation, completion by drawing, and what an image costs."""
    parser = parser_for("explore")
    add_choice(parser, device=False)
    parser.add_argument("--host", type=str, default="127.0.0.1", help="address to listen on; others than this: anyone")
    parser.add_argument("--port", type=int, default=7860, help="0 takes a free one")
    parser.add_argument("--open", type=bool, default=True, help="open the page in a browser; --no-open does not")
    parser.add_argument("--max_upload", type=float, default=5.0, help="MB of an uploaded picture")
    parser.add_argument("--data.root", type=str | None, default=None, help="where data sets are")
    words = ["--open=false" if word == "--no-open" else word for word in words]
    settings = parse_choice(parser, words, flags=["--open"])
    check_one_choice(settings)
    if not 0 < settings.max_upload <= 1000:
        raise VlaeError(f"--max_upload must be above 0 and at most 1000 (MB); got {settings.max_upload:g}")
    if not 0 <= settings.port <= 65535:
        raise VlaeError(f"--port must be from 0 to 65535; got {settings.port}")
    try:
        from vlae.explorer.server import serve
    except ModuleNotFoundError as error:
        if error.name not in ("anyio", "starlette", "uvicorn"):
            raise
        raise VlaeError(f"the explorer needs {error.name}: pip install 'vlae[explore]'") from None
    from vlae.explorer.shelf import Shelf

    wanted = str(choose_run(settings)) if settings.run or settings.config else settings.model
    shelf = Shelf(_given(wanted), root=settings.data.root)
    serve(shelf, settings.host, settings.port, settings.open, round(settings.max_upload * 1e6))
    return 0


def _given(target: str | None) -> dict[str, Path]:
    """The model that was asked for, to be offered first; a run exports it where it has none or a better one."""
    from vlae.models.saving import locate
    from vlae.training.checkpoints import unsaved
    from vlae.training.run import export

    if target is None:
        return {}
    run = Path(target)
    if unsaved(run):
        export(run)
    return {run.as_posix(): locate(target)}
