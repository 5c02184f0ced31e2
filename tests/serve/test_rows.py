"""Filters, search and order: the same questions asked of the tables in Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deltalake import DeltaTable

from camray.errors import UsageError
from camray.ledger.out import open_out
from camray.serve.rows import COLUMNS, Rows, View
from tests.audit.report_world import NASTY

Row = dict[str, Any]


def truth(out: Path) -> list[Row]:
    """Every record with its verdict, joined in Python."""
    audit = DeltaTable(str(out / "audit")).to_pyarrow_table().to_pylist()
    known = {(r["shard"], r["index"]): r for r in audit}
    rows = DeltaTable(str(out / "records")).to_pyarrow_table().to_pylist()
    return [known[r["shard"], r["index"]] | r for r in rows]


@pytest.fixture(scope="module")
def rows(audited: Path) -> Iterator[Rows]:
    found = Rows(*open_out(str(audited)), {})
    yield found
    found.close()


ASKED: tuple[tuple[str, str, Callable[[Row], bool]], ...] = (
    ("verdict", "wrong", lambda r: r["verdict"] == "wrong"),
    ("verdict", "!=ok", lambda r: r["verdict"] != "ok"),
    ("flags", "border_heat", lambda r: "border_heat" in r["flags"]),
    ("flags", "!=border_heat", lambda r: "border_heat" not in r["flags"]),
    ("confidence", "<0.5", lambda r: r["confidence"] is not None and r["confidence"] < 0.5),
    ("confidence", ">=0.9", lambda r: r["confidence"] is not None and r["confidence"] >= 0.9),
    ("predicted_class", "2", lambda r: r["predicted_class"] == 2),
    ("correct", "false", lambda r: r["correct"] is False),
    ("error_code", "=", lambda r: r["error_code"] is None),
    ("error_code", "!=", lambda r: r["error_code"] is not None),
    ("predicted_label", "=<b>ring</b>", lambda r: r["predicted_label"] == "<b>ring</b>"),
    ("member", "~IMG-000012", lambda r: "img-000012" in r["member"]),
    ("q", "ring", lambda r: "ring" in f"{r['predicted_label']} {r['member']}".lower()),
    ("q", NASTY[1], lambda r: NASTY[1].lower() in r["member"].lower()),
    ("member", f"={NASTY[0]}", lambda r: r["member"] == NASTY[0]),
)


@pytest.mark.parametrize(("column", "value", "holds"), ASKED, ids=[f"{c} {v[:20]}" for c, v, _ in ASKED])
def test_a_filter_keeps_what_python_keeps(
    rows: Rows, audited: Path, column: str, value: str, holds: Callable[[Row], bool]
) -> None:
    wanted = sorted((r["shard"], r["index"]) for r in truth(audited) if holds(r))
    found = rows.rows(rows.order(View.of([(column, value)])).tolist())
    assert wanted
    assert sorted((r["shard"], r["index"]) for r in found) == wanted
    assert rows.size(View.of([(column, value)])) == len(wanted)


def test_the_order_is_by_the_column_with_nothing_last(rows: Rows, audited: Path) -> None:
    for sort, sign in (("confidence", 1), ("-margin", -1)):
        column = sort.removeprefix("-")
        found = [r[column] for r in rows.rows(rows.order(View.of([("sort", sort)])).tolist())]
        known = sorted((r[column] for r in truth(audited) if r[column] is not None), key=lambda v: sign * v)
        assert found[: len(known)] == known
        assert set(found[len(known) :]) <= {None}


def test_similar_images_come_by_hash_and_colours_the_image_itself_first(rows: Rows, audited: Path) -> None:
    known = [r for r in truth(audited) if r["image_hash"]]
    colours = [f"image_{name}" for name in ("mean", "std")]  # those that the table has
    spread = {name: np.std([r[name] for r in known if r[name] is not None]) for name in colours}
    one = known[17]

    def apart(row: Row) -> float:
        bits = (int(row["image_hash"], 16) ^ int(one["image_hash"], 16)).bit_count()
        return bits + 2 * float(sum(abs(row[name] - one[name]) / spread[name] for name in colours))

    with_colours = [r for r in known if r["image_mean"] is not None]
    wanted = [r["member"] for r in sorted(with_colours, key=apart)]
    (number,) = rows.order(View.of([("member", f"={one['member']}")])).tolist()
    found = rows.rows(rows.order(View.of([("like", str(number))])).tolist(), ("member",))
    assert [r["member"] for r in found][: len(wanted)] == wanted
    assert wanted[0] == one["member"]
    narrower = rows.order(View.of([("like", str(number)), ("verdict", "wrong")])).tolist()
    shown = [r["member"] for r in rows.rows(narrower, ("member",))]
    assert shown[:5] == [r["member"] for r in sorted(with_colours, key=apart) if r["verdict"] == "wrong"][:5]
    for nothing in ("12", "x"):
        with pytest.raises(UsageError):
            rows.order(View.of([("like", nothing), ("sort", "" if nothing == "12" else "like")]))


@pytest.mark.parametrize(
    "text", ["' or 1=1 --", "'; drop table rows; --", '" or true or "', "$v0", "?", "%", "\\", "\0", "0'0"]
)
def test_no_text_of_a_person_becomes_sql(rows: Rows, audited: Path, text: str) -> None:
    known = truth(audited)
    for column in ("member", "label", "error_code", "flags"):
        assert rows.size(View.of([(column, f"={text}")])) == sum(r[column] == text for r in known)
    low = text.lower()
    assert rows.size(View.of([("member", f"~{text}")])) == sum(low in r["member"].lower() for r in known)
    assert rows.total == len(known)


@pytest.mark.parametrize(
    ("name", "value"),
    [("id", "1"), ("1=1 or member", "x"), ("sort", "member; drop table rows"), ("state", "x"),
     ("heatmap", "1"), ("confidence", "much"), ("predicted_class", "1.5"), ("correct", "perhaps"),
     ("confidence", "~0.5")],
)  # fmt: skip
def test_what_is_no_column_or_value_is_refused(name: str, value: str) -> None:
    with pytest.raises(UsageError):
        View.of([(name, value)])


def test_counts_are_of_the_view(rows: Rows, audited: Path) -> None:
    known = [r for r in truth(audited) if r["correct"] is False]
    counts = rows.counts(View.of([("correct", "false")]), ("verdict", "flags"))
    assert dict(counts["verdict"]) == {v: sum(r["verdict"] == v for r in known) for v, _ in counts["verdict"]}
    assert sum(n for _, n in counts["verdict"]) == len(known)
    assert dict(counts["flags"])["wrong"] == sum("wrong" in r["flags"] for r in known)


def test_every_column_can_be_filtered_and_sorted(rows: Rows) -> None:
    for column in COLUMNS:
        assert len(rows.order(View.of([(column, "="), ("sort", column)]))) <= rows.total
