"""The page's server: static files, and a JSON interface to the workbenches."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from vlae.errors import VlaeError
from vlae.explorer.fields import Fields
from vlae.explorer.guard import LOOPBACK, Guard, size_of
from vlae.explorer.pictures import to_page
from vlae.explorer.shelf import MOST_IMAGES, Shelf

logger = logging.getLogger("vlae.explorer")

STATIC = Path(__file__).parent / "static"
MOST_JSON = 8_000_000  # bytes; two images of 1 megapixel in colour
MAX_UPLOAD = 5_000_000
SEEDS = 2**31 - 1
MEASURED = 64  # images that the order of the dimensions comes from

Verb = Callable[[Shelf, Fields], dict[str, Any]]


def application(shelf: Shelf, max_upload: int = MAX_UPLOAD, hosts: tuple[str, ...] = LOOPBACK) -> Starlette:
    """The explorer as an ASGI application.

    Args:
        shelf: models and data.
        max_upload: bytes of an uploaded picture.
        hosts: the names under which it may be asked; empty: any.
    """
    # All work on models goes through one thread: two would only take the cores from each other.
    one = anyio.CapacityLimiter(1)

    async def answer(work: Callable[[], dict[str, Any]]) -> Response:
        def timed() -> dict[str, Any]:
            started = time.perf_counter()
            with one_thread():
                result = work()
            return {**result, "seconds": time.perf_counter() - started}

        try:
            return JSONResponse(await anyio.to_thread.run_sync(timed, limiter=one))
        except VlaeError as error:
            return JSONResponse({"error": " ".join(str(error).split())}, 400)
        except Exception:
            logger.exception("a request of the explorer failed")
            return JSONResponse({"error": "something went wrong in the explorer: its terminal says what"}, 500)

    async def page(request: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def offer(request: Request) -> Response:
        return await answer(lambda: {"models": shelf.names, "max_upload": max_upload})

    async def act(request: Request) -> Response:
        verb = VERBS.get(request.path_params["verb"])
        if verb is None:
            raise HTTPException(404, f"nothing is called {request.path_params['verb'][:40]!r} here")
        body = await request.body()
        return await answer(lambda: verb(shelf, Fields(body)))

    async def upload(request: Request) -> Response:
        body = await request.body()
        name, invert = request.query_params.get("model", ""), request.query_params.get("invert", "auto")

        def work() -> dict[str, Any]:
            if not body:
                raise VlaeError("the file is empty: choose a picture")
            return shelf.bench(name).upload(body, invert)

        return await answer(work)

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": str(error.detail)}, error.status_code, headers=error.headers)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/api/offer", offer),
            Route("/api/upload", upload, methods=["POST"]),
            Route("/api/{verb}", act, methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(Guard, hosts=hosts, limits={"": MOST_JSON, "/api/upload": max_upload})],
        exception_handlers={HTTPException: refuse},
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread inside: the many small steps of one image gain nothing from a second.

    They lose by it where the machine is busy, a browser being enough: threads that wait for each other at every step
    made a slider's move over ten times as slow.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# -- what can be asked ------------------------------------------------------------------------------------------------


def describe(shelf: Shelf, fields: Fields) -> dict[str, Any]:
    """A model, and the data sets that it can be shown."""
    name = fields.text("model")
    return {**shelf.bench(name).describe(), "sets": shelf.sets(name)}


def images(shelf: Shelf, fields: Fields) -> dict[str, Any]:
    """Some test images of a data set."""
    strip = shelf.strip(fields.text("model"), fields.text("data"))
    start = fields.whole("start", 0, MOST_IMAGES, 0)
    part = slice(start, start + fields.whole("count", 1, 60, 20))
    return {
        "images": to_page(strip.images[part]),
        "labels": [] if strip.labels is None else strip.labels[part].tolist(),
        "contexts": [] if strip.context is None else strip.context[part].tolist(),
        "total": len(strip.images),
        "note": strip.note,
    }


def dimensions(shelf: Shelf, fields: Fields) -> dict[str, Any]:
    """The order of the dimensions by their rate on test images, or on images of the model itself."""
    name, data = fields.text("model"), fields.optional_text("data")
    bench = shelf.bench(name)
    if data is None:
        return {**bench.dimensions(None), "on": "images that the model drew"}
    strip = shelf.strip(name, data)
    told = None if strip.context is None else strip.context[:MEASURED]
    return {**bench.dimensions(strip.images[:MEASURED], told), "on": f"test images of {data}"}


def draw(shelf: Shelf, fields: Fields) -> dict[str, Any]:
    """A draw from the prior."""
    bench = shelf.bench(fields.text("model"))
    return bench.draw(_seed(fields), fields.told(), _seed(fields, "pixels_seed"))


def decode(shelf: Shelf, fields: Fields) -> dict[str, Any]:
    """The image of a code: what a slider's move asks for."""
    bench = shelf.bench(fields.text("model"))
    return bench.decode(fields.numbers("code"), fields.flag("drawn"), _seed(fields), fields.told())


