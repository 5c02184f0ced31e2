"""A moment's trouble of a disk is not sealed: the next night reads what could not be read."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import camray
from camray.archive import files
from tests.audit.night_world import explain, settings_for

BAD = "2.jpg"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (64, 64), (40 * i, 90, 9)).save(folder / f"{i}.jpg")
    (folder / "1.json").write_text('{"label": "disk"}')
    return folder


def refuse(monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    real = os.open

    def opened(path: Any, *about: Any, **more: Any) -> int:
        if str(path).endswith(f"archive/{name}"):
            raise OSError(code, os.strerror(code), path)
        return real(path, *about, **more)

    monkeypatch.setattr(files.os, "open", opened)


def said(out: Path) -> dict[str, tuple[str | None, str | None]]:
    rows = camray.open_records(str(out)).to_table(columns=["member", "error_code", "label"]).to_pylist()
    assert len(rows) == 4
    return {row["member"]: (row["error_code"], row["label"]) for row in rows}


@pytest.mark.parametrize(
    ("name", "member", "code"),
    [
        (BAD, BAD, errno.EACCES),
        (BAD, BAD, errno.EIO),
        (BAD, BAD, errno.ETIMEDOUT),
        ("1.json", "1.jpg", errno.EACCES),
    ],
)
def test_what_could_not_be_read_is_read_the_next_night(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, member: str, code: int
) -> None:
    """A file without permission, or a bad moment of its disk; a sidecar likewise: its label is not lost."""
    settings = settings_for(archive, tmp_path / "out")
    with monkeypatch.context() as broken:
        refuse(broken, name, code)
        explain(settings, "r1")
        assert said(tmp_path / "out")[member][0] == "member_read_failed"
        assert explain(settings, "r2") == 0  # nothing changed: the other images are not done again
    assert explain(settings, "r3") == 4
    assert said(tmp_path / "out")[member][0] is None
    assert said(tmp_path / "out")["1.jpg"][1] == "disk"
    assert explain(settings, "r4") == 0
