"""`camray verify OUT`: every committed member accounted for, every file whole, every overlay there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Set
from functools import partial
from typing import Any

import pyarrow as pa

from camray.compare.panel import SCORES
from camray.errors import ExitCode, UsageError, printable
from camray.ledger.committed import RecordFile, owner_of, parse_name
from camray.ledger.out import EXPLAINERS, PANELS, overlay_folder, pruned_runs
from camray.ledger.pack import intact
from camray.ledger.table import RECORDS, Kind, Table
from camray.records import Status
from camray.storage import Folder
from camray.upkeep.beside import find_beside, find_nothing_said
from camray.upkeep.evidence import look_at_chain
from camray.upkeep.since import Since, since
from camray.upkeep.status import committed_shards, open_either

_COLUMNS = ["run_id", "member", "index", "status", "error_code", "target_class"]
_COLUMNS += ["overlay_path", "overlay_size", "heatmap", "heat_h", "heat_w"]
Said = dict[tuple[str, str], dict[str, Any]]  # (explainer or panel, shard key) -> what its commit said
SizeOf = Callable[[str], int | None]  # of an overlay, in bytes
Check = Callable[[dict[str, Any], list[RecordFile]], Iterator[str]]  # of one shard: what was said, its files


def find_problems(out: Folder, table: Table, new: Since | None = None) -> Iterator[str]:
    """Yield each problem of the records in one line; nothing when they are sound. `new`: only what is new."""
    pruned = pruned_runs(out)

    def check_of(explainer: str) -> Check:
        overlays = partial(_size_of, out) if new else _overlays(out, explainer).get
        reader = _Reader(out, RECORDS, table.columns)
        return lambda said, files: _check_shard(reader, said, files, overlays, pruned)

    return _problems(out, table, said_since(table, new), EXPLAINERS, check_of, new is None)


def find_score_problems(out: Folder, table: Table, new: Since | None = None) -> Iterator[str]:
    """Yield each problem of the scores of comparisons in one line."""

    def check_of(_panel: str) -> Check:
        return partial(_check_scores, _Reader(out, SCORES, table.columns))

    return _problems(out, table, said_since(table, new), PANELS, check_of, new is None)


def said_since(table: Table, new: Since | None) -> Said:
    """Give what commits said of the shards that are there; `new`: of those that gained files since."""
    if new is None or table.version is None:
        return committed_shards(table)
    try:
        keys = {(owner_of(path), parse_name(path)[0]) for path in new.added(table.kind.folder)}
    except ValueError:  # another tool's file: `Table.shards` names it
        return committed_shards(table)
    entries = table.version - new.versions.get(table.kind.folder, -1)
    said = committed_shards(table, entries)
    if keys - set(said):
        said = committed_shards(table)
    return {key: said[key] for key in keys if key in said}


def _problems(
    out: Folder,
    table: Table,
    said: Said,
    descriptions: str,
    check_of: Callable[[str], Check],
    all_of_it: bool,
) -> Iterator[str]:
    """Go through what was committed, owner by owner (explainers or panels), shard by shard."""
    for owner in sorted({owner for owner, _key in said}):
        if not out.exists(f"{descriptions}/{owner}.json"):
            yield f"{descriptions}/{owner}.json is missing"
        check = check_of(owner)
        try:
            shards = table.shards(owner)
        except UsageError as error:
            yield str(error)
            continue
        unaccounted = set(shards) if all_of_it else set()
        own = [(shards.get(key, []), key, s) for (o, key), s in said.items() if o == owner]
        for files, key, statement in sorted(own, key=lambda one: (one[0][0].path if one[0] else "", one[1])):
            unaccounted.discard(key)
            if files:
                yield from check(statement, files)
            else:
                what = table.kind.folder.removesuffix("s")
                yield f"shard {statement['uri']}: its {what} files are not in the table"
        yield from (
            f"shard {key} is in the table but no commit accounts for it" for key in sorted(unaccounted)
        )


def print_verify(place: str, as_json: bool, run_id: str | None = None, with_chain: bool = False) -> ExitCode:
    """Print the problems, or that there are none; exit 5 where there are any.

    `run_id`: only what this run, and those after it, wrote; `with_chain`: also the evidence of the logs.

    Raises:
        UsageError: OUT has no such run.
    """
    out, table, scores = open_either(place)
    new = since(out, run_id) if run_id is not None else None
    problems = [*find_problems(out, table, new), *find_score_problems(out, scores, new)]
    problems += find_beside(out, table, new)
    said = said_since(table, new) | said_since(scores, new)
    if new is None:
        problems += find_nothing_said(out, len(said))
    members = sum(int(s["members"]) for s in said.values())
    evidence: dict[str, str] = {}
    for one in (table, scores) if with_chain else ():
        found = look_at_chain(out, one)
        problems += found.problems
        evidence |= {one.kind.folder: found.said} if found.said else {}
    if as_json:
        facts = {"shards": len(said), "members": members, "problems": problems}
        print(json.dumps(facts | {"chain": evidence} if with_chain else facts))
    else:
        for folder, what in evidence.items():
            print(f"{folder}: {what}")
        for problem in problems:
            print(printable(problem, 500))
        verdict = f"{len(problems):,} problems" if problems else "all accounted for"
        print(f"{len(said):,} shards, {members:,} members: {verdict}")
    return ExitCode.GATE if problems else ExitCode.DONE


def _check_shard(
    reader: _Reader, said: dict[str, Any], files: list[RecordFile], overlays: SizeOf, pruned: frozenset[str]
) -> Iterator[str]:  # fmt: skip
    """Compare what the commit said of a shard with what its files hold."""
    where = f"shard {said['uri']}"
    members: dict[int, tuple[str, str | None]] = {}
    seen: Counter[tuple[int, int | None, int | None]] = Counter()
    for file in files:
        try:
            table = reader.rows(file)
            later = [name for name in ("detection",) if name in table.column_names]  # not in files of before
            rows = table.select([*_COLUMNS, *later]).to_pylist()
        except Exception as error:  # noqa: BLE001 - damage makes readers raise whatever they like
            yield f"{where}: {file.path}: {printable(str(error), 160)}"
            return
        for row in rows:
            if row["member"] is None:
                continue
            members[row["index"]] = row["status"], row["error_code"]
            seen[row["index"], row["target_class"], row.get("detection")] += 1
            yield from _check_row(where, row, overlays, pruned)
    repeated = sum(n - 1 for n in seen.values())
    if repeated:
        yield f"{where}: {repeated} members have more than one row for the same class"
    counts = Counter(status for status, _ in members.values())
    failed = Counter(code for status, code in members.values() if status == Status.FAILED)
    refused = sum(said["failed"].values())
    expected = {Status.OK: said["ok"], Status.SKIPPED: said["skipped"], Status.FAILED: refused}
    for status, count in expected.items():
        if counts[status] != count:
            yield f"{where}: {counts[status]} rows are {status}, the commit says {count}"
    if dict(failed) != said["failed"]:
        yield f"{where}: failures by code are {dict(failed)}, the commit says {said['failed']}"


def _check_scores(reader: _Reader, said: dict[str, Any], files: list[RecordFile]) -> Iterator[str]:
    for file in files:
        try:
            reader.rows(file)
        except Exception as error:  # noqa: BLE001 - as above
            yield f"shard {said['uri']}: {file.path}: {printable(str(error), 160)}"


def _check_row(where: str, row: dict[str, Any], overlays: SizeOf, pruned: frozenset[str]) -> Iterator[str]:
    path = None if row["run_id"] in pruned else row["overlay_path"]
    size = 0 if path is None else overlays(path)
    if path is not None and not size:
        yield f"{where}: overlay of {row['member']} is missing or empty: {path}"
    elif path is not None and row["overlay_size"] not in (None, size):
        told = f"{size} bytes, drawn with {row['overlay_size']}"
        yield f"{where}: overlay of {row['member']} is another: {path}: {told}"
    if row["heatmap"] is not None and len(row["heatmap"]) != (row["heat_h"] or 0) * (row["heat_w"] or 0):
        yield f"{where}: heatmap of {row['member']} has {len(row['heatmap'])} values"


class _Reader:
    """Reads files whole, and gives a shard's rows of each; a pack is read once for all shards in it."""

    def __init__(self, out: Folder, kind: Kind, columns: Set[str]) -> None:
        self._out, self._kind, self._columns = out, kind, columns
        self._last: tuple[str, pa.Table] | None = None

    def rows(self, file: RecordFile) -> pa.Table:
        """Give the rows; raises where the file is not as it was committed."""
        if self._last is None or self._last[0] != file.path:
            self._last = None
            self._last = file.path, intact(self._out, file, self._kind, self._columns)
        return self._last[1].slice(file.first, file.rows)


def _size_of(out: Folder, path: str) -> int | None:
    found: int | None = out.fs.get_file_info(out.at(path)).size
    return found


def _overlays(out: Folder, explainer: str) -> dict[str, int]:
    """List the overlays of one explainer: path relative to OUT -> bytes."""
    folder = overlay_folder(explainer)
    return {f"{folder}/{entry.path}": entry.size_bytes for entry in out.entries(folder)}