def choose(shelf: Shelf, fields: Fields) -> dict[str, Any]:
    """The code of an image and what it costs."""
    return shelf.bench(fields.text("model")).choose(fields.text("image"), fields.told())


def file(shelf: Shelf, fields: Fields) -> dict[str, Any]:
    """The bytes that an image takes."""
    return shelf.bench(fields.text("model")).file(fields.text("image"), fields.told())


def interpolate(shelf: Shelf, fields: Fields) -> dict[str, Any]:
    """Images between two codes."""
    bench = shelf.bench(fields.text("model"))
    return bench.interpolate(
        fields.numbers("first"),
        fields.numbers("second"),
        fields.whole("steps", 2, 64, 17),
        fields.text("path"),
        fields.flag("drawn"),
        _seed(fields),
        fields.told(),
    )


def complete(shelf: Shelf, fields: Fields) -> dict[str, Any]:
    """Completions of an image of which the first rows are given."""
    bench = shelf.bench(fields.text("model"))
    return bench.complete(
        fields.text("image"),
        fields.whole("rows", 0, bench.model.image_shape[1]),
        fields.whole("count", 1, 12, 4),
        fields.whole("candidates", 1, 128, 16),
        _seed(fields),
        fields.told(),
    )


def _seed(fields: Fields, name: str = "seed") -> int:
    return fields.whole(name, 0, SEEDS, 0)


VERBS: dict[str, Verb] = {
    function.__name__: function
    for function in (describe, images, dimensions, draw, decode, choose, file, interpolate, complete)
}


# -- running it -------------------------------------------------------------------------------------------------------


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        number = error.errno or 0  # under 0 where a name is not found
        reason = os.strerror(number) if number > 0 else error.strerror or str(error)
        raise VlaeError(f"can't listen on {host}, port {port} ({reason}): give another --port, or 0 for any") from None


def address(listening: socket.socket) -> str:
    """The URL of the page."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def make_server(app: Starlette) -> uvicorn.Server:
    """uvicorn around the application, quiet; `run(sockets=[...])` serves until it is told to stop."""
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, ws="none", server_header=False))


def serve(
    shelf: Shelf, host: str = LOOPBACK[0], port: int = 7860, browser: bool = True, max_upload: int = MAX_UPLOAD
) -> None:
    """Serves the page until it is interrupted.

    Args:
        shelf: models and data.
        host: the address to listen on; any but a loopback one can be reached from other machines.
        port: 0 takes a free one.
        browser: open the page.
        max_upload: bytes of an uploaded picture.
    """
    local = host in LOOPBACK
    app = application(shelf, max_upload, LOOPBACK if local else ())
    with listen(host, port) as listening:
        url = address(listening)
        print(f"the explorer is at {url} (Ctrl-C stops it); pictures up to {size_of(max_upload)}", flush=True)
        if not local:
            print(f"warning: everyone who can reach {host} can use it: there is no password", flush=True)
        if browser:  # in a thread: a browser in a terminal would keep the server from starting
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        with contextlib.suppress(KeyboardInterrupt):
            make_server(app).run(sockets=[listening])
    print("stopped")
