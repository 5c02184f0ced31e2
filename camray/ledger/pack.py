"""Record files of many shards in one, and back: the same rows, in one transaction.

    a-v1-000000, b-v1-000000, b-v1-000001 ...  --pack-->  pack-<checksum>  --unpack-->  a-v1-000000, ...

A shard that is to be replaced is unpacked first, with what lies beside it: a commit then finds what it
always found. Who calls these holds OUT.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set

import pyarrow as pa
import pyarrow.parquet as pq

from camray.errors import UsageError, printable
from camray.ledger.committed import PACK, Part, RecordFile, checksum, parse_name
from camray.ledger.parts import FOOTER_KEY, PACK_ROWS
from camray.ledger.sink import write_records
from camray.ledger.table import Kind, Table
from camray.records import LATER, Receipt
from camray.storage import Folder

SMALL_BYTES = 8 * 2**20  # of a shard's files together: larger ones stay as they are
PACK_BYTES = 64 * 2**20
PACK_PARTS = 4096


def intact(out: Folder, file: RecordFile, kind: Kind, columns: Set[str]) -> pa.Table:
    """Read a whole file of a table; its bytes, columns and rows must be as committed.

    Raises:
        pa.ArrowInvalid, OSError: they are not.
    """
    data = out.read(f"{kind.folder}/{file.path}")
    if len(data) != file.size_bytes:
        raise pa.ArrowInvalid(f"{len(data)} bytes, committed with {file.size_bytes}")
    if checksum(data) != file.checksum:
        raise pa.ArrowInvalid("its bytes are not those that were committed")
    # In this thread: one of Arrow's that lets go of `data` while Python ends aborts the process (1 in 10).
    table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read(use_threads=False)
    rows = sum(part.rows for part in _noted(table)) if file.is_packed else file.rows
    if table.num_rows != rows:
        raise pa.ArrowInvalid(f"{table.num_rows} rows, committed with {rows}")
    due = columns - (LATER - set(table.schema.names))  # a file of before has none of these
    written = pa.schema([field for field in kind.schema if field.name in due])
    if not table.schema.equals(written):
        raise pa.ArrowInvalid(f"its columns are not those of the {kind.folder.removesuffix('s')} schema")
    table.validate(full=True)
    return table


def _read(table: Table, file: RecordFile) -> pa.Table:
    try:
        return intact(table.out, file, table.kind, table.columns)
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        why = printable(f"{table.kind.folder}/{file.path}: {error}", 300)
        raise UsageError("OUT", why, "restore it; `camray verify OUT` names all that is damaged") from None


def _noted(table: pa.Table) -> list[Part]:
    note = json.loads((table.schema.metadata or {}).get(FOOTER_KEY, b"{}"))
    return [Part(*part) for part in note["parts"]]


def find_packable(table: Table, owner: str) -> list[list[RecordFile]]:
    """Choose what would become packs: each a list of whole shards' files, of two shards at least.

    Files in which something is to be tried again stay as they are; a pack that is not full is packed anew.
    """
    shards = [files for files in table.shards(owner).values() if not any(f.to_try_again for f in files)]
    whole: dict[str, int] = defaultdict(int)  # bytes of packs count once, shared by their shards
    for files in shards:
        whole[files[0].path] += files[0].is_packed
    chosen: list[list[RecordFile]] = [[]]
    size = parts = 0
    for files in sorted(shards, key=lambda files: files[0].path):
        own = sum(f.size_bytes for f in files) // max(whole[files[0].path], 1)
        if files[0].size_bytes > PACK_BYTES // 2 if files[0].is_packed else own > SMALL_BYTES:
            continue
        goes_on = files[0].is_packed and chosen[-1] and chosen[-1][-1].path == files[0].path
        if not goes_on and (size + own > PACK_BYTES or parts + len(files) > PACK_PARTS):
            chosen.append([])
            size = parts = 0
        chosen[-1] += files
        size, parts = size + own, parts + len(files)
    return [files for files in chosen if len({f.path for f in files}) > 1]


def pack(table: Table, owner: str, groups: Iterable[Sequence[RecordFile]]) -> int:
    """Make each group one file, and commit them all at once; give how many files went.

    Raises:
        UsageError: a file is not as it was committed; nothing became visible.
    """
    made: list[Receipt] = []
    gone: list[str] = []
    for files in groups:
        made.append(_written(table, owner, files))
        gone += dict.fromkeys(f.path for f in files)
    if made:
        table.repack(owner, gone, made)
    return len(gone)


def _written(table: Table, owner: str, files: Sequence[RecordFile]) -> Receipt:
    """Write one pack; the same files give the same bytes, and the same name."""
    out, kind = table.out, table.kind
    parts: list[Part] = []
    tables: list[pa.Table] = []
    for path in dict.fromkeys(f.path for f in files):
        file = next(f for f in files if f.path == path)
        rows = _read(table, file)
        parts += _parts_of(file, rows)
        tables.append(_whole(rows, kind))
    note = json.dumps({"parts": parts})
    packed = pa.concat_tables(tables).replace_schema_metadata({FOOTER_KEY: note.encode()})
    buffer = pa.BufferOutputStream()
    pq.write_table(packed, buffer, compression="zstd", write_page_checksum=True, row_group_size=PACK_ROWS)
    data = buffer.getvalue()
    path = f"{kind.partition}={owner}/{PACK}{checksum(data)}.parquet"
    out.write(f"{kind.folder}/{path}", data)
    return Receipt("", 0, path, data.size, packed.num_rows, 0, 0, {})


def _parts_of(file: RecordFile, rows: pa.Table) -> list[Part]:
    if file.is_packed:
        return _noted(rows)
    key, content, chunk = parse_name(file.path)
    note = json.loads((rows.schema.metadata or {}).get(FOOTER_KEY, b"{}"))
    return [Part(f"{key}-{content}", chunk, rows.num_rows, note.get("chunk_size", 0))]


def _whole(rows: pa.Table, kind: Kind) -> pa.Table:
    """Give the rows with all columns: those that came later are null."""
    names = set(rows.column_names)
    columns = [rows[f.name] if f.name in names else pa.nulls(len(rows), f.type) for f in kind.schema]
    return pa.table(columns, schema=kind.schema)


def unpack(table: Table, owner: str, keys: Iterable[str]) -> None:
    """Give each of these shards, by their keys, files of its own again, and all that is packed with them.

    Raises:
        UsageError: a pack is not as it was committed; nothing became visible.
    """
    shards = table.shards(owner)
    packs = {f.path: f for key in keys for f in shards.get(key, []) if f.is_packed}
    made = [receipt for file in packs.values() for receipt in _unpacked(table, owner, file)]
    if made:
        table.repack(owner, packs, made)


def _unpacked(table: Table, owner: str, file: RecordFile) -> Iterator[Receipt]:
    rows, start = _read(table, file), 0
    for part in _noted(rows):
        own = _whole(rows.slice(start, part.rows), table.kind)
        start += part.rows
        yield write_records(
            table.out, owner, part.id, part.chunk, own, chunk_size=part.chunk_size, kind=table.kind
        )
