"""The list of readers: every format has its own name and endings; one more is one module and its name."""

import dataclasses
import sys
from types import ModuleType

import pytest

from camray.archive import readers
from camray.archive.listing import list_archive
from camray.archive.members import image_indices, read_members, select
from camray.archive.readers import Reader, packed_format
from camray.config import ArchiveConfig
from camray.errors import UsageError
from camray.records import Member


def test_formats_and_endings_are_unique():
    found = readers.readers()
    endings = [suffix for reader in found.values() for suffix in reader.suffixes]
    assert len(found) == len(readers.FORMATS)
    assert len(set(endings)) == len(endings)
    for reader in found.values():
        assert reader.images
        assert reader.annotations
        assert all(packed_format(f"A{suffix.upper()}") == reader.format for suffix in reader.suffixes)


def _lines(file, size, config, is_needed):
    for index, line in enumerate(file.read().splitlines()):
        yield Member(index, f"line-{index}", line if is_needed(index) else None)


def _refuse(file, size, config):
    raise UsageError("ARCHIVE", "no lines")


@pytest.fixture
def lines(monkeypatch):
    """A format that packs one image a line."""

    def use(**fields):
        module = ModuleType("camray.archive.lines")
        module.READER = Reader("lines", (".lines",), _lines, "its lines", "none", **fields)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(readers, "FORMATS", (*readers.FORMATS, "lines"))
        readers.readers.cache_clear()

    yield use
    readers.readers.cache_clear()


@pytest.mark.parametrize("counted", [False, True])
def test_a_further_format_is_listed_read_and_counted(lines, tmp_path, counted):
    lines(count=(lambda file, size: file.read().count(b"\n")) if counted else None)
    (tmp_path / "a.lines").write_bytes(b"x\ny\nz\n")
    config = ArchiveConfig(path=str(tmp_path))
    listing = list_archive(config)
    (shard,) = listing.shards
    assert (shard.format, listing.files) == ("lines", ())
    assert [m.content for m in read_members(shard, config)] == [b"x", b"y", b"z"]
    assert list(image_indices(shard, config)) == [0, 1, 2]
    (part,) = select(listing, dataclasses.replace(config, limit=2)).shards
    assert [m.content for m in read_members(part, config)] == [b"x", b"y"]


def test_a_format_may_refuse_a_file_at_plan_time(lines, tmp_path):
    lines(check=_refuse)
    (tmp_path / "a.lines").write_bytes(b"x\n")
    with pytest.raises(UsageError, match="no lines"):
        list_archive(ArchiveConfig(path=str(tmp_path)))
