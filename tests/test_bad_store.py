"""A store that refuses: one line that names the option and what to check, soon, and no credential in it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from camray.cli.main import main

pytest.importorskip("pyarrow._s3fs")

ROOT = Path(__file__).resolve().parent.parent
ARCHIVE, MODEL = ROOT / "demo" / "archive", ROOT / "demo" / "models" / "hans64-clean"
Refused = Callable[..., str]
Answer = Callable[[int, bytes], None]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answer]:
    """A store that gives every request the same answer."""
    answer: list[tuple[int, bytes]] = [(404, b"")]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _serve(self) -> None:
            status, code = answer[0]
            body = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>no</Message></Error>" % code
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = _serve  # noqa: N815 - the names the library calls

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    for name, value in {
        "AWS_ACCESS_KEY_ID": "canarykey", "AWS_SECRET_ACCESS_KEY": "canarysecret", "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    yield lambda status, code: answer.__setitem__(0, (status, code))
    server.shutdown()
    server.server_close()


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    def go(*command: str) -> str:
        started = time.monotonic()
        assert main(command) == 2
        assert time.monotonic() - started < 20
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1, said
        assert said[0].startswith("camray: error: ")
        assert ". Fix: " in said[0]
        assert "canary" not in said[0]
        return said[0]

    return go


REFUSALS = {
    "no permission": (403, b"AccessDenied"),
    "a wrong key": (403, b"InvalidAccessKeyId"),
    "a wrong secret": (403, b"SignatureDoesNotMatch"),
    "an expired token": (400, b"ExpiredToken"),
    "another region": (301, b"PermanentRedirect"),
    "a clock that is wrong": (403, b"RequestTimeTooSkewed"),
    "a key of the store's own": (403, b"KMS.DisabledException"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_out(store: Answer, refused: Refused, kind: str) -> None:
    store(*REFUSALS[kind])
    found = refused("plan", str(ARCHIVE), "s3://bucket/out", "--model", str(MODEL))
    assert "OUT: s3://bucket/out: " in found
    assert "Fix: check the bucket, its region, and the credentials in the environment" in found


@pytest.mark.parametrize("kind", ["no permission", "an expired token"])
def test_archive(store: Answer, refused: Refused, tmp_path: Path, kind: str) -> None:
    store(*REFUSALS[kind])
    found = refused("plan", "s3://bucket/in", str(tmp_path / "out"), "--model", str(MODEL))
    assert "ARCHIVE: s3://bucket/in: " in found


@pytest.mark.parametrize("verb", ["status", "verify", "report"])
def test_readers(store: Answer, refused: Refused, verb: str) -> None:
    store(*REFUSALS["no permission"])
    assert "OUT: s3://bucket/out: " in refused(verb, "s3://bucket/out")


def test_no_bucket(store: Answer, refused: Refused, tmp_path: Path) -> None:
    store(404, b"NoSuchBucket")
    found = refused("plan", str(ARCHIVE), "s3://bucket/out", "--model", str(MODEL))
    assert "OUT: s3://bucket/out: there is no bucket 'bucket'. Fix: make it first" in found
    found = refused("plan", "s3://bucket/in", str(tmp_path / "out"), "--model", str(MODEL))
    assert "ARCHIVE: s3://bucket/in is not there" in found


@pytest.mark.parametrize("place", ["s3://bucket//out", "s3:////out", "s3://bucket/a/../out"])
def test_odd_slashes(refused: Refused, place: str) -> None:
    found = refused("plan", str(ARCHIVE), place, "--model", str(MODEL))
    assert "is empty, . or .., between two slashes" in found or "Missing bucket name" in found
