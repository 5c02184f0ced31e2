"""Images that a list names by `https://` or `http://`, where `--allow-http` says that they may be read.

    URL ──names resolved, each address checked──> connection to that very address ──> status, headers, bytes

A list is written by somebody else, so what it names is held to the public network: a host with a private,
loopback, link-local, multicast or reserved address is refused, at each of at most 5 redirects anew. A request
has 120 s for all its tries. What a server says of itself (ETag; else date and size) is the version of a file.
Proxies of the environment are not used: behind one, nobody could say which address is asked.
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import math
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar
from urllib.parse import urljoin

import urllib3
from pyarrow import fs as pafs
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, LocationParseError, NameResolutionError, NewConnectionError

from camray.archive.places import MISSING, UNDATED, RefusedError
from camray.errors import printable, said_by
from camray.records import UNSEEN
from camray.storage import Entry, Folder, has_credentials

_T = TypeVar("_T")

WHOLE_S = 120.0
"""What one URL may take, with all its tries."""

_CONNECT_S, _SILENCE_S = 10.0, 30.0
_WAITS_S = (0.5, 1.5, 4.5)  # between tries
_REDIRECTS = 5
_AT_ONCE = 16  # URLs that are looked up
_SILENT, _REST_S = 3, 60.0  # a host that did not answer for so many URLs in a row is left alone for a while
_PIECE_BYTES = 2**20
_HEADERS = {"User-Agent": "camray", "Accept": "image/*, */*;q=0.5", "Accept-Encoding": "identity"}


class _StatusError(OSError):
    """The server's answer is no file."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"the server answers {status}")

    @property
    def is_busy(self) -> bool:
        """Whether it may answer otherwise in a moment."""
        return self.status in (408, 425, 429) or self.status >= 500


# ── who may be asked ─────────────────────────────────────────────────────────────────────────────


def url_problem(url: str, is_redirect: bool = False) -> str:
    """Say why a URL may not be asked, by its text alone; empty where it may."""
    try:
        parts = urllib3.util.parse_url(url)
    except LocationParseError:
        return "is no URL"
    if parts.scheme not in ("http", "https"):
        return f"leads to the scheme {parts.scheme!r}; only http and https are followed"
    if not parts.host or any(not character.isprintable() or character.isspace() for character in url):
        return "is no URL"
    if parts.auth or (not is_redirect and has_credentials(url)):
        return "holds credentials, which are refused"
    return "" if is_redirect or "#" not in url else "holds a #, what follows would be left out; write %23"


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Tell whether an address belongs to the public network alone, and hides no other address in it."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address.is_site_local or address.sixtofour is not None or address.teredo is not None:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _addresses(host: str, port: int) -> list[tuple[int, Any]]:
    """Resolve a host: `(family, address)` in the system's order.

    Raises:
        RefusedError: one of them is not public.
        socket.gaierror: there is none.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise RefusedError(f"no host is called {printable(host, 60)}") from None
    for _, _, _, _, (numeric, *_) in found:
        if not is_public(ipaddress.ip_address(numeric)):
            raise RefusedError(f"{printable(host, 100)} is {numeric}, which is no public address")
    return [(family, address) for family, _, _, _, address in found]


def _connected(addresses: list[tuple[int, Any]]) -> socket.socket:
    """Connect to the first address that answers."""
    last = OSError(errno.EHOSTUNREACH, "no address")
    for family, address in addresses:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(_CONNECT_S)
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except OSError as error:
            sock.close()
            last = error
    raise last


class _Connection(HTTPConnection):
    """A connection to the very address that was checked: a name is resolved once."""

    def _new_conn(self) -> socket.socket:
        try:
            sock = _connected(_addresses(self.host.strip("[]"), self.port or 0))
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from None
        except OSError as error:
            raise NewConnectionError(self, said_by(error)) from None
        _watch(sock)
        return sock

    def request(self, *args: Any, **more: Any) -> None:
        """Send a request; a connection that is used again is under tonight's clock, too."""
        if self.sock is not None:
            _watch(self.sock)
        super().request(*args, **more)


