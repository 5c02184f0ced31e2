"""The contract: keys, shard identity, chunk rows, packing, accounting, the schema."""

import dataclasses

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camray import records
from camray.errors import ErrorCode
from camray.records import (
    COLUMNS,
    MEMBER,
    RECORD_SCHEMA,
    Accounting,
    Chunk,
    Data,
    LooseFile,
    Lost,
    Member,
    Note,
    Receipt,
    Shard,
    ShardEnd,
    Status,
    account,
    key_of,
    member_array,
    struct_array,
)

FOLDERS = st.text("ab./-_ é", max_size=8)
STEMS = st.text("ab-_ é", min_size=1, max_size=8)
COUNTS = st.dictionaries(st.sampled_from(list(ErrorCode)).map(str), st.integers(1, 9), max_size=4)
ACCOUNTS = st.builds(Accounting, st.integers(0, 99), st.integers(0, 99), COUNTS, COUNTS)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("a/b/dog.jpg", "a/b/dog"), ("dog.seg.png", "dog"), ("v1.2/dog.jpg", "v1.2/dog"), ("dog", "dog"),
        ("a/.hidden.jpg", "a/.hidden"), (".jpg", ".jpg"), ("a/", "a/"), ("", ""), ("dog.", "dog"),
    ],
)  # fmt: skip
def test_key_is_the_path_up_to_the_first_dot_of_the_base_name(name: str, key: str) -> None:
    assert key_of(name) == key


@given(FOLDERS, STEMS, st.text("abc.", max_size=8))
def test_files_of_one_sample_share_a_key_whatever_follows_the_dot(folder: str, stem: str, rest: str) -> None:
    assert key_of(f"{folder}/{stem}.{rest}") == key_of(f"{folder}/{stem}.jpg") == f"{folder}/{stem}"


@given(st.text("ab./é", max_size=12))
def test_key_is_a_prefix_that_keeps_the_folder(name: str) -> None:
    key = key_of(name)
    assert name.startswith(key)
    assert key.count("/") == name.count("/")


def shard(**changes: object) -> Shard:
    return dataclasses.replace(Shard("/data/a.tar", "tar", 10, "v1"), **changes)  # type: ignore[arg-type]


def test_shard_key_follows_the_place_and_content_key_the_content() -> None:
    base = shard()
    assert base.key == shard(version="v2", size_bytes=11).key
    assert base.key != shard(uri="/data/b.tar").key
    assert base.content_key != shard(version="v2").content_key
    assert base.content_key != shard(selection=(0,)).content_key
    assert base.content_key == shard(uri="/data/b.tar").content_key
    assert base.id == f"{base.key}-{base.content_key}"
    assert base.content_key != shard(size_bytes=11).content_key
    assert base.content_key != shard(reread="0" * 16).content_key
    assert len(base.id) == 16 + 1 + 16
    assert shard(uri="/data/\udcff.tar").key  # a name that is no UTF-8


def test_shard_identity_is_stable_over_releases() -> None:
    """Record files are found again by these names: a change here orphans every OUT there is."""
    assert shard().id == "3919cddc380e7964-d27d5e3c088ee63f"
    assert shard().former_content_key == "a449ae67"  # as 0.1.0 named it


def test_the_files_of_a_group_do_not_name_it() -> None:
    assert shard(files=(LooseFile("x.jpg", 1, "v"),)).id == shard().id


def test_members_are_packed_in_order_with_codes_as_text() -> None:
    array = member_array(
        [
            Member(0, "a.jpg", b"\xff", "cat", 3),
            Member(1, "b\udcff.txt", None, status=Status.SKIPPED),
            Member(2, "c.jpg", None, None, None, Status.FAILED, ErrorCode.EMPTY_FILE, "0 bytes"),
        ]
    )
    assert array.type == MEMBER
    first, second, third = array.to_pylist()
    assert (first["content"], first["label"], first["label_class"], first["error_stage"]) == (
        b"\xff", "cat", 3, None,
    )  # fmt: skip
    assert (second["member"], second["status"], second["content"]) == ("b\\udcff.txt", "skipped", None)
    assert (third["error_code"], third["error_stage"], third["error_message"]) == (
        "empty_file", "read", "0 bytes",
    )  # fmt: skip


def test_chunk_row_survives_the_way_even_as_a_slice_of_a_larger_table() -> None:
    chunks = [
        Chunk("s", i, Data({"read": i + 0.5}), member_array([Member(2 * i, "x"), Member(2 * i + 1, "y")]))
        for i in range(3)
    ]
    rows = [c.to_row(MEMBER) for c in chunks]
    assert {r.num_rows for r in rows} == {1}
    whole = pa.concat_tables(rows)
    for table in (whole, whole.combine_chunks()):
        for i, chunk in enumerate(chunks):
            back = Chunk.from_row(table.slice(i, 1))
            assert (back.shard_id, back.index, back.note) == ("s", i, Data({"read": i + 0.5}))
            assert back.images.equals(chunk.images)
            assert back.images.field("index").to_pylist() == [2 * i, 2 * i + 1]


