"""`--retry CODE`: failures of that kind are done again, their shards replaced in one transaction."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import camray
from camray.errors import ErrorCode, ImageError, UsageError
from camray.image.guarded import GuardedDecoder
from tests.audit.night_world import explain, settings_for


def picture(size: int) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (size, size), (size % 255, 90, 9)).save(made, "PNG")
    return made.getvalue()


def write(path: Path, *contents: bytes) -> None:
    with tarfile.open(path, "w") as tar:
        for i, content in enumerate(contents):
            about = tarfile.TarInfo(f"{i}.png")
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Three shards of three: one sound, one with no image, one with an image of too many pixels in it."""
    folder = tmp_path / "archive"
    folder.mkdir()
    write(folder / "a.tar", picture(64), picture(65), picture(66))
    write(folder / "b.tar", picture(64), b"no image at all", picture(66))
    write(folder / "c.tar", picture(64), picture(300), picture(66))
    return folder


def said(out: Path) -> dict[tuple[str, str], tuple[str | None, str]]:
    """(shard, member) -> error code, run."""
    rows = camray.open_records(str(out)).to_table(columns=["shard", "member", "error_code", "run_id"])
    found = {(r["shard"][-5:], r["member"]): (r["error_code"], r["run_id"]) for r in rows.to_pylist()}
    assert len(found) == rows.num_rows, "a member has two rows"
    return found


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """A decoder that has not the time for large images, until it has: a smaller machine, a larger one."""
    slow, real = {"is": True}, GuardedDecoder.decode

    def decode(guard: GuardedDecoder, content: Any, *about: Any, **more: Any) -> Any:
        if slow["is"] and bytes(content) == picture(300):
            raise ImageError(ErrorCode.DECODE_TIMEOUT, "took longer than 60 s")
        return real(guard, content, *about, **more)

    monkeypatch.setattr(GuardedDecoder, "decode", decode)
    return slow


def test_only_shards_with_that_failure_are_done_again(
    archive: Path, tmp_path: Path, decoder: dict[str, bool]
) -> None:
    settings = settings_for(archive, tmp_path / "out", run__max_failed=5)
    assert explain(settings, "first") == 9
    before = said(tmp_path / "out")
    assert [code for code, _ in before.values()].count(None) == 7
    decoder["is"] = False
    assert explain(settings, "plain") == 0  # sealed

    again = settings_for(archive, tmp_path / "out", run__max_failed=5, run__retry=("decode_timeout",))
    assert explain(again, "again") == 3
    after = said(tmp_path / "out")
    assert after["c.tar", "1.png"] == (None, "again")
    assert {key for key in after if after[key] != before[key]} == {("c.tar", f"{i}.png") for i in range(3)}
    assert explain(again, "nothing left") == 0
    assert explain(settings, "plain") == 0


def test_failed_means_any_and_what_fails_still_is_tried_each_time(
    archive: Path, tmp_path: Path, decoder: dict[str, bool]
) -> None:
    settings = settings_for(archive, tmp_path / "out", run__max_failed=5, run__retry=("failed",))
    assert explain(settings, "first") == 9
    decoder["is"] = False
    assert explain(settings, "second") == 6
    assert explain(settings, "third") == 3
    assert said(tmp_path / "out")["b.tar", "1.png"] == ("not_an_image", "third")


def test_killed_midway_it_is_resumed(archive: Path, tmp_path: Path, decoder: dict[str, bool]) -> None:
    settings = settings_for(archive, tmp_path / "out", run__max_failed=5, run__retry=("failed",))
    explain(settings, "first")
    decoder["is"] = False
    explain(settings, "killed", die_after=1)
    seen = said(tmp_path / "out")
    assert {run for _, run in seen.values()} == {"first", "killed"}
    explain(settings, "resumed")
    assert said(tmp_path / "out")["c.tar", "1.png"][0] is None
    assert len(said(tmp_path / "out")) == 9


def test_a_part_does_not_take_the_place_of_the_whole(
    archive: Path, tmp_path: Path, decoder: dict[str, bool]
) -> None:
    """`--limit 8 --retry`: of the last shard two of three are asked for, and all three are there."""
    explain(settings_for(archive, tmp_path / "out", run__max_failed=5), "first")
    decoder["is"] = False
    few = settings_for(archive, tmp_path / "out", run__max_failed=5, run__retry=("failed",), archive__limit=8)
    explain(few, "few")
    assert len(said(tmp_path / "out")) == 9


def test_an_unknown_code_stops_before_anything_is_written(archive: Path, tmp_path: Path) -> None:
    settings = settings_for(archive, tmp_path / "out", run__retry=("timeout",))
    with pytest.raises(UsageError, match=r"--retry: 'timeout' is no error code.*decode_timeout"):
        explain(settings, "wrong")
    assert not (tmp_path / "out").exists()
