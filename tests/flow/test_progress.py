"""What a run says of itself: speed, and the stage that limits it."""

from __future__ import annotations

import pytest

from camray.flow import progress
from camray.flow.progress import Reporter, RunProgress
from camray.records import Chunk, Receipt, ShardEnd


class Clock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def receipt(index: int, **seconds: float) -> Chunk:
    """Ten images, all of them fine."""
    made = Receipt(
        shard_id="s", chunk=index, path=f"{index}.parquet", size_bytes=1, rows=10, ok=10, skipped=0,
        failed={}, seconds=seconds,
    )  # fmt: skip
    return Chunk("s", index, made)


@pytest.mark.parametrize(
    ("actors", "seconds", "says"),
    [
        # two chunks in ten seconds; one actor worked 5 + 4.5 s of them
        (1, {"read": 0.1, "decode": 3.0, "explain": 5.0, "sink": 0.2}, "the model is the limit"),
        # two actors worked 8 s of 20: the decoder kept them waiting 60 % of the time
        (2, {"read": 0.1, "decode": 6.0, "explain": 4.0, "sink": 0.2}, "decoding is the limit"),
        (2, {"read": 7.0, "decode": 6.0, "explain": 4.0, "sink": 0.2}, "reading is the limit"),
        (2, {"read": 1.0, "decode": 2.0, "explain": 4.0, "sink": 9.0}, "writing is the limit"),
        # the model waited 12 s of 20, and no other stage worked for more than 2 s of them
        (2, {"read": 0.2, "decode": 1.0, "explain": 4.0, "sink": 0.5}, "handing on chunks is the limit"),
        # a third actor never got a chunk
        (3, {"read": 0.1, "decode": 1.0, "explain": 4.0, "sink": 0.2}, "the number of chunks is the limit"),
    ],
)  # fmt: skip
def test_the_limiting_stage_is_named(clock: Clock, actors: int, seconds: dict[str, float], says: str) -> None:
    following = RunProgress(Reporter(), shards=1, members=20)
    following.actors = actors
    assert following.bottleneck() == ""
    clock.now += 100 + seconds["explain"]  # start-up does not count
    following.take([receipt(0, **seconds)], 0)
    clock.now += 10 - seconds["explain"]
    following.take([receipt(1, **seconds)], 1)
    assert following.bottleneck().startswith(says)
    if says.startswith("decoding"):
        assert "the model waits 60% of the time" in following.bottleneck()


def test_no_estimate_before_the_first_image(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    following = RunProgress(Reporter(), shards=1, members=20)
    clock.now += 40
    following.take([], 0)
    assert capsys.readouterr().err == "0/20 images, 0 failed, 0.0 images/s, 0/1 shards\n"
    clock.now += 40
    following.take([receipt(0, explain=1.0)], 0)
    assert capsys.readouterr().err.startswith(
        "10/20 images, 0 failed, 1 s left, 0.1 images/s, 0/1 shards"  # the start does not count
    )


def test_the_estimate_is_of_what_this_run_explained(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """A resumed run: ten of forty were finished before, ten take 40 s, so the other twenty take 80."""
    following = RunProgress(Reporter(), shards=1, members=40)
    following.take([receipt(0)], 0)
    clock.now += 40
    following.take([receipt(1, explain=40.0)], 0)
    assert capsys.readouterr().err.startswith("20/40 images, 0 failed, 1 min 20 s left, 0.5 images/s")


def test_uncounted_images_are_estimated_by_shards(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    following = RunProgress(Reporter(), shards=4, members=None)
    clock.now += 40
    following.take([receipt(0, explain=20.0)], 0)
    assert "left" not in capsys.readouterr().err
    clock.now += 40
    following.take([receipt(1, explain=20.0)], 1)  # one of four after 60 s of work
    assert "20 images, 0 failed, about 3 min 00 s left, 0.2 images/s, 1/4 shards" in capsys.readouterr().err
    clock.now += 60
    following.take([receipt(2, explain=20.0)], 0)  # it goes down while the second is under way
    assert "about 2 min 00 s left" in capsys.readouterr().err


def test_notes_of_readers_are_counted_once_a_shard() -> None:
    """A read task that is replayed ends twice."""
    following = RunProgress(Reporter(), shards=2, members=None)
    ends = [Chunk(shard, 0, ShardEnd(1, 9, notes={"names guessed": n})) for shard, n in (("a", 2), ("b", 3))]
    following.take([*ends, ends[0]], 0)
    assert following.notes() == ["names guessed (5)"]
