"""One chunk, one file: counted, whole, checked page by page, with its own receipt inside."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from camray.ledger.sink import write_records
from camray.records import RECORD_SCHEMA
from camray.storage import Folder
from tests.ledger.ledger_world import E1, rows, shard, shard_error_row, write_chunk


def place(out: Folder, path: str) -> Path:
    return Path(out.path) / "records" / path


def test_the_receipt_counts_by_status_and_code(out: Folder) -> None:
    status = ["ok", "failed", "failed", "skipped", "failed", "ok"]
    codes = [None, "empty_file", "bad_target", None, "empty_file", None]
    overlay = ["overlays/x.jpg", None, None, None, None, None]
    receipt = write_chunk(
        out, shard(), 3, rows(0, 6, status=status, error_code=codes, overlay_path=overlay), chunk_size=6
    )
    assert (receipt.rows, receipt.ok, receipt.skipped, receipt.failed, receipt.overlays) == (
        6, 2, 1, {"empty_file": 2, "bad_target": 1}, 1,
    )  # fmt: skip
    assert (receipt.shard_id, receipt.chunk, receipt.reused) == (shard().id, 3, False)


def test_an_image_explained_for_several_classes_is_one_member(out: Folder) -> None:
    receipt = write_chunk(
        out,
        shard(),
        0,
        rows(0, 4, index=[0, 0, 0, 1], status=["ok", "ok", "ok", "skipped"], target_class=[1, 2, 3, None]),
    )
    assert (receipt.rows, receipt.ok, receipt.skipped) == (4, 1, 1)


def test_answers_that_changed_in_the_second_look_are_counted(out: Folder) -> None:
    receipt = write_chunk(out, shard(), 0, rows(0, 4, confirm_flip=[True, None, False, True]))
    assert receipt.changed_answers == 2


def test_the_row_of_the_shard_itself_is_no_member(out: Folder) -> None:
    receipt = write_chunk(out, shard(), 0, shard_error_row("shard_empty"))
    assert (receipt.rows, receipt.ok, receipt.skipped, receipt.failed) == (1, 0, 0, {})


def test_the_file_is_what_the_receipt_says(out: Folder) -> None:
    receipt = write_records(out, E1, shard().id, 1, rows(4, 4), chunk_size=4)
    file = place(out, receipt.path)
    assert file.stat().st_size == receipt.size_bytes
    table = pq.read_table(file, partitioning=None)
    assert table.schema.remove_metadata().equals(RECORD_SCHEMA)
    assert table.equals(rows(4, 4))
    footer = json.loads(pq.read_metadata(file).metadata[b"camray"])
    assert footer == {
        "shard_id": shard().id, "chunk": 1, "rows": 4, "ok": 4, "skipped": 0, "failed": {}, "overlays": 0,
        "changed_answers": 0, "chunk_size": 4, "schema_version": 1,
    }  # fmt: skip
    column = pq.read_metadata(file).row_group(0).column(0)
    assert column.compression == "ZSTD"


def test_a_flipped_bit_in_a_page_is_noticed_by_any_reader_that_checks(out: Folder) -> None:
    file = place(out, write_chunk(out, shard(), 0, rows(0, 300), chunk_size=300).path)
    meta = pq.read_metadata(file).row_group(0)
    names = [meta.column(i).path_in_schema for i in range(meta.num_columns)]
    column = meta.column(names.index("heatmap.list.element"))
    data = bytearray(file.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(OSError, match=r"(?i)crc|checksum|corrupt"):
        pq.ParquetFile(file, page_checksum_verification=True).read()


def test_two_attempts_at_one_chunk_meet_only_where_they_are_the_same(out: Folder) -> None:
    first, same = (write_chunk(out, shard(), 0) for _ in range(2))
    other = write_chunk(out, shard(), 0, run_id="r2")
    assert first.path == same.path != other.path
    for receipt in (first, other):
        data = place(out, receipt.path).read_bytes()
        assert receipt.path.endswith(f"-{hashlib.sha256(data).hexdigest()[:16]}.parquet")


def test_a_column_of_the_wrong_kind_never_reaches_the_disk(out: Folder) -> None:
    wrong = rows(0, 1).set_column(3, "index", pa.array(["x"]))
    with pytest.raises(pa.ArrowInvalid):
        write_records(out, E1, shard().id, 0, wrong, chunk_size=4)
    assert not place(out, "").exists()
