"""Decisions: durable before they are acknowledged, of two reviewers both kept, undone, taken in."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any
from urllib.request import HTTPCookieProcessor, Request, build_opener

import pytest
from deltalake import DeltaTable

from camray.audit.reviewed import decisions, take_in
from camray.ledger.out import open_out
from camray.serve.rows import Rows, View
from camray.storage import open_folder
from tests.serve.conftest import Served, by_index

ROW = 3  # stands for the id of the row with this index
ADA = {"id": ROW, "decision": "accepted", "reviewer": "ada"}


def inbox(out: Path, but: Collection[str] = ()) -> list[dict[str, Any]]:
    """Every decision that lies in the inbox, as the files say, but those of some files."""
    files = sorted(path for path in (out / "qa-inbox").glob("*.json") if path.name not in but)
    return [row for file in files for row in json.loads(file.read_bytes())["decisions"]]


def test_a_decision_is_in_the_inbox_when_it_is_acknowledged(served: Served) -> None:
    row, other = served.pages.rows.rows(served.ids[3:5])
    said = served.decide(id=served.ids[3], decision="problem", reviewer="Ada <b>")
    assert said == {"said": ["Ada <b>: problem"], "conflict": False, "decision": "problem"}
    (kept,) = inbox(served.out)
    names = ("explainer", "shard", "member", "index", "content_sha256", "verdict")
    assert {name: kept[name] for name in names} == {name: row[name] for name in names}
    assert (kept["decision"], kept["reviewer"], kept["decided_at"][:3]) == ("problem", "Ada <b>", "202")
    out = open_folder(str(served.out), "OUT")
    assert take_in(out) == 1
    assert take_in(out) == 0  # the same file again
    served.decide(id=served.ids[4], decision="accepted", reviewer="Ada <b>")  # written into the same file
    assert take_in(out) == 1
    found = decisions(out, row["explainer"]).images
    assert found[row["shard"], row["index"], row["content_sha256"], row["verdict"]] == "problem"
    assert found[other["shard"], other["index"], other["content_sha256"], other["verdict"]] == "accepted"
    table = DeltaTable(str(served.out / "qa")).to_pyarrow_table().to_pylist()
    assert {r["reviewer"] for r in table} == {"Ada <b>"}


def test_two_reviewers_are_both_kept_and_the_conflict_is_shown(served: Served) -> None:
    served.decide(id=served.ids[3], decision="problem", reviewer="ada")
    said = served.decide(id=served.ids[3], decision="accepted", reviewer="bob")
    assert said["conflict"]
    assert said["said"] == ["ada: problem", "bob: accepted"]
    page = served.client.get(f"/image/{served.ids[3]}").text
    assert "Conflict:" in page
    assert "ada: problem; bob: accepted" in page
    assert f'<li data-id="{served.ids[3]}"' in served.client.get("/images?state=conflict").text
    assert not served.decide(id=served.ids[3], decision="problem", reviewer="bob")["conflict"]
    assert "No record is so" in served.client.get("/images?state=conflict").text
    assert [r["reviewer"] for r in inbox(served.out)] == ["ada", "bob", "bob"]


def test_undo_takes_back_ones_own_word_alone(served: Served) -> None:
    (row,) = served.pages.rows.rows(served.ids[3:4])
    out, key = (
        open_folder(str(served.out), "OUT"),
        (row["shard"], row["index"], row["content_sha256"], row["verdict"]),
    )
    served.decide(id=served.ids[3], decision="accepted", reviewer="ada")
    served.decide(id=served.ids[3], decision="problem", reviewer="bob")
    assert served.decide(id=served.ids[3], decision="open", reviewer="bob")["said"] == ["ada: accepted"]
    take_in(out)
    assert decisions(out, row["explainer"]).images == {key: "accepted"}
    assert served.decide(id=served.ids[3], decision="open", reviewer="ada")["said"] == []
    take_in(out)
    assert decisions(out, row["explainer"]).images == {}


def test_progress_counts_what_is_reviewed_of_the_view(served: Served) -> None:
    ids = [int(i) for i in served.pages.rows.order(_view("verdict", "wrong"))[:3]]
    for number in ids:
        served.decide(id=number, decision="accepted", reviewer="ada")
    total = served.pages.rows.size(_view("verdict", "wrong"))
    assert f"3 of {total} reviewed" in served.client.get("/images?verdict=wrong").text
    open_ones = served.client.get("/images?verdict=wrong&state=open").text
    assert f"<strong>{total - 3}</strong>" in open_ones


def _view(column: str, value: str) -> Any:
    return View.of([(column, value)])


def test_another_server_on_the_same_out_is_heard(served: Served, serving: Callable[..., Served]) -> None:
    other = serving(served.out)
    served.decide(id=served.ids[3], decision="problem", reviewer="ada")
    assert "ada: problem" in other.client.get(f"/image/{served.ids[3]}").text
    assert other.decide(id=served.ids[3], decision="accepted", reviewer="bob")["conflict"]
    assert "bob: accepted" in served.client.get(f"/image/{served.ids[3]}").text
    assert len(inbox(served.out)) == 2
    again = serving(served.out)  # and one that starts later
    assert "ada: problem; bob: accepted" in again.client.get(f"/image/{served.ids[3]}").text


@pytest.mark.parametrize(
    "said",
    [
        {},
        [],
        "x",
        {"id": ROW},
        ADA | {"id": 10**9},
        ADA | {"id": "x"},
        ADA | {"decision": "maybe"},
        ADA | {"reviewer": " "},
        ADA | {"reviewer": "a" * 70000},
        {"cause": "none", "explainer": "x", "decision": "accepted", "reviewer": "a"},
    ],
)
def test_what_is_no_decision_is_refused(served: Served, said: Any) -> None:
    if isinstance(said, dict) and said.get("id") == ROW:
        said = said | {"id": served.ids[ROW]}
    answer = served.client.post("/decide", json=said)
    assert answer.status_code == 400
    assert not list(served.out.glob("qa-inbox/*"))


def test_a_server_that_only_reads_writes_nothing(audited: Path, serving: Callable[..., Served]) -> None:
    before = sorted((str(p), p.stat().st_mtime_ns) for p in audited.rglob("*"))
    reading = serving(audited, may_review=False)
    said = ADA | {"id": reading.ids[ROW]}
    assert reading.client.post("/decide", json=said).status_code == 403
    for page in ("/images", f"/image/{reading.ids[0]}", "/causes", "/class/1", "/export/csv"):
        assert reading.client.get(page).status_code == 200
    assert sorted((str(p), p.stat().st_mtime_ns) for p in audited.rglob("*")) == before


class Remote:
    """`camray serve --review` in a process of its own, and a browser that was let in."""

    def __init__(self, out: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "camray.cli", "serve", str(out), "--review"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.process.stdout
        self.url = self.process.stdout.readline().strip()
        self.browser = build_opener(HTTPCookieProcessor())
        self.browser.open(self.url).read()

    def decide(self, number: int, decision: str) -> bool:
        """Decide, and tell whether that was acknowledged."""
        body = json.dumps({"id": number, "decision": decision, "reviewer": "ada"}).encode()
        asked = Request(self.url.partition("?")[0] + "decide", body, {"content-type": "application/json"})
        try:
            with self.browser.open(asked) as answer:
                return json.loads(answer.read())["decision"] == decision
        except (OSError, ValueError):
            return False

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


def killed_amid(
    out: Path, seed: int, ids: list[int]
) -> tuple[list[tuple[int, str]], list[dict[str, Any]], int]:
    """Decide until a kill at a random moment: what was acknowledged, and what lies there afterwards.

    Also how many were at least acknowledged: the kill comes some milliseconds after so many.
    """
    draw, server = random.Random(seed), Remote(out)
    before = {path.name for path in (out / "qa-inbox").glob("*.json")}
    first, acknowledged = draw.randrange(12), list[tuple[int, str]]()
    kill = threading.Timer(draw.uniform(0.0, 0.05), server.kill)
    for number in draw.sample(ids, len(ids)):
        if len(acknowledged) == first:
            kill.start()
        decision = draw.choice(("accepted", "problem"))
        if not server.decide(number, decision):
            break
        acknowledged.append((number, decision))
    kill.join()
    return acknowledged, inbox(out, before), first


@pytest.mark.slow
def test_twenty_kills_lose_nothing_that_was_acknowledged(audited: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(audited, tmp_path / "out"))
    rows = Rows(*open_out(str(out)), {})
    ids = by_index(rows)[:250]
    known = {row["id"]: row["index"] for row in rows.rows(ids, ("index",))}
    rows.close()
    told = least = 0
    for seed in range(20):
        acknowledged, kept, first = killed_amid(out, seed, ids)
        index = {r["index"]: r["decision"] for r in kept}
        assert all(index.get(known[number]) == decision for number, decision in acknowledged)
        assert len(kept) - len(acknowledged) in (0, 1)  # saved, and killed before it could be said
        told, least = told + len(acknowledged), least + first
    assert told >= least > 50
    table = take_in(open_folder(str(out), "OUT"))
    assert table >= told
    print(f"{told} acknowledged, {table} kept")
