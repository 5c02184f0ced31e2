"""Which members a file with several frames becomes; names, indices and versions follow from the file."""

import pytest

from camray.archive.frames import MOST_FRAMES, expanded, file_index, version_mark
from camray.archive.listing import list_archive
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, ShardError, UsageError
from camray.options import load
from camray.records import Member, member_array, with_own_content

FILE = Member(5, "a/x.gif", b"content", label="fox")


def names(frames: str, count: int) -> list[tuple[int, str, int | None]]:
    return [(m.index, m.name, m.frame) for m in expanded(FILE, frames, count)]


def test_names_and_indices() -> None:
    assert names("all", 3) == [(20480 + i, f"a/x.gif#{i}", i) for i in range(3)]
    assert names("all", 1) == [(20480, "a/x.gif", None)]
    assert [names("middle", count)[0][1] for count in (1, 2, 3, 10)] == [
        "a/x.gif", "a/x.gif#1", "a/x.gif#1", "a/x.gif#5",
    ]  # fmt: skip
    assert names("2", 3) == [(5, "a/x.gif#2", 2)]
    assert names("2", 1) == [(5, "a/x.gif", None)]
    assert {file_index(m.index, "all") for m in expanded(FILE, "all", MOST_FRAMES)} == {5}
    assert file_index(5, "middle") == 5


def test_a_frame_that_is_not_there_and_too_many_are_failed_members() -> None:
    (missing,) = expanded(FILE, "3", 3)
    assert (missing.error_code, missing.error_message) == (
        ErrorCode.NO_SUCH_FRAME, "no frame 3: it has 3, counted from 0",
    )  # fmt: skip
    (many,) = expanded(FILE, "all", MOST_FRAMES + 1)
    assert many.error_code == ErrorCode.MEMBER_TOO_LARGE
    assert (missing.name, missing.label, missing.content) == ("a/x.gif", "fox", None)
    with pytest.raises(ShardError, match="524,288 files"):
        list(expanded(Member(2**19, "x"), "all", 1))


def test_other_frames_are_other_content_and_the_first_is_that_of_before(tmp_path) -> None:
    (tmp_path / "x.gif").write_bytes(b"x")
    (tmp_path / "x.tar").write_bytes(b"x")
    versions = {}
    for frames in ("first", "all", "middle", "3"):
        listing = list_archive(ArchiveConfig(str(tmp_path), frames=frames))
        versions[frames] = listing.files[0].version, listing.shards[0].version
    assert len({v for pair in versions.values() for v in pair}) >= 4
    assert all(v == f"{first}#all" for v, first in zip(versions["all"], versions["first"], strict=True))
    assert version_mark("first") == ""


def test_frames_of_a_file_share_its_content_once_a_chunk() -> None:
    members = [*expanded(FILE, "all", 3), Member(6 * MOST_FRAMES, "y.png", b"other")]
    packed = member_array(members)
    assert packed.field("content").to_pylist() == [b"content", None, None, b"other"]
    assert packed.field("content_of").to_pylist() == [None, 20480, 20480, None]
    own = with_own_content(packed)
    assert own.field("content").to_pylist() == [b"content"] * 3 + [b"other"]
    assert own.field("content_of").null_count == 4


def test_a_number_may_be_one_in_a_file_of_settings() -> None:
    named = {"archive.path": "a", "out": "b", "model.name": "m", "archive.frames": 3}
    assert load(None, named).archive.frames == "3"


@pytest.mark.parametrize("frames", ["last", "-1", "1.5", "", "ALL", "12345678901"])
def test_other_words_are_refused(frames: str) -> None:
    with pytest.raises(UsageError, match="--frames"):
        load(None, {"archive.path": "a", "out": "b", "model.name": "m", "archive.frames": frames})
