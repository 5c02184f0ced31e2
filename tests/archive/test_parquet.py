"""Members of a Parquet file, and the columns that must never be opened."""

import dataclasses
import io
import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from camray.archive.listing import list_archive
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, UsageError
from camray.records import Status
from tests.archive.makers import CONFIG, png, read

IMAGES = [png(i) for i in range(10)]


def parquet_of(columns, metadata=None, **options):
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    if metadata:
        table = table.replace_schema_metadata(metadata)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("group", [3, 100])
def test_bytes_column(tmp_path, kind, group):
    data = parquet_of({"picture": pa.array(IMAGES, kind), "label": list(range(10))}, row_group_size=group)
    members, code, _ = read(tmp_path, data, "parquet")
    assert code is None
    assert [(m.index, m.name, m.content, m.label_class) for m in members] == [
        (i, f"row-{i}", image, i) for i, image in enumerate(IMAGES)
    ]


def test_hugging_face_struct_with_class_names(tmp_path):
    cells = [{"bytes": image, "path": f"{i}.jpg"} for i, image in enumerate(IMAGES)]
    feature = {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}, "image": {"_type": "Image"}}
    metadata = {"huggingface": json.dumps({"info": {"features": feature}})}
    labels = pa.array([0, 1, -1, None, 7] * 2)
    members, code, _ = read(tmp_path, parquet_of({"image": cells, "label": labels}, metadata), "parquet")
    assert code is None
    assert [(m.name, m.content) for m in members] == [(f"{i}.jpg", image) for i, image in enumerate(IMAGES)]
    assert [(m.label, m.label_class) for m in members[:5]] == [
        ("cat", 0),
        ("dog", 1),
        (None, None),
        (None, None),
        (None, 7),
    ]


def test_text_label_and_name_column(tmp_path):
    data = parquet_of(
        {"image": IMAGES, "label": ["x", None] * 5, "file_name": [f"n{i}.jpg" for i in range(10)]}
    )
    members, _, _ = read(tmp_path, data, "parquet")
    assert [(m.name, m.label) for m in members[:2]] == [("n0.jpg", "x"), ("n1.jpg", None)]


def test_null_cells_fail_only_their_rows(tmp_path):
    members, code, _ = read(tmp_path, parquet_of({"image": [IMAGES[0], None, IMAGES[2]]}), "parquet")
    assert [m.error_code for m in members] == [None, ErrorCode.MEMBER_UNREADABLE, None]
    assert code is None
    cells = pa.array([{"bytes": None, "path": "a.jpg"}, None, {"bytes": IMAGES[0], "path": None}])
    members, _, _ = read(tmp_path, parquet_of({"image": cells}), "parquet")
    assert [m.status for m in members] == [Status.FAILED, Status.FAILED, Status.OK]
    assert [m.name for m in members] == ["a.jpg", "row-1", "row-2"]


def test_wanted_and_selection_over_row_groups(tmp_path):
    data = parquet_of({"image": IMAGES}, row_group_size=3)
    members, _, _ = read(tmp_path, data, "parquet", wanted=lambda i: i == 7)
    assert [m.index for m in members] == list(range(10))
    assert [m.index for m in members if m.content] == [7]
    members, code, _ = read(tmp_path, data, "parquet", selection=(2, 8))
    assert ([(m.index, m.content) for m in members], code) == ([(2, IMAGES[2]), (8, IMAGES[8])], None)


def test_cells_over_the_cap(tmp_path):
    config = dataclasses.replace(CONFIG, max_member_bytes=1000)
    members, _, _ = read(tmp_path, parquet_of({"image": [b"x" * 1001, b"y"]}), "parquet", config)
    assert [m.error_code for m in members] == [ErrorCode.MEMBER_TOO_LARGE, None]