class _TLSConnection(_Connection, HTTPSConnection):
    """The same with TLS: the certificate is checked for the host's name, as ever."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


@cache
def _pools() -> urllib3.PoolManager:
    pools = urllib3.PoolManager(num_pools=64, maxsize=_AT_ONCE)
    pools.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
    return pools


# ── how long ─────────────────────────────────────────────────────────────────────────────────────


class _Clock:
    """Cut the connections of this thread when the time is over, whatever a server does to keep them."""

    def __init__(self, seconds: float) -> None:
        self.ends = time.monotonic() + seconds
        self.is_over = False
        self.sockets: list[socket.socket] = []
        self.timer = threading.Timer(seconds, self.cut)
        self.timer.daemon = True

    def __enter__(self) -> _Clock:
        _here.clock = self
        self.timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()
        _here.clock = None
        for sock in self.sockets:
            sock.close()

    def cut(self) -> None:
        self.is_over = True
        for sock in list(self.sockets):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed already


_here = threading.local()


def _watch(sock: socket.socket) -> None:
    clock: _Clock | None = getattr(_here, "clock", None)
    if clock is not None:
        clock.sockets.append(socket.socket(fileno=os.dup(sock.fileno())))
        if clock.is_over:
            clock.cut()


_failures: dict[str, tuple[int, float]] = {}  # host -> URLs in a row without an answer, and when the last was


def _patiently(url: str, action: Callable[[], _T]) -> _T:
    """Ask again where a server is busy or silent.

    Raises:
        RefusedError: it may not be asked.
        FileNotFoundError: the server says that there is none.
        OSError: anything that may pass.
    """
    host = urllib3.util.parse_url(url).host or ""
    count, last = _failures.get(host, (0, 0.0))
    if count >= _SILENT and time.monotonic() < last + _REST_S:
        raise OSError(f"{host} did not answer a moment ago")
    with _Clock(WHOLE_S) as clock:
        for wait_s in (*_WAITS_S, math.inf):
            try:
                result = action()
                if clock.is_over:  # what came without a length may be cut
                    raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            except _StatusError as error:
                _failures.pop(host, None)
                if error.status in (404, 410):
                    raise FileNotFoundError(errno.ENOENT, str(error)) from None
                if not error.is_busy or time.monotonic() + wait_s > clock.ends:
                    raise
            except (HTTPError, OSError) as error:
                if time.monotonic() + wait_s > clock.ends:
                    _failures[host] = (count + 1, time.monotonic())
                    late = f"not whole after {WHOLE_S:g} s" if clock.is_over else said_by(error)
                    raise OSError(late) from None
            else:
                _failures.pop(host, None)
                return result
            time.sleep(wait_s * random.uniform(0.5, 1))
    raise AssertionError("the last try returns or raises")


# ── what is asked ────────────────────────────────────────────────────────────────────────────────


def _answer(method: str, url: str) -> urllib3.BaseHTTPResponse:
    """Ask once, and follow redirects: an answer whose body is not read yet."""
    timeout = urllib3.Timeout(connect=_CONNECT_S, read=_SILENCE_S)
    for hop in range(_REDIRECTS + 1):
        if problem := url_problem(url, is_redirect=hop > 0):
            raise RefusedError(problem)
        answer = _pools().request(
            method, url, headers=_HEADERS, timeout=timeout,
            redirect=False, retries=False, preload_content=False, decode_content=False,
        )  # fmt: skip
        if answer.status == 200:
            return answer
        target = answer.get_redirect_location()
        answer.close()
        if not target:
            raise _StatusError(answer.status)
        try:
            url = urljoin(url, target)
        except ValueError:
            raise RefusedError("redirects to what is no URL") from None
    raise RefusedError(f"more than {_REDIRECTS} redirects")


def _whole(url: str, limit: int) -> bytes:
    answer = _answer("GET", url)
    try:
        content = bytearray()
        for piece in answer.stream(_PIECE_BYTES, decode_content=False):
            content += piece
            if len(content) >= limit:
                break
        else:
            answer.release_conn()
        return bytes(content[:limit])
    finally:
        answer.close()


def _headers(url: str) -> tuple[str, str, str]:
    """Give ETag, date and size, as text; not every server answers HEAD."""
    try:
        answer = _answer("HEAD", url)
    except _StatusError as error:
        if error.is_busy and error.status != 501:
            raise
        answer = _answer("GET", url)
        answer.close()
    else:
        answer.release_conn()
    etag, date, size = (answer.headers.get(name, "") for name in ("ETag", "Last-Modified", "Content-Length"))
    return etag, date, size


def look_up(urls: Iterable[str]) -> Iterator[Entry]:
    """Give each URL its size and version.

    `MISSING` where there is none or it may not be asked, `UNSEEN` where no answer came, `UNDATED` where the
    server gives neither ETag nor date.
    """
    pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="look-up")
    try:
        yield from pool.map(_entry, urls)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _entry(url: str) -> Entry:
    try:
        etag, date, size = _patiently(url, partial(_headers, url))
    except (ValueError, FileNotFoundError):  # `RefusedError` is one
        return Entry(url, 0, MISSING)  # told by the reader
    except OSError:
        return Entry(url, 0, UNSEEN)
    size_bytes = int(size) if size.isascii() and size.isdecimal() and len(size) < 16 else 0
    if not etag and not date:
        return Entry(url, size_bytes, UNDATED)
    said = hashlib.blake2b(f"{etag or date}".encode("utf-8", "replace"), digest_size=8).hexdigest()
    return Entry(url, size_bytes, f"web-{said}")


@dataclass(frozen=True, slots=True)
class _Web(Folder):
    """The public network as the place of files whose paths are URLs."""

    @property
    def is_local(self) -> bool:
        return False

    def read_up_to(self, relative: str, limit: int) -> bytes:
        if problem := url_problem(relative):
            raise RefusedError(problem)
        return _patiently(relative, partial(_whole, relative, limit))


WEB = _Web("", pafs.LocalFileSystem(), "")
"""Where `places.locate` finds the URLs of a list."""
