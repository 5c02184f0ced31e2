"""Loose files are grouped once and remembered: new files move nothing, filters lose nothing."""

import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camray.errors import IncompleteError
from camray.ledger import intake
from camray.ledger.intake import GROUP_SIZE, Group, Grouping, group_files, recall, remember
from camray.records import LooseFile, Shard
from camray.storage import Folder

ROOT = "/photos"


def files(*names: str, version: str = "1") -> list[LooseFile]:
    return [LooseFile(n, 10, version) for n in names]


def names(group: Group) -> list[str]:
    return [f.path for f in group.files]


class Night:
    """Intake night after night, with a table that remembers which shards it holds."""

    def __init__(self, out: Folder) -> None:
        self.out, self.done = out, {}

    def is_committed(self, shard: Shard) -> bool:
        known = self.done.get(shard.key)
        return known in (shard.content_key, replace(shard, selection=None).content_key)

    def plan(self, listed: Sequence[LooseFile], root: str = ROOT) -> tuple[Grouping, list[Shard]]:
        grouping = group_files(root, listed, recall(self.out, root), self.is_committed)
        due = [s for s in (g.shard(root) for g in grouping.groups) if not self.is_committed(s)]
        return grouping, due

    def run(self, listed: Sequence[LooseFile], root: str = ROOT) -> list[Shard]:
        grouping, due = self.plan(listed, root)
        remember(self.out, root, grouping.new)
        for shard in due:
            self.done[shard.key] = shard.content_key
        return due


def read_by(shard: Shard) -> list[str]:
    """Names of the members a reader of the shard yields."""
    chosen = range(len(shard.files)) if shard.selection is None else shard.selection
    return [shard.files[i].path for i in chosen]


@pytest.fixture
def night(out: Folder) -> Night:
    return Night(out)


def test_the_first_night_groups_everything_in_order(night: Night) -> None:
    listed = files(*(f"{i:04d}.jpg" for i in range(GROUP_SIZE + 3)))
    first, second = night.run(listed)
    assert [f.path for f in first.files] == [f.path for f in listed[:GROUP_SIZE]]
    assert [f.path for f in second.files] == [f.path for f in listed[GROUP_SIZE:]]
    assert (first.uri, second.uri) == ("/photos#000000", "/photos#000001")
    assert (first.format, first.root, first.size_bytes) == ("files", ROOT, 10 * GROUP_SIZE)


def test_nothing_new_nothing_to_do(night: Night) -> None:
    listed = files("a", "b")
    night.run(listed)
    grouping, due = night.plan(listed)
    assert (due, grouping.new, grouping.gone) == ([], (), 0)
    assert [names(g) for g in grouping.groups] == [["a", "b"]]


def test_a_new_file_moves_no_other_wherever_it_sorts(night: Night) -> None:
    night.run(files("b", "d"))
    (new,) = night.run(files("a", "b", "c", "d"))
    assert [f.path for f in new.files] == ["a", "c"]
    assert [names(g) for g in recall(night.out, ROOT)] == [["b", "d"], ["a", "c"]]


def test_a_changed_file_revises_only_its_group(night: Night) -> None:
    night.run(files("a", "b"))
    night.run(files("a", "b", "c"))
    changed = [*files("a"), *files("b", version="2"), *files("c")]
    (due,) = night.run(changed)
    assert (due.uri, [(f.path, f.version) for f in due.files]) == ("/photos#000000", [("a", "1"), ("b", "2")])
    assert [(g.number, g.revision) for g in recall(night.out, ROOT)] == [(0, 1), (1, 0)]
    assert night.run(changed) == []


def test_a_changed_size_is_a_change(night: Night) -> None:
    night.run(files("a"))
    (due,) = night.run([LooseFile("a", 11, "1")])
    assert due.size_bytes == 11


def test_a_file_that_is_gone_costs_nothing_and_is_counted(night: Night) -> None:
    night.run(files("a", "b"))
    grouping, due = night.plan(files("a"))
    assert (due, grouping.new, grouping.gone) == ([], (), 1)


def test_an_unfinished_group_is_read_without_the_files_that_are_gone(night: Night) -> None:
    remember(night.out, ROOT, group_files(ROOT, files("a", "b", "c"), [], lambda _: False).new)
    (due,) = night.run(files("a", "c"))
    assert read_by(due) == ["a", "c"]
    assert night.run(files("a", "c")) == []


def test_a_group_all_of_whose_files_are_gone_is_not_read(night: Night) -> None:
    remember(night.out, ROOT, group_files(ROOT, files("a"), [], lambda _: False).new)
    grouping, due = night.plan([])
    assert (due, grouping.gone) == ([], 1)


def test_a_filter_of_another_explainer_does_not_break_up_what_is_done(night: Night, out: Folder) -> None:
    """Explainer A has all; B is tried on a part; A has nothing to do again, and never loses a row."""
    everything, part = files("cat/1", "dog/1"), files("cat/1")
    night.run(everything)
    other = Night(out)
    (tried,) = other.run(part)
    assert read_by(tried) == ["cat/1"]
    assert night.run(part) == []
    assert night.run(everything) == []
    (whole,) = other.run(everything)
    assert read_by(whole) == ["cat/1", "dog/1"]


def test_an_archive_beside_another_in_one_out(night: Night) -> None:
    night.run(files("a"))
    (other,) = night.run(files("a"), root="/other")
    assert other.uri == "/other#000000"
    assert other.key != night.plan(files("a"))[0].groups[0].shard(ROOT).key
    assert night.run(files("a")) == []
    assert [names(g) for g in recall(night.out, "/other")] == [["a"]]
    assert recall(night.out, "/third") == []


