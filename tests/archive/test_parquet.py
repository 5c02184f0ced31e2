"""Members of a Parquet file, and the columns that must never be opened."""

import dataclasses
import io
import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from camray.archive.listing import list_archive
from camray.archive.members import image_indices, read_members
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, UsageError
from camray.records import Shard, Status
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


@pytest.mark.parametrize(
    ("labels", "wanted", "says"),
    [
        ([{"a": 1}], None, "column 'label' holds struct<a: int64>, not a number or text an image"),
        ([{"a": 1}], "label", "column 'label' holds struct<a: int64>"),
        (
            [[1, 2]],
            None,
            "column 'label' (list<element: int64>): '[1, 2]' is no label: give one number or name",
        ),
        ([0.5], None, "column 'label' (double): '0.5' is no label"),
        ([True], None, "column 'label' holds bool"),
        ([1], "zz", "'zz': no such column. Fix: one of label"),
    ],
)
def test_a_label_column_that_is_none_is_refused_at_plan(tmp_path, labels, wanted, says):
    """Naming column and type; a label that is lost without a word is worse."""
    (tmp_path / "x.parquet").write_bytes(parquet_of({"image": IMAGES[:1], "label": labels}))
    with pytest.raises(UsageError) as caught:
        list_archive(ArchiveConfig(path=str(tmp_path), label_column=wanted))
    assert says in str(caught.value)
    assert len(list_archive(ArchiveConfig(path=str(tmp_path), label_column="")).shards) == 1


