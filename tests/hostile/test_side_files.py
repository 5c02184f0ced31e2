"""Sidecars, metadata and lists damaged at random, by seed: nothing crashes, no run ends, no image is lost.

`pytest -m slow` draws CAMRAY_FUZZ_SIDE_FILES (500), the quick suite a few. What a line says that was not
touched must still count: it is found by the text itself, not by camray.
"""

from __future__ import annotations

import io
import json
import os
import random
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from camray.archive.listing import Listing, list_archive
from camray.archive.members import read_members
from camray.config import ArchiveConfig
from camray.errors import ShardError, UsageError
from camray.records import Member, Shard, Status, member_array
from tests.archive.makers import png, tar_of
from tests.hostile.pack import INJECTIONS

COUNT = int(os.environ.get("CAMRAY_FUZZ_SIDE_FILES", "500"))
NAMES = [f"{i}.png" for i in range(6)]
TOKENS = [
    b"1" + b"0" * 400, b"9" * 6000, b"1e400", b"NaN", b"-Infinity", b"-1", b"null", b"true", b"[]", b"{}",
    b'""', b"[" * 3000, b'{"a":' * 3000, b'"', b"\n", b"\r", b"\0", b",", b";", b"\t", b"#", b"\xff",
    b"\xef\xbb\xbf", b"\xff\xfe", b"\\ud800", b"\\", b"../", b"/", b"http://h/1.png", b"%00", b" ", b"C:\\x",
    b"s3://b/x?endpoint_override=127.0.0.1:1", b"data:image/png;base64,AAAA", b"x" * 5000,
    b"label", b"bbox", b"file_name", *(text.encode("utf-8", "surrogatepass") for text in INJECTIONS),
]  # fmt: skip
SIDECAR = {
    "json": json.dumps({"label": "cat", "bbox": [1, 2, 3, 4], "objects": {"bbox": [[1, 1, 2, 2]]}}).encode(),
    "cls": b"3\n",
    "txt": b"tabby cat\n",
}
ROWS = [
    {"file_name": n, "label": f"class {i}", "bbox": [i, 1, 2, 3], "mask": None} for i, n in enumerate(NAMES)
]


def csv_bytes(separator: str) -> bytes:
    rows = [separator.join(("file_name", "label", "x", "y", "w", "h"))]
    rows += [separator.join((n, f"class {i}", str(i), "1", "2", "3")) for i, n in enumerate(NAMES)]
    return "\n".join(rows).encode()


def parquet_bytes() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), file, compression="none")
    return file.getvalue()


TABLES = {
    "csv": csv_bytes(","),
    "tsv": csv_bytes("\t"),
    "txt": "\n".join(f"{n}\tclass {i}" for i, n in enumerate(NAMES)).encode(),
    "jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
    "parquet": parquet_bytes(),
}
KINDS = [
    *((f"sidecar {place}", ending) for place in ("tar", "zip", "loose") for ending in SIDECAR),
    *(("metadata", ending) for ending in ("csv", "jsonl", "parquet")),
    *(("metadata zip", ending) for ending in ("csv", "jsonl", "parquet")),
    *(("list", ending) for ending in TABLES),
]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Change a few places: bits, tokens, cuts, repeats."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((0, 0, 1, 4, 20)))
        what = rng.randrange(4)
        if what == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        elif what == 1:
            data = data[:at]
        else:
            data = data[:at] + rng.choice(TOKENS) * rng.choice((1, 1, 3)) + data[end:]
    return data


def made(kind: str, ending: str, data: bytes, folder: Path) -> Path:
    """Write an archive of six images with this side file, and give what to read."""
    images = [(name, png(i)) for i, name in enumerate(NAMES)]
    beside = f"3.{ending}" if kind.startswith("sidecar") else f"metadata.{ending}"
    place, _, packed = kind.partition(" ")
    if packed in ("tar", "zip"):
        files = [*images[:4], (beside, data), *images[4:]]
        path = folder / f"a.{packed}"
        if packed == "tar":
            path.write_bytes(tar_of(files))
        else:
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in files:
                    archive.writestr(name, content)
        return path
    for name, content in images:
        (folder / name).write_bytes(content)
    (folder / (f"l.{ending}" if place == "list" else beside)).write_bytes(data)
    return folder / f"l.{ending}" if place == "list" else folder


