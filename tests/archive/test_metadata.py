"""Hugging Face image folders, and WebDatasets as img2dataset writes them."""

import json

import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from camray.archive.listing import list_archive
from camray.archive.members import read_members
from camray.config import ArchiveConfig
from camray.errors import UsageError
from camray.records import Boxes, Shard, Status
from tests.archive.makers import png, read, tar_of

ROWS = [
    {"file_name": "1.png", "label": "cat", "objects": {"bbox": [[1, 2, 3, 4]], "categories": [0]}},
    {"file_name": "sub/2.png", "label": None, "objects": {"bbox": [], "categories": []}},
]


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


def test_a_bad_row_is_refused_by_name(tmp_path):
    put(tmp_path, "1.png", png(1))
    put(tmp_path, "metadata.csv", b"file_name,x,y,w,h\n1.png,1,2,3,oops\n")
    with pytest.raises(UsageError, match=r"metadata\.csv line 2: 'oops'"):
        members(tmp_path)


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


def test_what_lies_beside_the_tars_is_passed_over(tmp_path):
    put(tmp_path, "00000.tar", tar_of(sample("000000000")))
    pq.write_table(pa.table({"url": ["x"], "caption": ["y"], "key": ["0"]}), tmp_path / "00000.parquet")
    put(tmp_path, "00000_stats.json", b"{}")
    listing = list_archive(ArchiveConfig(path=str(tmp_path)))
    assert [s.uri for s in listing.shards] == [f"{tmp_path}/00000.tar"]
    assert listing.files == ()
    assert listing.left_out == {"metadata": 2}