def test_a_chunk_without_images_has_the_same_columns() -> None:
    empty = Chunk("s", 7, ShardEnd(7, 1)).to_row(MEMBER)
    full = Chunk("s", 0, Data(), member_array([Member(0, "x", b"1")])).to_row(MEMBER)
    assert empty.schema == full.schema
    assert len(Chunk.from_row(empty).images) == 0


def test_struct_array_fills_missing_columns_with_null() -> None:
    kind = pa.struct([("a", pa.int32()), ("b", pa.string())])
    assert struct_array({"a": [1, 2]}, kind).to_pylist() == [{"a": 1, "b": None}, {"a": 2, "b": None}]
    assert struct_array({"a": [], "b": None}, kind).to_pylist() == []


def test_seconds_add_up_stage_by_stage() -> None:
    images = member_array([Member(0, "x")])
    note = Chunk("s", 0, Data()).worked("read", 0.12341, images).worked("decode", 2, images).note
    assert note == Data({"read": 0.1234, "decode": 2})


@pytest.mark.parametrize(
    "note",
    [
        Data({"read": 0.5, "decode": 1e-4}),
        Receipt("s", 1, "p", 10, 3, 1, 1, {"empty_file": 1}, 2, 1, True, {"read": 0.5}),
        ShardEnd(2, 300, "shard_truncated", "ends at byte 7"),
        ShardEnd(0, 0),
        Lost(28, "no space \U0001f4be"),
        Lost(None, "no model"),
    ],
)
def test_a_note_travels_as_it_is(note: Note) -> None:
    assert Chunk.from_row(Chunk("s", 3, note).to_row(MEMBER)).note == note


@given(ACCOUNTS)
def test_members_are_ok_and_failed_and_skipped(a: Accounting) -> None:
    assert a.members == a.ok + sum(a.failed.values()) + a.skipped
    assert a + Accounting() == a == Accounting() + a


@given(ACCOUNTS, ACCOUNTS, ACCOUNTS)
def test_sums_do_not_depend_on_order_and_lose_nothing(a: Accounting, b: Accounting, c: Accounting) -> None:
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert (a + b).members == a.members + b.members
    for code in {*a.failed, *b.failed}:
        assert (a + b).failed[code] == a.failed.get(code, 0) + b.failed.get(code, 0)


def test_accounting_is_said_in_one_line() -> None:
    said = Accounting(1000, 1, {"empty_file": 2, "bad_target": 1}, {"shard_empty": 1}).sentence()
    assert said == "1,004 members = 1,000 ok + 3 failed (bad_target 1, empty_file 2) + 1 skipped"
    assert Accounting().sentence() == "0 members = 0 ok + 0 failed + 0 skipped"


def test_receipts_are_added_up() -> None:
    receipts = [Receipt("s", i, "p", 1, 4, 2, 1, {"empty_file": 1}) for i in range(3)]
    assert account(receipts) == Accounting(6, 3, {"empty_file": 3})


def test_record_schema_keeps_to_types_delta_has() -> None:
    names = RECORD_SCHEMA.names
    assert len(names) == len(set(names))
    assert "explainer" not in names  # it is the partition, in the path

    def leaves(kind: pa.DataType) -> list[pa.DataType]:
        if pa.types.is_list(kind):
            return leaves(kind.value_type)
        if pa.types.is_map(kind):
            return leaves(kind.key_type) + leaves(kind.item_type)
        if pa.types.is_struct(kind):
            return [leaf for f in kind for leaf in leaves(f.type)]
        return [kind]

    allowed = {pa.string(), pa.int32(), pa.int64(), pa.float32(), pa.bool_(), pa.binary()}
    assert {leaf for f in RECORD_SCHEMA for leaf in leaves(f.type)} <= allowed


def test_a_column_is_declared_once_and_says_what_it_is() -> None:
    assert [(c.name, c.type) for c in COLUMNS] == [(f.name, f.type) for f in RECORD_SCHEMA]
    for column in COLUMNS:
        assert column.doc, column.name
        assert "|" not in column.doc + column.unit, column.name  # a cell of the table in docs/format.md


PROMISED = """
run_id shard member index key content_sha256 status error_code error_stage error_message
width height format crop_x0 crop_y0 crop_x1 crop_y1
predicted_class predicted_label confidence margin entropy topk label_class label correct
model weights_sha256 method target_layer target_kind target_class target_label
heatmap heat_h heat_w heat_max heat_status
heat_ring_mass heat_corner_mass heat_corner heat_entropy heat_gini
heat_center_x heat_center_y heat_peak_x heat_peak_y heat_spread
overlay_path overlay_offset overlay_size
"""


def test_the_design_promises_these_columns() -> None:
    assert set(PROMISED.split()) <= set(RECORD_SCHEMA.names)


def test_what_a_stage_gives_is_what_the_next_one_takes() -> None:
    def names(kind: pa.StructType) -> set[str]:
        return {f.name for f in kind}

    assert names(records.MEMBER) - {"boxes_in_pixels"} <= names(records.DECODED)
    assert names(records.DECODED) - {"mask", "bands", "content_of"} <= names(records.EXPLAINED)
    kept = names(records.EXPLAINED) - {"pixels", "content", "overlay", "frame"}
    assert kept <= set(RECORD_SCHEMA.names)
    for f in RECORD_SCHEMA:
        if f.name in kept:
            assert records.EXPLAINED.field(f.name).type == f.type
