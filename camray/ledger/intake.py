"""Loose files become shards: grouped once, and remembered.

Files are grouped where they are first seen, 256 to a group, and the grouping is kept in a small Delta table
(OUT/intake). A new file starts or joins a new group and never moves the others; a changed file gives its
group a new revision, hence a new version, and the group is done again. A file that is not listed, gone or
left out by a filter, stays in its group: where the group has to be done it is left unread.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from camray.errors import IncompleteError
from camray.ledger import log
from camray.ledger.out import INTAKE
from camray.records import UNSEEN, LooseFile, Shard
from camray.storage import Folder

GROUP_SIZE = 256  # the cost of one changed file: at most this many images are done again

_SCHEMA = pa.schema(
    [
        ("root", pa.string()),
        ("group", pa.int64()),
        ("revision", pa.int64()),
        ("position", pa.int64()),
        ("path", pa.binary()),  # as the disk spells it: not every name is UTF-8
        ("size_bytes", pa.int64()),
        ("version", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Group:
    """One remembered group of loose files, in reading order."""

    number: int
    revision: int
    files: tuple[LooseFile, ...]
    present: tuple[int, ...] | None = None  # positions of the files to read; None: all

    def shard(self, root: str, place: str = "") -> Shard:
        """Give the shard it is for the rest of the flow; `place`: where the files lie, if not at `root`."""
        content = "\n".join(f"{f.path}\t{f.size_bytes}\t{f.version}" for f in self.files)
        return Shard(
            uri=f"{root}#{self.number:06d}",
            format="files",
            size_bytes=sum(f.size_bytes for f in self.files),
            version=hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest(),
            files=self.files,
            root=place or root,
            selection=self.present,
        )


@dataclass(frozen=True, slots=True)
class Grouping:
    """What intake decided: every group to consider, and which of them are not remembered yet."""

    root: str
    groups: tuple[Group, ...]
    new: tuple[Group, ...]
    gone: int  # files remembered earlier that the archive no longer lists


def group_files(
    root: str,
    listed: Sequence[LooseFile],
    remembered: Sequence[Group],
    is_committed: Callable[[Shard], bool],
) -> Grouping:
    """Put listed files into groups: the remembered ones where possible, new ones for the rest.

    A group is revised when a file of it changed. Files that are not listed cost nothing where their group
    is committed; where it is not, it is done without them.
    """
    known = {f.path: f for group in remembered for f in group.files}
    now = {f.path: _as_remembered(f, known) for f in listed}
    seen: set[str] = set()
    groups: list[Group] = []
    new: list[Group] = []
    gone = 0
    for group in remembered:
        seen.update(f.path for f in group.files)
        present = tuple(i for i, f in enumerate(group.files) if f.path in now)
        missing = len(group.files) - len(present)
        gone += missing
        if any(_facts(now[group.files[i].path]) != _facts(group.files[i]) for i in present):
            files = tuple(now[group.files[i].path] for i in present)
            revised = Group(group.number, group.revision + 1, files)
            groups.append(revised)
            new.append(revised)
            continue
        same = replace(group, files=tuple(now.get(f.path, f) for f in group.files))  # as listed today
        if not missing or is_committed(same.shard(root)):
            groups.append(same)
        elif present:
            groups.append(replace(same, present=present))
    fresh = [f for f in listed if f.path not in seen]
    first = max((g.number for g in remembered), default=-1) + 1
    for number, start in enumerate(range(0, len(fresh), GROUP_SIZE), first):
        group = Group(number, 0, tuple(fresh[start : start + GROUP_SIZE]))
        groups.append(group)
        new.append(group)
    return Grouping(root, tuple(groups), tuple(new), gone)


def _as_remembered(file: LooseFile, known: Mapping[str, LooseFile]) -> LooseFile:
    """Take a file that gave no answer as it was: one bad night replaces no record."""
    before = known.get(file.path) if file.version.startswith(UNSEEN) else None
    return replace(file, size_bytes=before.size_bytes, version=before.version) if before else file


def _facts(file: LooseFile) -> tuple[str, int, str]:
    """Give what is remembered of a file; the version tells all that can change."""
    return file.path, file.size_bytes, file.version


def recall(out: Folder, root: str) -> list[Group]:
    """Read the remembered groups of one archive folder, each in its latest revision."""
    if not log.exists(out, INTAKE):
        return []
    known = log.dataset(out, INTAKE, log.opened(out, INTAKE))
    order = [(name, "ascending") for name in ("group", "revision", "position")]
    rows = known.to_table(filter=pc.field("root") == root).sort_by(order).to_pylist()
    latest: dict[int, Group] = {}
    for (number, revision), members in groupby(rows, key=itemgetter("group", "revision")):
        files = (LooseFile(os.fsdecode(row["path"]), row["size_bytes"], row["version"]) for row in members)
        latest[number] = Group(number, revision, tuple(files))
    return list(latest.values())


def remember(out: Folder, root: str, groups: Iterable[Group]) -> None:
    """Append new groups and revisions, in one transaction; groups that are remembered already are left out.

    Raises:
        IncompleteError: another run grouped files of this archive since `groups` was made.
    """
    due = list(groups)
    if not due:
        return
    if not log.exists(out, INTAKE):
        log.patiently(out, lambda: DeltaTable.create(out.child_uri(INTAKE), _SCHEMA, mode="ignore"))
    table = log.opened(out, INTAKE)  # what was written after this moment makes the append below fail
    latest = {g.number: g for g in recall(out, root)}
    due = [g for g in due if g.number not in latest or not _is_same(g, latest[g.number])]
    if any(g.number in latest and g.revision <= latest[g.number].revision for g in due):
        raise IncompleteError(_OVERTAKEN)
    rows = [
        (root, g.number, g.revision, position, os.fsencode(f.path), f.size_bytes, f.version)
        for g in due
        for position, f in enumerate(g.files)
    ]
    if not rows:
        return
    columns = [pa.array(column, t) for column, t in zip(zip(*rows, strict=True), _SCHEMA.types, strict=True)]
    claim = Transaction(root, (table.transaction_version(root) or 0) + 1)
    try:
        write_deltalake(
            table, pa.table(columns, schema=_SCHEMA), mode="append",
            commit_properties=CommitProperties(app_transactions=[claim]),
        )  # fmt: skip
    except CommitFailedError:
        raise IncompleteError(_OVERTAKEN) from None
    out.flush([f"{INTAKE}/{entry.path}" for entry in out.entries(INTAKE)])


def _is_same(one: Group, other: Group) -> bool:
    facts = ([_facts(f) for f in g.files] for g in (one, other))
    return one.revision == other.revision and next(facts) == next(facts)


_OVERTAKEN = "another run grouped files of this archive at the same time; the same command resumes"
