"""Middleware that keeps other sites out: who may ask, how much may be sent, and what a page may load."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
THROWN_AWAY = 50_000_000  # bytes beyond a limit
SECURITY = {
    # Nothing from elsewhere, and no page elsewhere may frame this one.
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Refuses requests under a foreign name, of foreign pages, and bodies that are too large; adds the headers above.

    A page elsewhere can make a browser send requests to this machine, and by a name of its own that resolves to
    127.0.0.1 even read the answers (DNS rebinding). The Host header shows the latter, Origin and Sec-Fetch-Site the
    former.

    Args:
        app: what is guarded.
        hosts: the names under which it may be asked, without ports; empty: any.
        limits: bytes of a request's body, by path; "" is that of all others.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...] = LOOPBACK, limits: dict[str, int] | None = None):
        self.app, self.hosts, self.limits = app, hosts, limits or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        refusal = self.refusal(Headers(scope=scope), scope["method"])
        limit = self.limits.get(scope["path"], self.limits.get("", 0))
        body = b""
        if refusal is None:
            body_or_none = await _read(receive, Headers(scope=scope), limit)
            if body_or_none is None:
                refusal = 413, f"the request is larger than {size_of(limit)}: send less"
            else:
                body = body_or_none

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY.items():
                    headers.setdefault(name, value)
            await send(message)

        if refusal is not None:
            status, text = refusal
            response = JSONResponse({"error": text}, status, headers={"connection": "close"})
            await response(scope, receive, guarded)
            return
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, guarded)

    def refusal(self, headers: Headers, method: str) -> tuple[int, str] | None:
        """Status and text where a request is refused for where it comes from."""
        host = headers.get("host", "")
        if self.hosts and name_of(host) not in self.hosts:
            return 421, f"this server is asked as {' or '.join(self.hosts[:2])}, not as {host[:80]!r}"
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        foreign = origin is not None and _place(origin) != host.lower()
        if foreign or (site in ("cross-site", "same-site") and method != "GET"):
            return 403, "requests are taken from the explorer's own page only"
        return None


def name_of(host: str) -> str:
    """The name in a Host header, without its port and an IPv6 address's brackets.

    Example:
        >>> name_of("[::1]:8000"), name_of("LocalHost"), name_of("127.0.0.1:80")
        ('::1', 'localhost', '127.0.0.1')
    """
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _place(origin: str) -> str | None:
    """Host and port of an Origin header; None where it is no address."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def size_of(count: int) -> str:
    """Bytes for people.

    Example:
        >>> size_of(5_000_000), size_of(1500), size_of(2_500_000)
        ('5 MB', '1.5 kB', '2.5 MB')
    """
    return f"{count / 1e6:g} MB" if count >= 1e6 else f"{count / 1e3:g} kB"


async def _read(receive: Receive, headers: Headers, limit: int) -> bytes | None:
    """The whole body, or None if it exceeds the limit.

    What exceeds it a little is read and thrown away: a client that is still sending would not see the answer.
    """
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > limit + THROWN_AWAY:
        return None
    parts: list[bytes] = []
    size, more = 0, True
    while more and size <= limit + THROWN_AWAY:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        part = message.get("body", b"")
        size += len(part)
        if size <= limit:
            parts.append(part)
        else:
            parts.clear()
        more = message.get("more_body", False)
    return b"".join(parts) if size <= limit else None