def test_odd_names_come_back_as_they_were(night: Night) -> None:
    odd = ["a\tb", "a\nb", "é", "e\u0301", "a%20b", " ", "x'y\"z"]
    night.run(files(*odd))
    assert [names(g) for g in recall(night.out, ROOT)] == [odd]
    assert night.run(files(*odd)) == []


@pytest.mark.skipif(not hasattr(LooseFile, "note"), reason="files carry no notes")
def test_what_a_list_says_of_a_file_comes_from_the_list_every_night(night: Night) -> None:
    """Only path, size and version are remembered; the version names the note."""

    def listed(note: str) -> list[LooseFile]:
        return [replace(f, note=note, version=f"1+{note}") for f in files("a", "b")]  # type: ignore[call-arg]

    night.run(listed("cat"))
    grouping, due = night.plan(listed("cat"))
    assert (due, grouping.new) == ([], ())
    assert grouping.groups[0].files == tuple(listed("cat"))
    remember(night.out, ROOT, group_files(ROOT, listed("cat"), [], lambda _: False).new)  # no conflict
    (changed,) = night.run(listed("dog"))
    assert changed.files == tuple(listed("dog"))


def test_two_runs_that_planned_at_once_do_not_double_a_file(night: Night) -> None:
    """Both looked before either wrote (planning comes before the hold). The later one is told to go again."""
    listed = files("a", "b")
    first, second = (group_files(ROOT, listed, recall(night.out, ROOT), lambda _: False) for _ in range(2))
    remember(night.out, ROOT, first.new)
    remember(night.out, ROOT, second.new)  # the same grouping: harmless
    assert [names(g) for g in recall(night.out, ROOT)] == [["a", "b"]]


def test_two_runs_that_planned_different_groups_at_once_do_not_mix(night: Night) -> None:
    first, second = (
        group_files(ROOT, files(*n), recall(night.out, ROOT), lambda _: False) for n in ("ab", "abc")
    )
    remember(night.out, ROOT, first.new)
    with pytest.raises(IncompleteError, match="another run"):
        remember(night.out, ROOT, second.new)
    assert [names(g) for g in recall(night.out, ROOT)] == [["a", "b"]]
    third = group_files(ROOT, files(*"abc"), recall(night.out, ROOT), lambda _: False)
    remember(night.out, ROOT, third.new)
    assert [names(g) for g in recall(night.out, ROOT)] == [["a", "b"], ["c"]]


def test_a_race_of_writers_leaves_one_grouping(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(night.out, "/warm", group_files("/warm", files("x"), [], lambda _: False).new)
    gate, refused = threading.Barrier(3, timeout=20), []
    real = intake.recall

    def together(out: Folder, root: str) -> list[Group]:
        found = real(out, root)
        gate.wait()  # every writer has looked before any writes
        return found

    monkeypatch.setattr(intake, "recall", together)

    def write(listed: str) -> None:
        try:
            remember(night.out, ROOT, group_files(ROOT, files(*listed), [], lambda _: False).new)
        except IncompleteError:
            refused.append(listed)

    threads = [threading.Thread(target=write, args=(listed,)) for listed in ("a", "ab", "abc")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 2
    (only,) = real(night.out, ROOT)
    assert names(only) == list(({"a", "ab", "abc"} - set(refused)).pop())


def test_a_writer_for_another_root_is_no_obstacle(night: Night) -> None:
    for i in range(3):
        remember(night.out, f"/r{i}", group_files(f"/r{i}", files("x"), [], lambda _: False).new)
    assert [len(recall(night.out, f"/r{i}")) for i in range(3)] == [1, 1, 1]


class InMemory(Night):
    """The same nights without a disk: what is remembered is the latest revision of each group."""

    def __init__(self) -> None:
        self.groups: dict[int, Group] = {}
        self.done = {}

    def run(self, listed: Sequence[LooseFile], root: str = ROOT) -> list[Shard]:
        known = [self.groups[n] for n in sorted(self.groups)]
        grouping = group_files(root, listed, known, self.is_committed)
        self.groups |= {g.number: g for g in grouping.new}
        due = [s for s in (g.shard(root) for g in grouping.groups) if not self.is_committed(s)]
        self.rows_of = getattr(self, "rows_of", {})
        for shard in due:
            self.done[shard.key] = shard.content_key
            self.rows_of[shard.key] = {(n, self.version_of(shard, n)) for n in read_by(shard)}
        return due

    @staticmethod
    def version_of(shard: Shard, name: str) -> str:
        return next(f.version for f in shard.files if f.path == name)


NIGHTS = st.lists(st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("12"), max_size=6), max_size=6)


@settings(max_examples=150, deadline=None)
@given(NIGHTS)
def test_every_night_ends_with_one_row_for_each_listed_file(nights: list[dict[str, str]]) -> None:
    """Files appear, change, vanish, return: what is listed has exactly one row, of its present version."""
    before, intake.GROUP_SIZE = intake.GROUP_SIZE, 2
    try:
        world = InMemory()
        for listed in nights:
            now = [LooseFile(n, 1, v) for n, v in sorted(listed.items())]
            world.run(now)
            rows = [row for group in getattr(world, "rows_of", {}).values() for row in group]
            for file in now:
                assert [v for n, v in rows if n == file.path] == [file.version]
            assert world.run(now) == []
    finally:
        intake.GROUP_SIZE = before
