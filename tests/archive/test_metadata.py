"""Hugging Face image folders, and WebDatasets as img2dataset writes them."""

import io
import json
import unicodedata
import zipfile

import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from camray.archive.listing import list_archive
from camray.archive.members import read_members
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, UsageError
from camray.records import Boxes, Shard, Status
from tests.archive.makers import png, read, tar_of

ROWS = [
    {"file_name": "1.png", "label": "cat", "objects": {"bbox": [[1, 2, 3, 4]], "categories": [0]}},
    {"file_name": "sub/2.png", "label": None, "objects": {"bbox": [], "categories": []}},
]


def zip_of(files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in files:
            archive.writestr(name, data)
    return file.getvalue()


def put(root, name, data):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def members(root, **settings):
    config = ArchiveConfig(path=str(root), **settings)
    listing = list_archive(config)
    shard = Shard("group", "files", 0, "", files=listing.files, root=listing.root)
    return list(read_members(shard, config)), listing


@pytest.mark.parametrize("form", ["jsonl", "parquet", "csv"])
def test_metadata_beside_the_images(tmp_path, form):
    train = tmp_path / "train"
    for name in ("1.png", "sub/2.png", "3.png"):
        put(train, name, png(1))
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), train / "metadata.parquet")
    elif form == "jsonl":
        (train / "metadata.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    else:
        (train / "metadata.csv").write_text("file_name,label,x,y,w,h\n1.png,cat,1,2,3,4\nsub/2.png,,,,,\n")
    found, listing = members(tmp_path)
    assert [(m.name, m.label, m.boxes) for m in found] == [
        ("train/1.png", "cat", Boxes(((1, 2, 4, 6),), in_pixels=True)),
        ("train/3.png", "train", None),
        ("train/sub/2.png", None, None),  # neither `train` nor `sub`
    ]
    assert listing.left_out == {"metadata": 1}


def test_a_changed_label_changes_only_its_file(tmp_path):
    for name in ("1.png", "2.png"):
        put(tmp_path, name, png(1))
    versions = []
    for label in "ab":
        put(tmp_path, "metadata.csv", f"file_name,label\n1.png,{label}\n2.png,c\n".encode())
        versions.append([f.version for f in members(tmp_path)[1].files])
    assert versions[0][0] != versions[1][0]
    assert versions[0][1] == versions[1][1]


def test_sidecars_fill_what_metadata_leaves_open(tmp_path):
    put(tmp_path, "d/1.png", png(1))
    put(tmp_path, "d/1.json", json.dumps({"label": "dog", "box": [0.1, 0.2, 0.3, 0.4]}).encode())
    put(tmp_path, "d/metadata.csv", b"file_name,label\n1.png,cat\n")
    ((member,), _) = members(tmp_path)
    assert (member.label, member.boxes) == ("cat", Boxes(((0.1, 0.2, 0.3, 0.4),), in_pixels=False))


def test_a_mask_is_relative_to_the_metadata(tmp_path):
    put(tmp_path, "d/1.png", png(1))
    put(tmp_path, "masks/1.png", b"mask")
    put(tmp_path, "d/metadata.csv", b"file_name,mask_file_name\n1.png,../masks/1.png\n")
    found, _ = members(tmp_path)
    assert [(m.name, m.mask) for m in found] == [("d/1.png", b"mask"), ("masks/1.png", None)]


def test_files_that_only_the_metadata_knows_are_counted(tmp_path):
    put(tmp_path, "1.png", png(1))
    put(tmp_path, "metadata.csv", b"file_name,label\n1.png,a\ngone.png,b\n")
    _, listing = members(tmp_path)
    assert listing.left_out == {"metadata": 1, "in metadata only": 1}


def test_a_metadata_file_of_something_else_stays_a_file(tmp_path):
    put(tmp_path, "1.png", png(1))
    put(tmp_path, "metadata.csv", b"key,value\na,b\n")
    found, listing = members(tmp_path)
    assert [m.status for m in found] == [Status.OK, Status.SKIPPED]
    assert listing.left_out == {}


def test_a_bad_row_fails_its_image_and_no_other(tmp_path):
    """Nor does it end the run: the same metadata would end every night."""
    for name in ("1.png", "2.png"):
        put(tmp_path, name, png(1))
    put(tmp_path, "metadata.csv", b"file_name,x,y,w,h\n1.png,1,2,3,oops\n,1,1,1,1\n2.png,1,2,3,4\n")
    (bad, good), listing = members(tmp_path)
    assert (bad.status, bad.content, bad.error_code) == (Status.FAILED, None, ErrorCode.MEMBER_UNREADABLE)
    assert bad.error_message == "metadata.csv line 2: 'oops' is not a number a box can have"
    assert (good.content, good.boxes) == (png(1), Boxes(((1, 2, 4, 6),), in_pixels=True))
    assert listing.left_out == {"metadata": 1, "unusable row of metadata": 1}


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("train/cat/1.png", "cat"),
        ("test/1.png", "test"),
        ("val/dog/x/1.png", "dog"),
        ("cat/train/1.png", "cat"),
    ],
)
def test_a_split_is_no_class(tmp_path, path, label):
    put(tmp_path, path, png(1))
    assert members(tmp_path)[0][0].label == label


