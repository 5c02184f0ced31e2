"""The page of `camray diff`: what changed, by class, and the worst pairs of pictures, in one file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from camray.audit.templates import templates
from camray.config import Explainer
from camray.ledger.committed import PARTITION
from camray.ledger.table import Table
from camray.records import RECORD_SCHEMA
from camray.serve.diff import Difference, Pair, answer
from camray.serve.pictures import Pictures
from camray.storage import Folder


@dataclass(frozen=True, slots=True)
class Card:
    """One image under both: `pictures` are data URIs, or nothing where there is no heatmap."""

    member: str
    label: str
    is_broken: bool
    answers: tuple[str, str]
    pictures: tuple[str, str]


def write_page(
    to: str, out: Folder, table: Table, found: Difference, shown: Sequence[Pair], what: Sequence[Explainer]
) -> None:
    """Write the page to a file of this machine."""
    page = templates("camray.serve").get_template("diff.html.j2")
    text = page.render(found=found, cards=_cards(out, table, found, shown), what=what)
    Path(to).parent.mkdir(parents=True, exist_ok=True)
    Path(to).write_text(text, encoding="utf-8")


def _cards(out: Folder, table: Table, found: Difference, shown: Sequence[Pair]) -> list[Card]:
    sides = [_pictures(out, table, owner, shown) for owner in (found.a, found.b)]
    cards = []
    for number, pair in enumerate(shown):
        said = tuple(f"{answer(pair, s)} {_share(pair[f'confidence_{s}'])}" for s in "ab")
        broken = bool(pair["correct_a"]) and pair["correct_b"] is False
        pictures = sides[0][number], sides[1][number]
        name = pair["member_a"] or pair["shard"]
        cards.append(Card(name, pair["label_a"] or "", broken, (said[0], said[1]), pictures))
    return cards


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _pictures(out: Folder, table: Table, owner: str, shown: Sequence[Pair]) -> list[str]:
    """Draw one explainer's maps of the shown images, as data URIs."""
    wanted = pc.field("content_sha256").isin(sorted({p["content_sha256"] for p in shown}))
    rows = table.dataset(owner).to_table(columns=RECORD_SCHEMA.names, filter=wanted).to_pylist()
    known = {(r["shard"], r["index"], r["content_sha256"]): r | {PARTITION: owner} for r in reversed(rows)}
    records = [known[p["shard"], p["index"], p["content_sha256"]] for p in shown]
    order = sorted(range(len(records)), key=lambda i: (records[i]["run_id"], records[i]["shard"]))
    drawn = Pictures(out).draw_all([records[i] for i in order], {})
    uris = {i: "data:image/jpeg;base64," + base64.b64encode(p.jpeg).decode() if p else ""
            for i, p in zip(order, drawn, strict=True)}  # fmt: skip
    return [uris[i] for i in range(len(records))]
