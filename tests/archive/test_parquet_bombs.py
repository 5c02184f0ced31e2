"""Parquet files that unpack to more than any machine has: bounded by the headers of their pages.

A dictionary names one value a thousand times; a footer claims less than there is; one row holds everything.
"""

import io
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from camray.archive import parquet as reader
from camray.archive.listing import list_archive
from camray.archive.pages import Column, pages_of
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, UsageError
from tests.archive.makers import png, read

MIB = 2**20
LIMIT_MIB = 2600

# In a process of its own, so that what it needs at most can be read off, and that more is an error there.
READ = """
import hashlib, os, resource, sys
from camray.archive.listing import list_archive
from camray.config import ArchiveConfig
from camray.flow.stages import read_shard
from camray.ledger.plan import ShardTask
from camray.records import Chunk
config = ArchiveConfig(path=sys.argv[1])
(shard,) = list_archive(config).shards
seen = set()
rows = chunks = 0
for row in read_shard(ShardTask(shard), config, 256):
    chunk = Chunk.from_row(row)
    chunks += 1
    for image in chunk.images:
        rows += 1
        seen.add(hashlib.sha256(memoryview(image["content"].as_buffer())).hexdigest())
    del row, chunk
print(rows, chunks, len(seen), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def run_reading(path):
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def varint(number):
    """A number as Thrift's compact form has it."""
    number = (number << 1) ^ (number >> 63)
    found = b""
    while number >= 0x80:
        found += bytes([number & 0x7F | 0x80])
        number >>= 7
    return found + bytes([number])


def claiming(data, size):
    """The same file, but wherever its footer says that so much is in it, it says 64 bytes."""
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    true = varint(size)
    small = bytes([0x80 | 0]) + bytes([0x81] + [0x80] * (len(true) - 3)) + b"\0"
    footer = data[start:-8]
    assert footer.count(true) >= 2
    return data[:start] + footer.replace(true, small) + data[-8:]


