"""The same archive by another path is the same archive: nothing is done twice, nothing counts double."""

import shutil

import pytest

from camray.archive.listing import list_archive
from camray.archive.members import read_members, select
from camray.cli.jobs import typed_config
from camray.cli.main import build_parser, main
from camray.config import ArchiveConfig
from camray.errors import UsageError
from camray.job.prepare import chosen_shards, grouped, listed_for
from camray.ledger.intake import remember
from camray.ledger.table import Table
from camray.storage import open_folder
from tests.archive.makers import png, tar_of


@pytest.fixture
def archive(tmp_path):
    place = tmp_path / "in"
    (place / "d").mkdir(parents=True)
    (place / "a.tar").write_bytes(tar_of([("a.png", png(1))]))
    (place / "d" / "b.png").write_bytes(png(2))
    (place / "l.csv").write_bytes(b"path\na.tar\nd/b.png\n")
    return place


def shards_of(out, path, **settings):
    """Shards as a night sees them; what it saw is remembered."""
    listing = listed_for(out, ArchiveConfig(str(path), **settings))
    return remembered(out, listing)


def remembered(out, listing):
    groupings = grouped(out, listing, lambda _: False)
    for grouping in groupings:
        remember(out, grouping.root, grouping.new)
    return chosen_shards(listing, listing, groupings)


def contents(shards):
    found = (member.content for shard in shards for member in read_members(shard, ArchiveConfig()))
    return [content for content in found if content]  # the list is a file that is skipped


@pytest.mark.parametrize("inside", ["", "a.tar", "d/b.png", "l.csv"])
def test_a_moved_archive_is_known_by_where_it_lay(tmp_path, archive, inside):
    out = open_folder(str(tmp_path / "out"), "OUT")
    before = shards_of(out, archive / inside)
    read = contents(before)
    moved = archive.rename(tmp_path / "moved")
    after = shards_of(out, moved / inside, name=str(archive / inside))
    assert [shard.id for shard in after] == [shard.id for shard in before]
    assert after == shards_of(out, moved / inside, name=f"file://{archive / inside}")
    assert contents(after) == read
    other = shards_of(out, moved / inside)
    assert not {shard.key for shard in other} & {shard.key for shard in before}


def test_a_link_a_scheme_and_a_slash_are_no_other_archive(tmp_path, archive):
    out = open_folder(str(tmp_path / "out"), "OUT")
    (tmp_path / "link").symlink_to(archive)
    ids = [shard.id for shard in shards_of(out, archive)]
    for other in (tmp_path / "link", f"file://{archive}", f"{archive}/", f"{tmp_path}/link/../in/."):
        shards = shards_of(out, other)
        assert [shard.id for shard in shards] == ids
        assert contents(shards) == [png(1), png(2)]


def test_an_archive_that_out_knows_by_a_link_keeps_that_name(tmp_path, archive):
    """So 0.1.0 called it: nothing of it is done again."""
    out = open_folder(str(tmp_path / "out"), "OUT")
    (tmp_path / "link").symlink_to(archive)
    before = remembered(out, list_archive(ArchiveConfig(str(tmp_path / "link"))))
    assert [shard.id for shard in shards_of(out, tmp_path / "link")] == [shard.id for shard in before]
    assert not Table(out).holds_any({shard.key for shard in before})


def test_several_archives_at_once_are_what_each_is_alone(tmp_path, archive):
    """Equal names in two archives are two members; what two of them hold is there once."""
    out = open_folder(str(tmp_path / "out"), "OUT")
    other = tmp_path / "other"
    shutil.copytree(archive, other)
    (other / "d" / "b.png").write_bytes(png(7))
    alone = [shard.id for place in (archive, other) for shard in shards_of(out, place)]
    further = (str(other), str(archive / "a.tar"), str(archive))
    shards = shards_of(out, archive, also=further)
    assert sorted(shard.id for shard in shards) == sorted(alone)
    assert sorted(contents(shards)) == sorted([png(1), png(2), png(1), png(7)])
    listing = listed_for(out, ArchiveConfig(str(archive), also=(str(other),)))
    chosen = select(listing, ArchiveConfig(limit=3))
    assert len(contents(chosen_shards(chosen, listing, grouped(out, listing, lambda _: False)))) == 3


def test_archives_inside_each_other_or_under_one_name_are_refused(tmp_path, archive):
    out = open_folder(str(tmp_path / "out"), "OUT")
    with pytest.raises(UsageError, match="lies inside"):
        shards_of(out, archive, also=(str(archive / "d"),))
    with pytest.raises(UsageError, match="--archive-name"):
        shards_of(out, archive, also=(str(tmp_path),), name="x")


def test_the_last_of_several_places_is_out():
    args = build_parser().parse_args(["explain", "a", "b", "c", "out", "--model", "m"])
    config = typed_config(args)
    assert (config.archive.path, config.archive.also, config.out) == ("a", ("b", "c"), "out")
    config = typed_config(build_parser().parse_args(["explain", "a"]))
    assert (config.archive.path, config.archive.also, config.out) == ("a", (), "")


def test_an_archive_that_moved_without_a_word_is_told(demo, tmp_path, capsys):
    """All of it is done again: the line says what would have kept the records."""
    (tmp_path / "in").mkdir()
    shutil.copy(demo / "archive" / "hans64-00000.tar", tmp_path / "in")
    words = [str(tmp_path / "out"), "--model", str(demo / "models" / "hans64-poisoned"), "--limit", "2"]
    said = []
    for _ in range(2):
        main(["explain", str(tmp_path / "in"), *words, "--engine", "here"])
        said.append("OUT holds 1 shards, none of this archive" in capsys.readouterr().err)
    (tmp_path / "in").rename(tmp_path / "moved")
    main(["explain", str(tmp_path / "moved"), *words, "--engine", "here"])
    assert [*said, "none of this archive" in capsys.readouterr().err] == [False, False, True]
