"""Loose files become shards: grouped once, and remembered.

Files are grouped where they are first seen, 256 to a group, and the grouping is kept in a small Delta table
(OUT/intake). A new file starts or joins a new group and never moves the others; a changed file gives its
group a new revision, hence a new version, and the group is done again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, write_deltalake

from camray.records import LooseFile, Shard
from camray.storage import Folder

INTAKE = "intake"
GROUP_SIZE = 256  # the cost of one changed file: at most this many images are done again

_SCHEMA = pa.schema(
    [
        ("root", pa.string()),
        ("group", pa.int64()),
        ("revision", pa.int64()),
        ("position", pa.int64()),
        ("path", pa.string()),
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

    def shard(self, root: str) -> Shard:
        """Give the shard it is for the rest of the flow."""
        content = "\n".join(f"{f.path}\t{f.size_bytes}\t{f.version}" for f in self.files)
        return Shard(
            uri=f"{root}#{self.number:06d}",
            format="files",
            size_bytes=sum(f.size_bytes for f in self.files),
            version=hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest(),
            files=self.files,
            root=root,
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

    A group is revised when a file of it changed. Files that are gone leave their group only when it has to
    be done anyway: their rows stay in the table as long as nothing else asks for the group.
    """
    now = {f.path: f for f in listed}
    seen: set[str] = set()
    groups: list[Group] = []
    new: list[Group] = []
    gone = 0
    for group in remembered:
        seen.update(f.path for f in group.files)
        present = tuple(now[f.path] for f in group.files if f.path in now)
        missing = len(group.files) - len(present)
        gone += missing
        unchanged = set(present) <= set(group.files)
        if unchanged and (not missing or is_committed(group.shard(root))):
            groups.append(group)
        elif present:
            revised = Group(group.number, group.revision + 1, present)
            groups.append(revised)
            new.append(revised)
    fresh = [f for f in listed if f.path not in seen]
    first = max((g.number for g in remembered), default=-1) + 1
    for number, start in enumerate(range(0, len(fresh), GROUP_SIZE), first):
        group = Group(number, 0, tuple(fresh[start : start + GROUP_SIZE]))
        groups.append(group)
        new.append(group)
    return Grouping(root, tuple(groups), tuple(new), gone)


def recall(out: Folder, root: str) -> list[Group]:
    """Read the remembered groups of one archive folder, each in its latest revision."""
    uri = out.child_uri(INTAKE)
    if not DeltaTable.is_deltatable(uri):
        return []
    table = DeltaTable(uri).to_pyarrow_dataset().to_table(filter=pc.field("root") == root)
    files: dict[tuple[int, int], list[tuple[int, LooseFile]]] = {}
    for row in table.to_pylist():
        entry = LooseFile(row["path"], row["size_bytes"], row["version"])
        files.setdefault((row["group"], row["revision"]), []).append((row["position"], entry))
    latest: dict[int, int] = {}
    for number, revision in files:
        latest[number] = max(revision, latest.get(number, -1))
    return [
        Group(number, latest[number], tuple(f for _, f in sorted(files[number, latest[number]])))
        for number in sorted(latest)
    ]


def remember(out: Folder, root: str, groups: Iterable[Group]) -> None:
    """Append new groups and revisions, in one transaction."""
    rows = [
        (root, g.number, g.revision, position, f.path, f.size_bytes, f.version)
        for g in groups
        for position, f in enumerate(g.files)
    ]
    if rows:
        columns = [
            pa.array(column, t) for column, t in zip(zip(*rows, strict=True), _SCHEMA.types, strict=True)
        ]
        write_deltalake(out.child_uri(INTAKE), pa.table(columns, schema=_SCHEMA), mode="append")