class Loud(pa.ExtensionType):
    """A registered type that would run code while a file is read."""

    opened = False

    def __init__(self):
        super().__init__(pa.binary(), "camray.test.loud")

    def __arrow_ext_serialize__(self):
        return b"payload"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        Loud.opened = True
        return cls()


@pytest.mark.parametrize("pad", range(6))
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("registered", [False, True])
def test_extension_types_are_refused_before_arrow_sees_them(tmp_path, pad, nested, registered):
    """Whatever the position of the words in the footer's base64, and however deep the column lies."""
    storage = pa.ExtensionArray.from_storage(Loud(), pa.array([b"1", b"2"]))
    column = pa.StructArray.from_arrays([storage], ["inner"]) if nested else storage
    data = parquet_of({"n" * (pad + 1): pa.array(["a", "b"]), "image": IMAGES[:2], "loud": column})
    Loud.opened = False
    if registered:
        pa.register_extension_type(Loud())
    try:
        members, code, message = read(tmp_path, data, "parquet")
    finally:
        if registered:
            pa.unregister_extension_type("camray.test.loud")
    assert (members, code) == ([], ErrorCode.SHARD_UNREADABLE)
    assert "extension type" in message
    assert not Loud.opened


def test_damage(tmp_path):
    whole = parquet_of({"image": [np.random.default_rng(i).bytes(3000) for i in range(9)]}, row_group_size=3)
    for data, says in [
        (b"", "empty"),
        (b"<html>" + b" " * 900, "HTML"),
        (whole[: len(whole) // 2], "cut"),
        (whole[:-8] + b"\xff\xff\xff\x7fPAR1", "claims"),
        (whole[:-60] + bytes(52) + whole[-8:], "footer"),
    ]:
        members, code, message = read(tmp_path, data, "parquet")
        assert (members, code) == ([], ErrorCode.SHARD_UNREADABLE), says
        assert says in message


def test_encrypted(tmp_path):
    """A Parquet file with an encrypted footer ends in PARE."""
    whole = parquet_of({"image": [b"x" * 300]})
    members, code, message = read(tmp_path, b"PARE" + whole[4:-4] + b"PARE", "parquet")
    assert (members, code) == ([], ErrorCode.SHARD_UNREADABLE)
    assert "encrypted" in message


def test_a_damaged_page_keeps_the_rows_before_it(tmp_path):
    cells = [np.random.default_rng(i).bytes(3000) for i in range(9)]
    plain = {"use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
    data = parquet_of({"image": cells}, row_group_size=3, **plain)
    at = data.index(cells[4][1000:1020])
    members, code, message = read(tmp_path, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], "parquet")
    assert [m.content for m in members] == cells[:3]
    assert code == ErrorCode.SHARD_CORRUPT
    assert "3 members before it were kept" in message


def test_no_rows(tmp_path):
    assert (
        read(tmp_path, parquet_of({"image": pa.array([], pa.binary())}), "parquet")[1]
        == ErrorCode.SHARD_EMPTY
    )


@pytest.mark.parametrize(
    ("columns", "wanted", "says"),
    [
        ({"text": ["a"], "n": [1]}, None, "no column of images; there are: text (string), n (int64)"),
        ({"a": [b"1"], "b": [b"2"]}, None, "several: a, b"),
        ({"a": [b"1"], "n": [1]}, "n", "holds int64, not bytes"),
        ({"a": [b"1"]}, "zz", "no column 'zz'"),
    ],
)
def test_columns_are_proven_at_listing(tmp_path, columns, wanted, says):
    (tmp_path / "x.parquet").write_bytes(parquet_of(columns))
    with pytest.raises(UsageError) as caught:
        list_archive(ArchiveConfig(path=str(tmp_path), image_column=wanted))
    assert says in str(caught.value)


def test_the_column_may_be_named_or_be_called_image(tmp_path):
    data = parquet_of({"thumb": [b"t"], "image": [b"i"]})
    assert read(tmp_path, data, "parquet")[0][0].content == b"i"
    config = dataclasses.replace(CONFIG, image_column="thumb")
    assert read(tmp_path, data, "parquet", config)[0][0].content == b"t"


def test_a_damaged_file_does_not_stop_the_listing(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"junk")
    (tmp_path / "b.parquet").write_bytes(parquet_of({"image": [b"i"]}))
    assert len(list_archive(ArchiveConfig(path=str(tmp_path))).shards) == 2


# ── labels, boxes and masks ──────────────────────────────────────────────────────────────────────


def hugging_face(features):
    return {"huggingface": json.dumps({"info": {"features": features}})}


@pytest.mark.parametrize("name", ["labels", "class", "fine_label"])
def test_label_columns_of_other_names(tmp_path, name):
    config = dataclasses.replace(CONFIG, label_column=name if name == "fine_label" else None)
    metadata = hugging_face({name: {"_type": "ClassLabel", "names": ["cat", "dog"]}})
    data = parquet_of({"img": IMAGES[:2], name: [1, 0]}, metadata)
    members, _, _ = read(tmp_path, data, "parquet", config)
    assert [(m.label, m.label_class) for m in members] == [("dog", 1), ("cat", 0)]


def test_a_label_column_that_is_none_is_refused(tmp_path):
    (tmp_path / "x.parquet").write_bytes(parquet_of({"image": IMAGES[:1], "label": [[1]], "n": [2]}))
    for wanted, says in (("label", "not a column of numbers or text"), ("zz", "no such column")):
        with pytest.raises(UsageError) as caught:
            list_archive(ArchiveConfig(path=str(tmp_path), label_column=wanted))
        assert says in str(caught.value)


OBJECTS = [
    {"bbox": [[10.0, 20.0, 30.0, 40.0], [1.0, 2.0, 3.0, 4.0]], "category": [1, 1]},
    {"bbox": [], "category": []},
    {"bbox": [[1.0, 1.0, 1.0, 1.0]], "category": [0]},
]


@pytest.mark.parametrize("form", ["struct of lists", "list of structs"])
@pytest.mark.parametrize("nesting", ["Sequence", "List"])
def test_objects(tmp_path, form, nesting):
    names = {"_type": "ClassLabel", "names": ["cat", "dog"]}
    inner = {"bbox": {"_type": nesting}, "category": names if nesting == "Sequence" else {"feature": names}}
    metadata = hugging_face({"objects": {"feature": inner} if nesting == "Sequence" else inner})
    objects = OBJECTS
    if form == "list of structs":
        objects = [[dict(zip(o, v, strict=True)) for v in zip(*o.values(), strict=True)] for o in OBJECTS]
    members, code, _ = read(
        tmp_path, parquet_of({"image": IMAGES[:3], "objects": objects}, metadata), "parquet"
    )
    assert code is None
    assert [(m.label, m.label_class, m.boxes and m.boxes.edges) for m in members] == [
        ("dog", None, ((10, 20, 40, 60), (1, 2, 4, 6))),
        (None, None, None),
        ("cat", None, ((1, 1, 2, 2),)),
    ]


def test_categories_without_names_are_no_label(tmp_path):
    data = parquet_of({"image": IMAGES[:2], "objects": [OBJECTS[0], None], "label": ["x", None]})
    members, _, _ = read(tmp_path, data, "parquet")
    assert [(m.label, m.label_class) for m in members] == [("x", None), (None, None)]
    assert len(members[0].boxes.edges) == 2


@pytest.mark.parametrize("as_struct", [True, False])
def test_a_mask_column(tmp_path, as_struct):
    masks = [b"mask", None]
    cells = [m and {"bytes": m, "path": None} for m in masks] if as_struct else masks
    members, _, _ = read(tmp_path, parquet_of({"picture": IMAGES[:2], "mask": cells}), "parquet")
    assert [(m.content, m.mask) for m in members] == [(IMAGES[0], b"mask"), (IMAGES[1], None)]
