"""A small audited OUT with hostile names, and a server over a copy of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.audit.report_world import make_out

pytest.importorskip("starlette")
pytest.importorskip("duckdb")

from starlette.testclient import TestClient

from camray.ledger.out import open_out
from camray.serve.answers import Pages
from camray.serve.app import application
from camray.serve.current import Current
from camray.serve.rows import Rows, View

ROWS = 300
HERE = "http://127.0.0.1"


@dataclass
class Served:
    """A server in this process: `client` has the cookie, `tokens` are those it told."""

    out: Path
    current: Current
    app: Any
    tokens: list[str] = field(default_factory=list)
    client: TestClient = field(init=False)

    @property
    def pages(self) -> Pages:
        return self.current()

    @property
    def ids(self) -> list[int]:
        """The rows by index: `ids[3]` is that of the member 3."""
        return by_index(self.pages.rows)

    def visitor(self) -> TestClient:
        """A browser of its own, let in."""
        client = TestClient(self.app, base_url=HERE)
        assert client.get(f"/?token={self.tokens[-1]}").status_code == 200
        return client

    def decide(self, **said: Any) -> Any:
        return self.client.post("/decide", json=said).json()


def by_index(rows: Rows) -> list[int]:
    """The ids of the rows by their index."""
    return [int(i) for i in rows.order(View(sort="index", is_descending=False))]


@pytest.fixture(scope="session")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("served") / "out"
    make_out(out, ROWS)
    return out


@pytest.fixture
def serving() -> Iterator[Callable[..., Served]]:
    """Opens an OUT as `camray serve` does."""
    opened: list[Current] = []

    def serve(out: Path, may_review: bool = True) -> Served:
        current = Current(open_out(str(out))[0], may_review)
        opened.append(current)
        tokens: list[str] = []
        served = Served(out, current, application(current, tokens.append), tokens)
        served.client = served.visitor()
        return served

    yield serve
    for current in opened:
        current.close()


@pytest.fixture
def served(audited: Path, tmp_path: Path, serving: Callable[..., Served]) -> Served:
    return serving(Path(shutil.copytree(audited, tmp_path / "out")))