# ── img2dataset ──────────────────────────────────────────────────────────────────────────────────


def sample(key, caption="a photo of a cat", **more):
    info = {"caption": caption, "url": "https://host/x", "key": key, "status": "success", "width": 8} | more
    text = json.dumps(info).encode()
    return [(f"{key}.jpg", png(1)), (f"{key}.json", text), (f"{key}.txt", (caption or "").encode())]


def test_a_caption_is_no_label(tmp_path):
    data = sample("000000000") + sample("000000001", label="dog") + sample("000000002", **{"cls": 4})
    data += [("000000003.jpg", png(1)), ("000000003.txt", b"cat")]
    found, code, _ = read(tmp_path, tar_of(data))
    assert code is None
    assert [(m.name, m.label, m.label_class) for m in found] == [
        ("000000000.jpg", None, None),
        ("000000001.jpg", "dog", None),
        ("000000002.jpg", None, 4),
        ("000000003.jpg", "cat", None),  # no json says that it is a caption
    ]


def test_captions_may_be_said_to_be_captions(tmp_path):
    data = tar_of([("0.jpg", png(1)), ("0.txt", b"a cat"), ("0.cls", b"3")])
    (member,), _, _ = read(tmp_path, data, config=ArchiveConfig(captions=True))
    assert (member.label, member.label_class) == (None, 3)


def test_the_number_of_a_folder_is_no_class_of_captioned_images(tmp_path):
    """`--output_format files` fills folders 00000, 00001 ...; without captions (GTSRB) they are classes."""
    for name, data in sample("00000/000000000") + sample("00001/000010000", label="dog"):
        put(tmp_path, name, data)
    put(tmp_path, "00002/a.jpg", png(1))
    found, _ = members(tmp_path)
    assert [(m.name, m.label) for m in found] == [
        ("00000/000000000.jpg", None), ("00001/000010000.jpg", "dog"), ("00002/a.jpg", "00002"),
    ]  # fmt: skip


def test_what_lies_beside_the_tars_is_passed_over(tmp_path):
    put(tmp_path, "00000.tar", tar_of(sample("000000000")))
    pq.write_table(pa.table({"url": ["x"], "caption": ["y"], "key": ["0"]}), tmp_path / "00000.parquet")
    put(tmp_path, "00000_stats.json", b"{}")
    listing = list_archive(ArchiveConfig(path=str(tmp_path)))
    assert [s.uri for s in listing.shards] == [f"{tmp_path}/00000.tar"]
    assert listing.files == ()
    assert listing.left_out == {"metadata": 2}


