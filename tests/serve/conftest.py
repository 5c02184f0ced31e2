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
from camray.serve.answers import Pages, read_summaries
from camray.serve.app import application
from camray.serve.rows import Rows

ROWS = 300
HERE = "http://127.0.0.1"


@dataclass
class Served:
    """A server in this process: `client` has the cookie, `tokens` are those it told."""

    out: Path
    pages: Pages
    app: Any
    tokens: list[str] = field(default_factory=list)
    client: TestClient = field(init=False)

    def visitor(self) -> TestClient:
        """A browser of its own, let in."""
        client = TestClient(self.app, base_url=HERE)
        assert client.get(f"/?token={self.tokens[-1]}").status_code == 200
        return client

    def decide(self, **said: Any) -> Any:
        return self.client.post("/decide", json=said).json()


@pytest.fixture(scope="session")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("served") / "out"
    make_out(out, ROWS)
    return out


@pytest.fixture
def serving() -> Iterator[Callable[..., Served]]:
    """Opens an OUT as `camray serve` does."""
    opened: list[Rows] = []

    def serve(out: Path, may_review: bool = True) -> Served:
        folder, table = open_out(str(out))
        rows = Rows(folder, table, {night.explainer: night.covers for night in read_summaries(folder)})
        opened.append(rows)
        tokens: list[str] = []
        pages = Pages(folder, rows, may_review)
        served = Served(out, pages, application(pages, tokens.append), tokens)
        served.client = served.visitor()
        return served

    yield serve
    for rows in opened:
        rows.close()


@pytest.fixture
def served(audited: Path, tmp_path: Path, serving: Callable[..., Served]) -> Served:
    return serving(Path(shutil.copytree(audited, tmp_path / "out")))
