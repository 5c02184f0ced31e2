"""An object store of a few keys behind S3's reading calls: list, head, get. Keys may be any text."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape


def _listed(keys: dict[str, bytes], query: dict[str, list[str]]) -> str:
    """Answer ListObjectsV2, whole."""
    prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
    spell = quote if query.get("encoding-type") == ["url"] else escape
    folders, found = set(), []
    for key in sorted(keys):
        rest = key.removeprefix(prefix)
        if not key.startswith(prefix):
            continue
        if delimiter and delimiter in rest:
            folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
        else:
            found.append(key)
    rows = "".join(
        f"<Contents><Key>{spell(key)}</Key><Size>{len(keys[key])}</Size><ETag>&quot;e&quot;</ETag>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for key in found[: int(query.get("max-keys", ["1000"])[0])]
    )
    rows += "".join(f"<CommonPrefixes><Prefix>{spell(f)}</Prefix></CommonPrefixes>" for f in sorted(folders))
    head = f"<Name>b</Name><IsTruncated>false</IsTruncated><KeyCount>{len(found) + len(folders)}</KeyCount>"
    return f"<ListBucketResult>{head}{rows}</ListBucketResult>"


@contextmanager
def small_store(keys: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Serve `keys` in any bucket; give the query that leads there, and the Authorization headers received."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization", ""))
            url = urlsplit(self.path)
            query = parse_qs(url.query, keep_blank_values=True)
            key = unquote(url.path.removeprefix("/").partition("/")[2])
            if not key:
                self.answer(200, _listed(keys, query).encode())
            elif key not in keys:
                self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            elif span := self.headers.get("Range"):
                first, _, last = span.removeprefix("bytes=").partition("-")
                part = keys[key][int(first) : int(last) + 1]
                self.answer(206, part, f"bytes {first}-{int(first) + len(part) - 1}/{len(keys[key])}")
            else:
                self.answer(200, keys[key])

        do_HEAD = do_GET  # noqa: N815 - the name the library calls

        def answer(self, status: int, body: bytes, span: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.send_header("ETag", '"e"')
            if span:
                self.send_header("Content-Range", span)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"?scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()