def repeated(size, count, as_list=False):
    """A file that names one value again and again, and whose footer claims that hardly anything is in it."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([bytes(size)]))
    if as_list:
        column = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), column)
    file = io.BytesIO()
    pq.write_table(pa.table({"image": column}), file, compression="zstd", store_schema=False)
    lying = claiming(file.getvalue(), pq.ParquetFile(file).metadata.row_group(0).total_byte_size)
    assert pq.ParquetFile(io.BytesIO(lying)).metadata.row_group(0).total_byte_size < 1000
    return lying


def test_a_value_repeated_by_the_dictionary_with_a_footer_that_lies(tmp_path, monkeypatch):
    """So many rows at once as fit were each the largest value, whatever the footer says."""
    monkeypatch.setattr(reader, "_BATCH_BYTES", 4_100_000)
    data = repeated(1_000_000, 50)
    file = pa.BufferReader(data)
    parquet, layout = reader.open_parquet(file, len(data)), reader.layout_of(file, len(data))
    batches = [batch.num_rows for batch in reader.bounded_batches(file, parquet, 0, layout[0], ["image"])]
    assert (max(batches), sum(batches)) == (4, 50)
    members, code, _ = read(tmp_path, data, "parquet")
    assert (code, {m.content for m in members}, len(members)) == (None, {bytes(1_000_000)}, 50)


def test_a_row_that_names_one_value_a_thousand_times(tmp_path):
    """A cell of a list unpacks to one value and a thousand numbers, not to a thousand values."""
    before = pa.default_memory_pool().max_memory()
    data = repeated(4_000_000, 1000, as_list=True)
    members = read(tmp_path, data, "parquet", selection=(0, 999))[0]
    assert [m.name for m in members] == ["row-0#0", "row-0#999"]
    assert {m.content for m in members} == {bytes(4_000_000)}
    assert pa.default_memory_pool().max_memory() - before < 100 * MIB


def test_texts_that_lists_of_a_row_repeat_are_refused_before_they_are_unpacked(tmp_path):
    """Of two kilobytes the annotations of one image become gigabytes: for long texts, and many, as here."""
    text, said = "x" * 100_000, "its lists hold 2,000,000 bytes of text, more than"
    objects = [[{"bbox": [0.0, 0.0, 1.0, 1.0], "category": text}] * 20]
    (member,), _, _ = read(tmp_path, write({"image": [png(1)], "objects": objects}), "parquet")
    assert member.error_code == ErrorCode.MEMBER_UNREADABLE
    assert said in member.error_message
    for name, columns in {
        "label": {"image": [png(1)], "label": [[text] * 20]},
        "metadata": {"file_name": ["a.png"], "objects": objects},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png(1))
        (tmp_path / name / f"{name}.parquet").write_bytes(write(columns))
    with pytest.raises(UsageError, match=rf"'label' \(list<\w+: string>\): {said}"):
        list_archive(ArchiveConfig(path=str(tmp_path / "label")))
    listing = list_archive(ArchiveConfig(path=str(tmp_path / "metadata")))
    assert listing.left_out["unusable row of metadata"] == 1


def write(columns):
    into = io.BytesIO()
    whole = pa.table({name: pa.array(values) for name, values in columns.items()})
    pq.write_table(whole, into, compression="zstd")
    return into.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(("size", "count", "as_list"), [(50_000_000, 48, False), (5_000_000, 1000, True)])
def test_what_reading_it_all_needs(tmp_path, size, count, as_list):
    """2.4 and 5 GB out of 160 kB: a chunk ends at so many bytes as well."""
    (tmp_path / "x.parquet").write_bytes(repeated(size, count, as_list))
    rows, chunks, distinct, peak_mib = run_reading(tmp_path / "x.parquet")
    print(f"{count} x {size:,} bytes: {chunks} chunks, {peak_mib:,} MiB at most")
    assert (rows, distinct) == (count, 1)
    assert chunks > count * size // (512 * MIB)
    assert peak_mib < LIMIT_MIB


def test_a_page_that_unpacks_to_too_much_ends_its_file_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "_MAX_PAGE_BYTES", 10 * MIB)
    cells = [b"small", b"small", bytes(20 * MIB)]
    file = io.BytesIO()
    pq.write_table(pa.table({"image": cells}), file, compression="zstd", row_group_size=1)
    before = pa.total_allocated_bytes()
    members, code, message = read(tmp_path, file.getvalue(), "parquet")
    assert ([m.content for m in members], code) == (cells[:2], ErrorCode.SHARD_CORRUPT)
    assert message.startswith(
        "row group 2: a page of image unpacks to 20,971,524 bytes, more than 10,485,760"
    )
    assert pa.total_allocated_bytes() - before < MIB


def test_lists_without_end_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "_MAX_LISTED", 1000)
    file = io.BytesIO()
    pq.write_table(pa.table({"image": [b"x"], "bbox": [[1.0] * 1001]}), file)
    _, code, message = read(tmp_path, file.getvalue(), "parquet")
    assert code == ErrorCode.SHARD_CORRUPT
    assert "the lists of bbox.list.element hold more than 1,000 values" in message


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "lz4", "brotli"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_the_headers_say_what_the_footer_says_of_a_good_file(version, compression, dictionary):
    """The pages, found one after the other, end where their column ends, and hold what it holds."""
    rng = np.random.default_rng(0)
    cells = [rng.bytes(int(n)) for n in rng.integers(1, 5000, 300)] + [None, b"x" * 70_000]
    table = pa.table({"image": cells, "n": list(range(302)), "box": [[1.0, 2.0]] * 302, "t": ["word"] * 302})
    buffer = io.BytesIO()
    pq.write_table(
        table, buffer, compression=compression, use_dictionary=dictionary, data_page_version=version,
        data_page_size=20_000, write_batch_size=10, row_group_size=151, write_page_checksum=True,
    )  # fmt: skip
    file = pa.BufferReader(buffer.getvalue())
    metadata = pq.ParquetFile(buffer).metadata
    layout = reader.layout_of(file, file.size())
    assert [group.rows for group in layout] == [151, 151]
    for group in range(metadata.num_row_groups):
        for number, column in enumerate(layout[group].columns):
            told = metadata.row_group(group).column(number)
            assert column == Column(
                told.path_in_schema,
                told.dictionary_page_offset or told.data_page_offset,
                told.total_compressed_size,
            )
            pages = list(pages_of(file, column))
            assert sum(p.values for p in pages if not p.is_dictionary) == told.num_values
            assert any(p.is_dictionary for p in pages) == bool(told.has_dictionary_page)
            headers = told.total_uncompressed_size - sum(p.size_bytes for p in pages)
            assert 0 < headers < 10_000 * len(pages)  # statistics lie in them


def test_a_damaged_header_of_a_page_keeps_the_groups_before_it(tmp_path):
    cells = [np.random.default_rng(i).bytes(3000) for i in range(9)]
    file = io.BytesIO()
    pq.write_table(pa.table({"image": cells}), file, row_group_size=3, use_dictionary=False)
    data = file.getvalue()
    at = pq.ParquetFile(file).metadata.row_group(1).column(0).data_page_offset
    for damage in (b"\xff" * 40, b"\0" * 40, b"\x1c" * 40):
        members, code, message = read(tmp_path, data[:at] + damage + data[at + 40 :], "parquet")
        assert ([m.content for m in members], code) == (cells[:3], ErrorCode.SHARD_CORRUPT)
        assert message.startswith(f"row group 1: the header of the page at byte {at:,}")


def test_no_flip_in_a_footer_ends_the_process(tmp_path):
    """Arrow's own description of a column, asked for, does: an exception that nothing catches."""
    file = io.BytesIO()
    pq.write_table(pa.table({"image": [b"x", b"y"], "label": ["a", "b"], "bbox": [[1.0], [2.0]]}), file)
    data = file.getvalue()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    codes = set()
    for at in range(start, len(data) - 8):
        for bit in (1 << at % 8,):
            _, code, _ = read(tmp_path, data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :], "parquet")
            codes.add(code)
    assert codes >= {None, ErrorCode.SHARD_UNREADABLE}