def listed(config: ArchiveConfig) -> tuple[Listing | None, str]:
    try:
        return list_archive(config), ""
    except UsageError as error:
        return None, str(error)


def members_of(listing: Listing, config: ArchiveConfig) -> tuple[list[Member], str]:
    """Read every shard; one that cannot be read is a record as well."""
    loose = [Shard("g", "files", 0, "", files=listing.files, root=listing.root)] if listing.files else []
    members: list[Member] = []
    problem = ""
    for shard in (*listing.shards, *loose):
        try:
            members += read_members(shard, config)
        except ShardError as error:
            problem = str(error)
    return members, problem


def untouched(ending: str, whole: bytes, data: bytes) -> list[tuple[str, str]]:
    """Give (file, label) of the lines that are still what they were, where one line is one row."""
    if ending == "parquet" or (b'"' in data and ending in ("csv", "tsv")):
        return []
    lines = dict(zip(whole.split(b"\n")[-len(NAMES) :], ROWS, strict=True))
    kept = Counter(line for line in data.replace(b"\r", b"\n").split(b"\n") if line in lines)
    alone = [line for line in kept if data.count(lines[line]["file_name"].encode()) == 1]
    return [(lines[line]["file_name"], lines[line]["label"]) for line in alone]


def one(kind: str, ending: str, seed: int, folder: Path) -> str:
    """Damage one side file, read everything, and say what became of it."""
    rng = random.Random(f"{kind} {ending} {seed}")
    whole = SIDECAR[ending] if kind.startswith("sidecar") else TABLES[ending]
    data = damaged(whole, rng)
    path = made(kind, ending, data, folder)
    config = ArchiveConfig(path=str(path))
    where = f"{kind} {ending} {seed}"
    listing, refusal = listed(config)
    if listing is None:  # a whole file that is no table, before anything is written
        assert kind in ("list", "metadata"), f"{where}: {refusal}"
        assert refusal.isprintable(), where
        return "refused"
    members, problem = members_of(listing, config)
    if problem:  # what is no Parquet any more, or a zip whose metadata is not
        assert ending == "parquet" or kind == "metadata zip", f"{where}: {problem}"
    member_array(members)  # as they travel on
    assert [m.error_message for m in members if m.error_message and not m.error_message.isprintable()] == []
    found = {m.name: m for m in members}
    if kind != "list" and not (problem and kind == "metadata zip"):
        assert found.keys() >= {*NAMES}, where
        assert all(found[n].content == png(i) for i, n in enumerate(NAMES) if found[n].status == Status.OK)
    if kind in ("list", "metadata") and not data.startswith((b"\xff\xfe", b"\xef\xbb\xbf")):
        is_used = kind == "list" or "metadata" in listing.left_out
        is_header_whole = ending not in ("csv", "tsv") or data.startswith(whole.split(b"\n")[0] + b"\n")
        if is_used and is_header_whole:
            for name, label in untouched(ending, whole, data):
                assert found[name].label == label, f"{where}: {name}"
    if problem:
        return "a failed shard"
    return "a failed image" if any(m.status == Status.FAILED for m in members) else "read"


def fuzz(count: int, fresh: Callable[[], Path]) -> Counter[str]:
    verdicts: Counter[str] = Counter()
    for seed in range(count):
        kind, ending = KINDS[seed % len(KINDS)]
        verdicts[f"{kind}: {one(kind, ending, seed, fresh())}"] += 1
    return verdicts


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], Path]:
    numbers = iter(range(10**6))

    def make() -> Path:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        return folder

    return make


def test_side_files_short(fresh: Callable[[], Path]) -> None:
    fuzz(60, fresh)


@pytest.mark.slow
def test_side_files(fresh: Callable[[], Path]) -> None:
    verdicts = fuzz(COUNT, fresh)
    print(*sorted(verdicts.items()), sep="\n")
    assert verdicts.total() == COUNT