CAT = ("cat", None)


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        (pa.array(["cat", "dog", None]).dictionary_encode(), [CAT, ("dog", None), (None, None)]),
        (pa.array([["cat"], ["3"], []]), [CAT, (None, 3), (None, None)]),
        (pa.array([["cat"]], pa.list_(pa.string(), 1)), [CAT]),
        (pa.array([4, None], pa.float64()), [(None, 4), (None, None)]),
        (pa.array([4, -1], pa.int8()), [(None, 4), (None, None)]),
        (pa.array([b"cat"]), [CAT]),
        (pa.array(["cat", "7", "7.0"], pa.large_string()), [CAT, (None, 7), (None, 7)]),
        (pa.array(["cat"], pa.string_view()), [CAT]),
        (pa.array([2**31 - 1, 2**31, 2**40]), [(None, 2**31 - 1), (str(2**31), None), (str(2**40), None)]),
        (pa.array([2, 300]).dictionary_encode(), [(None, 2), (None, 300)]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
@pytest.mark.parametrize("form", ["images", "list"])
def test_label_columns_as_tools_write_them(tmp_path, column, wanted, form):
    """Categories, numbers with gaps, lists of one, bytes: the label is what they stand for."""
    for i in range(len(column)):
        (tmp_path / f"{i}.png").write_bytes(IMAGES[i])
    told = {"image": IMAGES[: len(column)], "Label": column}
    if form == "list":
        told["image"] = pa.array([f"{i}.png" for i in range(len(column))]).dictionary_encode()
    path = tmp_path / "x.parquet"
    path.write_bytes(parquet_of(told))
    config = ArchiveConfig(path=str(path))
    listing = list_archive(config)
    shards = listing.shards or [Shard("g", "files", 0, "", files=listing.files, root=listing.root)]
    found = [m for shard in shards for m in read_members(shard, config)]
    assert [(m.label, m.label_class) for m in found] == wanted
    assert [m.content for m in found] == IMAGES[: len(column)]


def test_folders_of_a_partitioned_table_name_the_label(tmp_path):
    """As Spark, pandas and Arrow write tables by a column, which is then in no file."""
    labels = ["cat", "a/b c", "7", None]
    table = pa.table({"image": IMAGES[:4], "row": range(4), "Label": labels})
    pq.write_to_dataset(table, tmp_path / "t", partition_cols=["Label"])
    config = ArchiveConfig(path=str(tmp_path / "t"))
    found = {m.content: m for shard in list_archive(config).shards for m in read_members(shard, config)}
    assert [(found[i].label, found[i].label_class) for i in IMAGES[:4]] == [
        ("cat", None), ("a/b c", None), (None, 7), (None, None),
    ]  # fmt: skip
    none = ArchiveConfig(path=str(tmp_path / "t"), label_column="")
    members = [m for shard in list_archive(none).shards for m in read_members(shard, none)]
    assert {(m.label, m.label_class) for m in members} == {(None, None)}


def test_dictionaries_of_the_tools_themselves(tmp_path):
    """Written by pandas and by Polars, not by the library that reads them."""
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    enum = polars.Series(["cat", "dog"], dtype=polars.Enum(["dog", "cat"]))
    polars.DataFrame({"image": IMAGES[:2], "label": enum}).write_parquet(tmp_path / "x.parquet")
    pandas.DataFrame({"image": IMAGES[:2], "label": pandas.Categorical(["cat", "dog"])}).to_parquet(
        tmp_path / "y.parquet"
    )
    for name in ("x.parquet", "y.parquet"):
        members, code, _ = read(tmp_path, (tmp_path / name).read_bytes(), "parquet")
        assert (code, [m.label for m in members]) == (None, ["cat", "dog"])


def test_a_list_of_labels_has_the_names_of_hugging_face(tmp_path):
    feature = {"_type": "Sequence", "feature": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    data = parquet_of({"image": IMAGES[:2], "labels": [[1], [0]]}, hugging_face({"labels": feature}))
    members, _, _ = read(tmp_path, data, "parquet")
    assert [(m.label, m.label_class) for m in members] == [("dog", 1), ("cat", 0)]


def test_a_label_that_is_none_further_down_fails_its_image_alone(tmp_path):
    data = parquet_of({"image": IMAGES[:4], "label": [[1], [1], [1, 2], [3]]}, row_group_size=2)
    members, code, _ = read(tmp_path, data, "parquet")
    assert (code, [m.label_class for m in members]) == (None, [1, 1, None, 3])
    assert [m.status for m in members] == [Status.OK, Status.OK, Status.FAILED, Status.OK]
    assert members[2].error_message == "label: '[1, 2]' is no label: give one number or name an image"


def test_texts_that_are_no_utf8_end_nothing(tmp_path):
    """A cell of any bytes: what can be read of it is its text."""
    odd = pa.StringArray.from_buffers(
        2, pa.array([0, 3, 6], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffbdog")
    )
    data = parquet_of(pa.table({"image": IMAGES[:2], "label": odd, "name": odd}))
    members, code, _ = read(tmp_path, data, "parquet")
    assert (code, [(m.name, m.label) for m in members]) == (None, [("a\\xffb", "a\\xffb"), ("dog", "dog")])


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(IMAGES[:1]), pa.array([b"x"])], names=["image", "image"])
    members, code, message = read(tmp_path, parquet_of(table), "parquet")
    assert (members, code) == ([], ErrorCode.SHARD_UNREADABLE)
    assert "two columns are called 'image'" in message


# ── several images a row, and files that a row names ─────────────────────────────────────────────


@pytest.mark.parametrize("form", ["bytes", "structs", "fixed"])
def test_lists_of_images_are_members_of_their_own(tmp_path, form):
    rows = [IMAGES[0:2], IMAGES[2:4], None, []] if form != "fixed" else [IMAGES[0:2], IMAGES[2:4], None]
    cells = rows
    if form == "structs":
        cells = [row and [{"bytes": image, "path": "x.png"} for image in row] for row in rows]
    kind = pa.list_(pa.binary(), 2) if form == "fixed" else None
    data = parquet_of({"images": pa.array(cells, kind), "label": ["a", "b", "c", "d"][: len(rows)]})
    members, code, _ = read(tmp_path, data, "parquet")
    assert code is None
    assert [(m.index, m.name, m.content, m.label) for m in members[:4]] == [
        (0, "row-0#0", IMAGES[0], "a"), (1, "row-0#1", IMAGES[1], "a"),
        (2, "row-1#0", IMAGES[2], "b"), (3, "row-1#1", IMAGES[3], "b"),
    ]  # fmt: skip
    assert [(m.name, m.status) for m in members[4:]] == [
        (f"row-{i}", Status.FAILED) for i in range(2, len(rows))
    ]
    (tmp_path / "x.parquet").write_bytes(data)
    config = ArchiveConfig(path=str(tmp_path / "x.parquet"))
    assert list(image_indices(list_archive(config).shards[0], config)) == [0, 1, 2, 3]
    members, _, _ = read(tmp_path, data, "parquet", selection=(1, 2))
    assert [m.content for m in members] == IMAGES[1:3]


def test_a_cell_without_bytes_is_the_file_that_its_path_names(tmp_path):
    """Relative to the table and inside its folder; anything else fails, and nothing outside is opened."""
    (tmp_path / "in").mkdir()
    for place in (tmp_path / "in" / "a.png", tmp_path / "secret.png"):
        place.write_bytes(IMAGES[1])
    paths = ["a.png", ".\\a.png", "gone.png", "../secret.png", str(tmp_path / "secret.png"), "s3://b/k.png"]
    cells = [{"bytes": None, "path": path} for path in paths] + [{"bytes": IMAGES[2], "path": "b.png"}]
    members, code, _ = read(tmp_path / "in", parquet_of({"image": cells}), "parquet")
    assert code is None
    assert [m.content for m in members] == [IMAGES[1], IMAGES[1], None, None, None, None, IMAGES[2]]
    assert [m.error_code for m in members[2:6]] == [ErrorCode.MEMBER_UNREADABLE] * 4
    assert all("leads out of the" in m.error_message for m in members[3:6])
    assert "No such file" in members[2].error_message
    only_paths = parquet_of(
        {"image": [{"bytes": None, "path": "a.png"}], "mask": [{"bytes": None, "path": "a.png"}]}
    )
    (member,), _, _ = read(tmp_path / "in", only_paths, "parquet")
    assert (member.name, member.content, member.mask) == ("a.png", IMAGES[1], IMAGES[1])


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
