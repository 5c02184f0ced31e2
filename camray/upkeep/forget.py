"""`camray forget OUT --member NAME`: take an image out of all of OUT. Says what would go; --yes does it.

* its rows in the records and in the scores of comparisons: their files are written again without them, and
  the commit says that the shards have fewer members: the accounting holds, nothing is explained again
* its overlays, the canary's copy of its answers, its rows in `audit`, `looks` and `qa`, decisions
* the pages of the report and of comparisons, and the sums of the audit, which are made anew
* every old version of these tables, and with them all travel back in time

What it cannot take out it names: the log and other texts in which the name still stands. An image that stays
in the archive comes back when its shard changes, or with another explainer.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import write_deltalake

from camray.compare.panel import SCORES
from camray.errors import ExitCode, UsageError, printable
from camray.ledger import log
from camray.ledger.committed import owner_of, parse_name
from camray.ledger.hold import hold
from camray.ledger.out import (
    AUDIT,
    CARRIED,
    INBOX,
    INTAKE,
    LOOKS,
    OVERLAYS,
    QA,
    REPORT,
    mask_beside,
    open_out,
)
from camray.ledger.pack import unpack
from camray.ledger.parts import FOOTER_KEY
from camray.ledger.runs import new_run_id
from camray.ledger.side import as_side
from camray.ledger.sink import counts, write_records
from camray.ledger.table import RECORDS, Kind, Table
from camray.records import Receipt
from camray.storage import Folder
from camray.upkeep.prune import write_pages
from camray.upkeep.status import committed_shards

_TEXTS = (".json", ".js", ".html", ".txt", ".prom")


@dataclass(frozen=True, slots=True)
class Image:
    """The image that goes, with its frames (`member#0`, ...): of every shard, or of one."""

    member: str
    shard: str | None

    @property
    def names(self) -> str:
        """What it is called, as a pattern."""
        return f"^(?:{re.escape(self.member)}(?:#[0-9]+)?)$"

    @property
    def rows(self) -> ds.Expression:
        """Where its rows are."""
        mine = pc.match_substring_regex(ds.field("member"), self.names)
        return mine if self.shard is None else mine & (ds.field("shard") == self.shard)

    @property
    def others(self) -> ds.Expression:
        """Where the rows of all others are."""
        return ~self.rows | ds.field("member").is_null()

    def is_of(self, row: Mapping[str, Any]) -> bool:
        """Tell whether a row of JSON is about it."""
        is_mine = re.match(self.names, str(row.get("member"))) is not None
        return is_mine and self.shard in (None, row.get("shard"))


@dataclass(frozen=True, slots=True)
class Found:
    """What OUT holds of it: files of tables, with the rows in each; pictures; what it is known by."""

    files: Mapping[str, Counter[str]]  # folder of the table -> path of the file -> rows
    overlays: frozenset[str]
    contents: frozenset[str]  # SHA-256
    shards: frozenset[str]

    @property
    def rows(self) -> int:
        """How many rows of records and scores."""
        return sum(sum(files.values()) for files in self.files.values())


def find(out: Folder, image: Image) -> Found:
    """Look the image up in the tables.

    Raises:
        UsageError: a table holds files that camray did not write.
    """
    files: dict[str, Counter[str]] = {}
    overlays, contents, shards = set[str](), set[str](), set[str]()
    for kind, table in _tables(out):
        for owner in {owner for owner, _key in committed_shards(table)}:
            table.shards(owner)  # raises where another tool wrote
        columns = ["shard", "content_sha256", *["overlay_path"] * (kind is RECORDS)]
        rows = table.dataset().to_table(columns=[*columns, "__filename"], filter=image.rows)
        files[kind.folder] = Counter(rows["__filename"].to_pylist())
        shards |= set(rows["shard"].to_pylist())
        contents |= set(filter(None, rows["content_sha256"].to_pylist()))
        if kind is RECORDS:
            overlays |= set(filter(None, rows["overlay_path"].to_pylist()))
    return Found(files, frozenset(overlays), frozenset(contents), frozenset(shards))


def remove(out: Folder, image: Image, found: Found, run_id: str) -> None:
    """Take it out. The records go last: where this is cut short, the same command finds the rest by them."""
    for path in sorted(found.overlays):
        for picture in (path, mask_beside(path)):
            if path.startswith(f"{OVERLAYS}/") and out.exists(picture):
                out.delete(picture)
    for folder in (AUDIT, QA, LOOKS):
        if log.exists(out, folder):
            judged = log.opened(out, folder)
            kept = log.dataset(out, folder, judged).scanner(filter=image.others).to_reader()
            write_deltalake(judged, kept, mode="overwrite")  # a `delete` would write the name into the log
            judged.vacuum(0, dry_run=False, enforce_retention_duration=False, full=True)
    for entry in out.entries(CARRIED):
        out.delete(f"{CARRIED}/{entry.path}")  # sums with the image in them; the next audit makes them anew
    for path, kept in _texts_without(out, image, found):
        if kept is None:
            out.delete(path)
        else:
            out.write(path, kept)
    for kind, table in reversed(list(_tables(out))):
        _rewrite(out, kind, table, found.files[kind.folder], image, run_id)


def _tables(out: Folder) -> Iterator[tuple[Kind, Table]]:
    for kind in (RECORDS, SCORES):
        table = Table(out, kind)
        if table.delta is not None:
            yield kind, table


def _rewrite(
    out: Folder, kind: Kind, table: Table, files: Mapping[str, int], image: Image, run_id: str
) -> None:
    """Write the files again without the image, commit them, and remove every file that is not current."""
    assert table.delta is not None
    by_owner: defaultdict[str, list[str]] = defaultdict(list)
    for path in files:
        by_owner[owner_of(path)].append(path)
    said = committed_shards(table)
    for owner, paths in by_owner.items():
        new: dict[str, Receipt] = {}
        shards: dict[str, dict[str, Any]] = {}
        for path in paths:
            key = parse_name(path)[0]
            before = shards.get(key, said[owner, key])
            new[path], shards[key] = _without(out, kind, owner, path, image, before)
        table.rewrite(owner, run_id, new, list(shards.values()))
    table.delta.vacuum(0, dry_run=False, enforce_retention_duration=False, full=True)


def _without(
    out: Folder, kind: Kind, owner: str, path: str, image: Image, said: Mapping[str, Any]
) -> tuple[Receipt, dict[str, Any]]:
    """Write one file again; give its receipt, and what now holds of its shard."""
    old = pq.read_table(pa.BufferReader(out.read(f"{kind.folder}/{path}")), use_threads=False)
    kept = old.filter(image.others)
    kept = pa.table(
        [kept[f.name] if f.name in kept.column_names else pa.nulls(len(kept), f.type) for f in kind.schema],
        kind.schema,
    )
    note = json.loads((old.schema.metadata or {}).get(FOOTER_KEY, b"{}"))
    key, content, chunk = parse_name(path)
    receipt = write_records(
        out, owner, f"{key}-{content}", chunk, kept, chunk_size=note.get("chunk_size", 0), kind=kind
    )
    was, now = counts(old), counts(kept)
    failed = Counter(said["failed"])
    failed.subtract(was["failed"])
    failed.update(now["failed"])
    fewer = {name: said[name] - was[name] + now[name] for name in ("ok", "skipped")}
    fewer |= {"failed": {code: n for code, n in failed.items() if n}}
    members = fewer["ok"] + fewer["skipped"] + sum(fewer["failed"].values())
    return receipt, {**said, **fewer, "members": members}


def _texts_without(out: Folder, image: Image, found: Found) -> Iterator[tuple[str, bytes | None]]:
    """Give the texts that must change: path, and the new content; None where the file goes."""
    for folder in (f"{REPORT}/data", "comparisons"):  # the rest of the report is written anew
        yield from ((f"{folder}/{e.path}", None) for e in out.entries(folder))
    for folder in (INBOX, "canary"):
        for entry in out.entries(folder):
            path = f"{folder}/{entry.path}"
            try:
                tree = json.loads(out.read(path))
            except ValueError:
                continue  # nobody reads it either
            if folder == INBOX and isinstance(tree, dict) and isinstance(tree.get("decisions"), list):
                kept = [row for row in tree["decisions"] if not image.is_of(row)]
                yield path, json.dumps(tree | {"decisions": kept}).encode()
            elif folder != INBOX:
                answers = tree if isinstance(tree, list) else tree["answers"]  # a list: of an earlier camray
                kept = [row for row in answers if not _is_answer(row, image, found)]
                yield path, as_side({"explainer": entry.path.partition(".")[0], "answers": kept})


def _is_answer(row: Mapping[str, Any], image: Image, found: Found) -> bool:
    return row["content_sha256"] in found.contents and (image.shard is None or row["shard"] == image.shard)


def still_named(out: Folder, image: Image) -> list[str]:
    """List what still holds the name: texts of OUT, and the list of loose files that groups stand on."""
    names = {image.member.encode(), json.dumps(image.member)[1:-1].encode()}
    texts = [e.path for e in out.entries() if e.path.endswith(_TEXTS)]
    named = [path for path in texts if any(name in out.read(path) for name in names)]
    if log.exists(out, INTAKE):
        paths = log.dataset(out, INTAKE, log.opened(out, INTAKE)).to_table(columns=["path"])["path"]
        named += [INTAKE] * (image.member.encode() in paths.to_pylist())
    return named


def print_forget(place: str, member: str, shard: str | None, do_it: bool, as_json: bool) -> ExitCode:
    """Say what goes, and take it out where that was asked for.

    Raises:
        UsageError: no row has that name, or a table is another camray's.
        OutputLockedError: a run is at work.
    """
    out, _ = open_out(place)
    image = Image(member, shard)
    found = find(out, image)
    if not found.rows:
        where = "OUT" if shard is None else printable(shard)
        raise UsageError(
            "--member", f"{where} holds no row of {printable(member)!r}", "see the column `member`"
        )
    if do_it:
        for _, table in _tables(out):
            table.check_columns()
        run_id = new_run_id()
        with hold(out, run_id, alone=True):
            for _, table in _tables(out):
                table.create()  # of an earlier camray: with the columns that the rewritten files have
            for kind, table in _tables(out):
                for path, parts in table.packs(find(out, image).files[kind.folder]).items():
                    unpack(table, owner_of(path), (part.id.partition("-")[0] for part in parts))
            found = find(out, image)  # again: a run that ended before the hold may have written of it
            remove(out, image, found, run_id)
            write_pages(out)
    facts: dict[str, Any] = {
        "rows": found.rows,
        "overlays": len(found.overlays),
        "shards": sorted(found.shards),
        "done": do_it,
    }
    if do_it:
        facts["still_named"] = still_named(out, image)
    print(json.dumps(facts) if as_json else "\n".join(_lines(facts)))
    return ExitCode.DONE


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    verb = "removed" if facts["done"] else "would remove"
    yield f"{verb} {facts['rows']:,} rows and {facts['overlays']:,} overlays, in"
    yield from (f"  {printable(shard)}" for shard in facts["shards"])
    if not facts["done"]:
        yield "also: pages of reports and comparisons, old versions of the tables, decisions about it"
        yield "nothing was touched; --yes does it"
        return
    yield from (f"still named in {path}" for path in facts["still_named"])
    yield "`camray report OUT` writes the pages of the audit anew"
    yield "take it out of the archive too: it comes back when its shard changes, or with another explainer"
