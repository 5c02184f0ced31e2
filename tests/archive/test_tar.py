"""Members of a tar: rows, labels, what is skipped, and what survives damage."""

import bz2
import dataclasses
import gzip
import io
import json
import lzma
import random
import tarfile

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from camray.archive.readers import packed_format
from camray.errors import ErrorCode
from camray.records import Status
from tests.archive.makers import CONFIG, END, entry, header, octal, png, read, tar_of


def rows(members):
    return [(m.index, m.name, m.content) for m in members]


def test_images_in_order(tmp_path):
    data = [(f"{i}.png", png(i)) for i in range(5)]
    members, code, _ = read(tmp_path, tar_of(data))
    assert rows(members) == [(i, n, d) for i, (n, d) in enumerate(data)]
    assert code is None


def test_gzip_is_recognised_by_content(tmp_path):
    data = [(f"{i}.png", png(i)) for i in range(5)]
    members, code, _ = read(tmp_path, gzip.compress(tar_of(data)))
    assert [m.content for m in members] == [d for _, d in data]
    assert code is None


def test_packed_twice(tmp_path):
    members, code, message = read(tmp_path, gzip.compress(gzip.compress(tar_of([("0.png", png(0))]))))
    assert (members, code) == ([], ErrorCode.SHARD_UNREADABLE)
    assert "gzip" in message


