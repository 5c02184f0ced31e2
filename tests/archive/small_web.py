"""A web server on loopback that answers as a test says, and remembers who asked for what."""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Page:
    """What a path answers. `statuses` come first, one a request; `act` writes the whole answer itself."""

    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200
    statuses: list[int] = field(default_factory=list)
    act: Callable[[BaseHTTPRequestHandler], None] | None = None


@dataclass
class Web:
    """The server: its port, its pages by path, and the requests and connections that came."""

    port: int
    pages: dict[str, Page]
    asked: list[str] = field(default_factory=list)  # "GET /a.png"
    connections: list[str] = field(default_factory=list)  # the address that each was made to

    def url(self, path: str, host: str = "127.0.0.1", scheme: str = "http") -> str:
        """Give the URL of a page."""
        return f"{scheme}://{host}:{self.port}{path}"


@contextmanager
def small_web(
    pages: dict[str, Page] | None = None,
    address: str = "127.0.0.1",
    port: int = 0,
    certificate: Path | None = None,
) -> Iterator[Web]:
    """Serve pages at an address of loopback; with a certificate (and its key in the same file), by TLS."""
    web = Web(0, pages if pages is not None else {})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def log_message(self, *_: object) -> None:
            pass

        def setup(self) -> None:
            super().setup()
            web.connections.append(self.connection.getsockname()[0])

        def do_GET(self) -> None:
            web.asked.append(f"{self.command} {self.path}")
            page = web.pages.get(self.path, Page(status=404))
            if page.act is not None:
                self.close_connection = True
                page.act(self)
                return
            status = page.statuses.pop(0) if page.statuses else page.status
            self.send_response(status)
            for name, value in page.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(page.content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(page.content)

        def do_HEAD(self) -> None:
            self.do_GET()

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_: object) -> None:
            pass  # a client that went away

    server = Server((address, port), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    web.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