@pytest.mark.parametrize("form", ["\u00fc.png", "u\u0308.png"])
def test_unicode_twins_are_matched_where_it_is_clear_which_is_meant(tmp_path, form):
    """Metadata in one normal form, names in the other, masks as well; two such files are told."""
    other = unicodedata.normalize("NFD" if form == "\u00fc.png" else "NFC", form)
    put(tmp_path, other, png(1))
    put(tmp_path, f"m/{other}", b"mask")
    put(tmp_path, "metadata.csv", f"file_name,label,mask\n{form},cat,m\\{form}\n".encode())
    found, listing = members(tmp_path)
    assert [(m.label, m.mask) for m in found if m.name == other] == [("cat", b"mask")]
    assert listing.left_out == {"metadata": 1}


def test_what_metadata_says_of_several_files_is_told(tmp_path):
    for name in (
        "d\u0323\u0307.png",
        "\u1e0d\u0307.png",
    ):  # one name in two forms, of which neither is listed
        put(tmp_path, name, png(1))
    put(tmp_path, "metadata.csv", "file_name,label\n\u1e0b\u0323.png,cat\n".encode())
    found, listing = members(tmp_path)
    assert [m.label for m in found] == [None, None]
    assert listing.left_out == {"metadata": 1, "in metadata for several files": 1}


def test_backslashes_in_metadata(tmp_path):
    put(tmp_path, "train/cat/1.png", png(1))
    put(tmp_path, "train/metadata.csv", b"file_name,label\n.\\cat\\1.png,lion\n")
    assert members(tmp_path)[0][0].label == "lion"


def test_metadata_in_another_encoding_is_refused_by_its_line(tmp_path):
    put(tmp_path, "1.png", png(1))
    put(tmp_path, "metadata.csv", "file_name,label\n1.png,k\u00fc\n".encode("cp1252"))
    with pytest.raises(
        UsageError, match=r"metadata\.csv line 2: bytes that are no text in utf-8\. Fix: --enc"
    ):
        members(tmp_path)
    assert members(tmp_path, encoding="cp1252")[0][0].label == "k\u00fc"


# ── sidecars ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", ["1" + "0" * 400, "9" * 9000, "1e400", "NaN", "-Infinity", "2000000000"])
@pytest.mark.parametrize("place", ["tar", "zip", "beside"])
def test_a_number_that_no_box_has_fails_its_image_and_ends_nothing(tmp_path, number, place):
    """A whole number of 400 digits is beyond every float; of 9000, beyond Python's own reading."""
    content = f'{{"label": "cat", "bbox": [0, 0, {number}, 5]}}'.encode()
    files = [("a.png", png(1)), ("a.json", content), ("b.png", png(2)), ("b.json", b'{"label": 5.0}')]
    if place == "beside":
        for name, data in files:
            put(tmp_path, name, data)
        bad, good = members(tmp_path)[0]
    else:
        data = tar_of(files) if place == "tar" else zip_of(files)
        (bad, good), code, _ = read(tmp_path, data, place)
        assert code is None
    assert (bad.status, bad.error_code, bad.content) == (Status.FAILED, ErrorCode.MEMBER_UNREADABLE, None)
    assert "is not a number a box can have" in bad.error_message
    assert bad.label == "cat"
    assert (good.content, good.label_class) == (png(2), 5)


def test_what_else_a_sidecar_holds_is_left_out(tmp_path):
    texts = ['{"label": {"a": 1}, "bbox": "wide"}', '{"label": [1, 2]}', '{"label": true}', '["dog"]', '"7"']
    files = [
        (f"{i}.{end}", data)
        for i, text in enumerate(texts)
        for end, data in (("png", png(i)), ("json", text.encode()))
    ]
    found, code, _ = read(tmp_path, tar_of(files))
    assert code is None
    assert [(m.status, m.label, m.label_class) for m in found] == [
        *[(Status.OK, None, None)] * 3, (Status.OK, "dog", None), (Status.OK, None, 7),
    ]  # fmt: skip