def test_cut_gzip(tmp_path):
    noise = random.Random(0).randbytes
    packed = gzip.compress(tar_of([(f"{i}.png", noise(5000)) for i in range(40)]))
    members, code, message = read(tmp_path, packed[: len(packed) // 2])
    assert code == ErrorCode.SHARD_TRUNCATED
    assert 10 < len(members) < 30
    assert f"{len(members)} members before it were kept" in message


def test_gzip_bomb_is_stopped(tmp_path):
    bomb = gzip.compress(header(b"a.jpg", octal(120 * 2**20)) + bytes(120 * 2**20), 6)
    assert len(bomb) < 2**18
    _, code, message = read(tmp_path, bomb, wanted=lambda _: False)
    assert code == ErrorCode.SHARD_CORRUPT
    assert "200 times" in message


@pytest.mark.parametrize("before", [True, False])
def test_sidecars_before_or_after(tmp_path, before):
    def group(key, **sides):
        sidecars = [(f"{key}.{ext}", text.encode()) for ext, text in sides.items()]
        image = [(f"{key}.png", png(1))]
        return sidecars + image if before else image + sidecars

    data = (
        group("a", cls="7", txt="a cat\n")
        + group("b", json=json.dumps({"label": "dog", "class_id": 3, "x": [1]}))
        + group("c")
        + group("d", cls="not a number")
        + group("e", cls="2", json=json.dumps({"label": 9, "class": "bird"}))
        + group("f", json="{broken")
        + group("g", cls="-1", txt="   ")
        + group("h", json=json.dumps({"label": True}))
        + group("i", json="[" * 100_000)
    )
    members, code, _ = read(tmp_path, tar_of(data))
    assert code is None
    assert [(m.name, m.label, m.label_class) for m in members] == [
        ("a.png", "a cat", 7),
        ("b.png", "dog", 3),
        ("c.png", None, None),
        ("d.png", "not a number", None),
        ("e.png", "bird", 2),
        ("f.png", None, None),
        ("g.png", None, None),
        ("h.png", None, None),
        ("i.png", None, None),
    ]


def test_two_images_of_a_key_share_a_label_and_numbered_names_do_not(tmp_path):
    data = [("a.png", png(1)), ("a.seg.png", png(2)), ("a.cls", b"4")]
    data += [("f.001.png", png(3)), ("f.001.cls", b"1"), ("f.002.png", png(4)), ("f.002.cls", b"2")]
    members, _, _ = read(tmp_path, tar_of(data))
    assert [(m.name, m.label_class) for m in members] == [
        ("a.png", 4),
        ("a.seg.png", 4),
        ("f.001.png", 1),
        ("f.002.png", 2),
    ]


def test_sidecars_of_another_run_of_the_key_do_not_count(tmp_path):
    members, _, _ = read(tmp_path, tar_of([("a.cls", b"1"), ("b.png", png()), ("a.png", png())]))
    assert [(m.name, m.status, m.label_class) for m in members] == [
        ("a.cls", Status.SKIPPED, None),
        ("b.png", Status.OK, None),
        ("a.png", Status.OK, None),
    ]


def test_what_is_skipped_and_why(tmp_path):
    data = [
        ("alone.txt", b"no image"),
        ("code.pkl", b"\x80\x04."),
        ("array.npy", b"\x93NUMPY"),
        ("._a.jpg", b"resource fork"),
        ("__MACOSX/b.jpg", b"resource fork"),
        ("noextension", png()),
        ("UPPER.JPEG", png()),
        ("x.heic", b"not decodable, yet an image by name"),
    ]
    members, code, _ = read(tmp_path, tar_of(data))
    assert code is None
    assert [m.index for m in members] == list(range(8))
    assert [m.status for m in members] == [Status.SKIPPED] * 5 + [Status.OK] * 3
    assert {m.error_code for m in members[:5]} == {ErrorCode.NOT_AN_IMAGE_NAME}
    assert all(m.content is None for m in members[:5])


@pytest.mark.parametrize("flag", [b"1", b"2", b"3", b"4", b"6", b"S", b"M", b"Z"])
def test_what_is_no_file_is_skipped(tmp_path, flag):
    odd = header(b"odd.jpg", octal(0), flag)
    members, code, _ = read(tmp_path, entry(b"dir/", flag=b"5") + odd + entry(b"a.png", png()) + END)
    assert code is None
    assert [(m.name, m.status, m.error_code) for m in members] == [
        ("odd.jpg", Status.SKIPPED, ErrorCode.NOT_A_FILE),
        ("a.png", Status.OK, None),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd.jpg",
        "C:\\x.jpg",
        "a\nb.jpg",
        "\x1b]0;t\x07.jpg",
        "\u202egpj.exe",
        "=1+1.jpg",
    ],
)
def test_hostile_names_are_only_labels(tmp_path, name):
    members, code, _ = read(tmp_path, tar_of([(name, png(3))]))
    assert (members[0].name, code) == (name, None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shard.tar"]


def test_names_that_are_no_utf8_and_very_long_ones(tmp_path):
    long = b"n" * 60_000 + b".jpg"
    data = entry(b"\xff\xfe.jpg", png()) + entry(b"L", long + b"\0", b"L") + entry(b"short", png()) + END
    members, code, _ = read(tmp_path, data)
    assert code is None
    assert members[0].name.encode("utf-8", "surrogateescape") == b"\xff\xfe.jpg"
    assert len(members[1].name) <= 4096
    assert members[1].status == Status.OK


def test_a_member_over_the_cap_is_not_read(tmp_path):
    config = dataclasses.replace(CONFIG, max_member_bytes=1000)
    data = [("a.jpg", b"x" * 1000), ("b.jpg", b"x" * 1001), ("c.jpg", b"y")]
    members, code, _ = read(tmp_path, tar_of(data), config=config)
    assert [m.error_code for m in members] == [None, ErrorCode.MEMBER_TOO_LARGE, None]
    assert members[1].content is None
    assert "1,001" in members[1].error_message
    assert code is None


def test_empty_and_memberless(tmp_path):
    assert read(tmp_path, b"")[1] == ErrorCode.SHARD_UNREADABLE
    assert read(tmp_path, END)[1] == ErrorCode.SHARD_EMPTY
    assert read(tmp_path, entry(b"d/", flag=b"5") + END)[1] == ErrorCode.SHARD_EMPTY


def test_members_before_damage_are_kept(tmp_path):
    data = [(f"{i}.png", png(i)) for i in range(6)]
    whole = tar_of(data)
    with tarfile.open(fileobj=io.BytesIO(whole)) as t:
        at = t.getmembers()[3].offset
    members, code, message = read(tmp_path, whole[:at] + b"\1" * 512 + whole[at + 512 :])
    assert [m.content for m in members] == [d for _, d in data[:3]]
    assert code == ErrorCode.SHARD_CORRUPT
    assert f"byte {at:,}" in message
    assert "3 members before it were kept" in message


def test_half_a_member_is_no_member(tmp_path):
    body = entry(b"a.png", png()) + header(b"b.png", octal(2000)) + b"x" * 1500
    members, code, _ = read(tmp_path, body)
    assert ([m.name for m in members], code) == (["a.png"], ErrorCode.SHARD_TRUNCATED)


def test_unwanted_members_are_not_read(tmp_path):
    data = [(f"{i}.png", png(i)) for i in range(6)]
    members, _, _ = read(tmp_path, tar_of(data), wanted=lambda i: i in (1, 4))
    assert [m.content for m in members] == [d if i in (1, 4) else None for i, (_, d) in enumerate(data)]
    assert [m.index for m in members] == list(range(6))


def test_selection_keeps_the_indices(tmp_path):
    data = [(f"{i}.png", png(i)) for i in range(6)]
    members, code, _ = read(tmp_path, tar_of(data), selection=(2, 5))
    assert rows(members) == [(2, *data[2]), (5, *data[5])]
    assert code is None


def test_selection_stops_before_later_damage(tmp_path):
    members, code, _ = read(tmp_path, tar_of([("a.png", png()), ("b.png", png())])[:1600], selection=(0,))
    assert ([m.index for m in members], code) == ([0], None)


def test_selection_of_what_is_not_there(tmp_path):
    _, code, _ = read(tmp_path, tar_of([("a.png", png())]), selection=(0, 3))
    assert code == ErrorCode.SHARD_CHANGED


NAMES = st.tuples(
    st.sampled_from(["a", "b", "c/d", "e.f", "ü", "x" * 120]),
    st.sampled_from(["png", "JPG", "cls", "txt", "pkl", ""]),
).map(lambda parts: f"{parts[0]}.{parts[1]}" if parts[1] else parts[0].replace(".", "_"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    members=st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=12),
    fmt=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_every_member_has_exactly_its_row(tmp_path, members, fmt):
    found, code, _ = read(tmp_path, tar_of(members, format=fmt))
    images = [(n, d) for n, d in members if not n.endswith((".cls", ".txt", ".pkl"))]
    assert [(m.name, m.content) for m in found if m.status == Status.OK] == images
    assert sum(m.name.endswith(".pkl") for m in found) == sum(n.endswith(".pkl") for n, _ in members)
    assert [m.index for m in found] == list(range(len(found)))
    assert code in (None, ErrorCode.SHARD_EMPTY)
    assert (code == ErrorCode.SHARD_EMPTY) == (not members)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_is_silent(tmp_path, data):
    """Whatever byte is changed: the same images come out, or an error is raised."""
    members = [(f"{i}.png", bytes([i + 1]) * 600) for i in range(4)]
    whole = bytearray(tar_of(members)[: 4 * 1536 + 1024])
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    found, code, _ = read(tmp_path, bytes(whole))
    assert code is not None or [m.name for m in found] == [n for n, _ in members]


def test_a_tar_packed_by_anything_common_is_read_whatever_its_name_says(tmp_path):
    data = tar_of([("dog/1.png", png(1)), ("dog/2.png", png(2)), ("dog/2.cls", b"4")])
    zstd = pa.BufferOutputStream()
    with pa.CompressedOutputStream(zstd, "zstd") as file:
        file.write(data)
    packed = {
        "gz": gzip.compress(data), "bz2": bz2.compress(data), "xz": lzma.compress(data),
        "zst": zstd.getvalue().to_pybytes(),
    }  # fmt: skip
    for ending, whole in packed.items():
        assert packed_format(f"a.tar.{ending}") == "tar"
        members, code, _ = read(tmp_path, whole)
        assert code is None, ending
        assert [(m.content, m.label, m.label_class) for m in members] == [
            (png(1), "dog", None), (png(2), "dog", 4),
        ]  # fmt: skip
        _, code, _ = read(tmp_path, whole[: len(whole) // 2])
        assert code in (ErrorCode.SHARD_TRUNCATED, ErrorCode.SHARD_CORRUPT), ending


def test_a_metadata_file_in_a_tar_is_said_to_be_unused(tmp_path):
    members, _, _ = read(
        tmp_path, tar_of([("a.png", png()), ("metadata.csv", b"file_name,label\na.png,x\n")])
    )
    assert [m.label for m in members] == [None, None]
    assert members[1].note.startswith("metadata file inside a tar, not used")
