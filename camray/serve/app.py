"""The server: who may ask, which page answers. Loopback alone, a token for one browser, no other origin.

Flows in: requests. Flows out: pages, pictures, exports; with `--review` decisions, which are durable first.
"""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Callable
from importlib.resources import files

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from camray.errors import UsageError, printable
from camray.serve.answers import Pages
from camray.serve.current import Current
from camray.serve.exports import KINDS, exported

HOSTS = ("127.0.0.1", "localhost")
LARGEST_BODY = 2**16
_STATIC = {
    "report.css": ("camray.audit", "text/css"),
    "page.js": ("camray.audit", "text/javascript"),
    "serve.css": ("camray.serve", "text/css"),
    "serve.js": ("camray.serve", "text/javascript"),
}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Door:
    """Lets in who has the cookie, and gives it for a token, once; the next token is told to `say`."""

    def __init__(self, app: ASGIApp, say: Callable[[str], None]) -> None:
        self._app, self._say = app, say
        self.cookie = f"camray-{secrets.token_hex(4)}"  # of this server: browsers mix up ports
        self._sessions: set[str] = set()
        self.token = ""
        self.renew()

    def renew(self) -> None:
        """Make a token for another browser, and tell it."""
        self.token = secrets.token_urlsafe(24)
        self._say(self.token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, with the headers that keep a page to itself."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._at_the_door(Request(scope))
        await (answer or self._app)(scope, receive, told)

    def _at_the_door(self, request: Request) -> Response | None:
        """Give the answer to who is not in; None to who is."""
        given = request.query_params.get("token", "")
        if given and hmac.compare_digest(given.encode(), self.token.encode()):
            session = secrets.token_urlsafe(24)
            self._sessions.add(session)
            self.renew()
            answer = RedirectResponse("/", 303)
            answer.set_cookie(self.cookie, session, httponly=True, samesite="strict")
            return answer
        if request.cookies.get(self.cookie) not in self._sessions:
            return PlainTextResponse(
                "camray serve printed an address with a token: open the last one.\n", 403
            )
        is_own = request.headers.get("origin") in (None, f"http://{request.headers.get('host')}")
        is_json = request.headers.get("content-type", "").startswith("application/json")
        if request.method == "POST" and not (is_own and is_json):
            return PlainTextResponse("Only the pages of this server may decide.\n", 403)
        return None


def application(current: Current, say: Callable[[str], None]) -> ASGIApp:
    """Give the server of an OUT; `say` is told each new token."""

    def page(answer: Callable[[Pages, Request], str]) -> Callable[[Request], Response]:
        def respond(request: Request) -> Response:
            pages = current()
            try:
                return Response(answer(pages, request).encode("utf-8", "replace"), media_type="text/html")
            except UsageError as error:
                return Response(
                    pages.problem(str(error)).encode("utf-8", "replace"), 400, media_type="text/html"
                )

        return respond

    def images(request: Request) -> Response:
        if {"column", "sign", "value"} & {*request.query_params}:  # the line of the form for any column
            return RedirectResponse(f"/images?{current().with_column(request)}", 303)
        return page(Pages.images)(request)

    def picture(request: Request) -> Response:
        found = current().picture(request)
        if found is None:
            return PlainTextResponse("no picture", 404)
        return Response(
            found.jpeg, media_type="image/jpeg", headers={"cache-control": "private, max-age=600"}
        )

    def export(request: Request) -> Response:
        if (kind := request.path_params["kind"]) not in KINDS:
            return PlainTextResponse(f"one of {', '.join(KINDS)}", 404)
        try:
            name, content, parts = exported(kind, current(), request.query_params.multi_items())
        except UsageError as error:
            return PlainTextResponse(str(error), 400)
        return StreamingResponse(
            parts, media_type=content, headers={"content-disposition": f'attachment; filename="{name}"'}
        )

    async def decide(request: Request) -> Response:
        from starlette.concurrency import run_in_threadpool

        if not current().may_review:
            return JSONResponse({"error": "this server only reads: camray serve OUT --review"}, 403)
        body = await request.body()
        try:
            if len(body) > LARGEST_BODY:
                raise ValueError("too long")
            said = json.loads(body)
            return JSONResponse(await run_in_threadpool(current.decide, said))
        except (UsageError, ValueError, LookupError, TypeError, AttributeError) as error:
            return JSONResponse({"error": printable(str(error))}, 400)
        except OSError as error:
            return JSONResponse({"error": printable(f"not saved: {error}")}, 503)

    def static(request: Request) -> Response:
        if (name := request.path_params["name"]) not in _STATIC:
            return PlainTextResponse("no such file", 404)
        package, kind = _STATIC[name]
        return Response(files(package).joinpath("pages", name).read_bytes(), media_type=kind)

    def start(_: Request) -> Response:
        return RedirectResponse(f"/images?{current().first_view}", 303)

    routes = [
        Route("/", start),
        Route("/images", images),
        Route("/image/{id:int}", page(Pages.image)),
        Route("/picture/{id:int}", picture),
        Route("/classes", page(Pages.classes)),
        Route("/class/{id:int}", page(Pages.class_page)),
        Route("/causes", page(Pages.causes)),
        Route("/compare", page(Pages.compare)),
        Route("/export/{kind}", export),
        Route("/decide", decide, methods=["POST"]),
        Route("/static/{name}", static),
    ]
    return TrustedHostMiddleware(
        Door(Starlette(routes=routes), say), HOSTS
    )  # the door says its first token now
