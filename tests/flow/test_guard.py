"""A chunk that keeps killing its worker: counted, taken apart, and only the culprit is lost."""

from typing import Any

import pyarrow as pa
import pytest

from camray.errors import Stage
from camray.flow.guard import ALONE_TRIES, WHOLE_CHUNK_TRIES, Attempts, Guard
from camray.records import DECODED, MEMBER, Chunk, Data, Member, member_array, struct_array


class Killed(BaseException):
    """Stands for the death of a worker process: no code of the worker runs after it."""


def chunk(size: int = 4, index: int = 0) -> Chunk:
    members = [Member(i, f"{i}.jpg", bytes([i]), f"label {i}", i) for i in range(size)]
    return Chunk("shard", index, Data(), member_array(members))


class Work:
    """Copies items; dies whenever one of `deadly` is among those still ok."""

    def __init__(self, *deadly: int) -> None:
        self.deadly, self.calls = deadly, []

    def __call__(self, images: pa.StructArray) -> pa.StructArray:
        rows = images.to_pylist()
        self.calls.append([r["index"] for r in rows])
        if any(r["index"] in self.deadly and r["status"] == "ok" for r in rows):
            raise Killed
        return images


def run_until_done(guard: Guard, work: Work, one: Chunk, stage: Stage = Stage.DECODE) -> tuple[int, Any]:
    for attempt in range(1, 20):
        try:
            return attempt, guard.run(stage, one, work).images.to_pylist()
        except Killed:
            continue
    raise AssertionError("it would go on for ever")


def test_a_healthy_chunk_is_done_at_once() -> None:
    attempts, work, one = Attempts(), Work(), chunk()
    tries, rows = run_until_done(Guard(attempts), work, one)
    assert tries == 1
    assert work.calls == [[0, 1, 2, 3]]
    assert rows == one.images.to_pylist()


def test_one_culprit_fails_and_its_neighbours_are_untouched() -> None:
    attempts, work, one = Attempts(), Work(2), chunk()
    tries, rows = run_until_done(Guard(attempts), work, one)
    assert tries == 5  # twice whole, twice one by one (dies at 2), once without 2
    assert work.calls[:2] == [[0, 1, 2, 3]] * 2
    before = one.images.to_pylist()
    assert [rows[i] for i in (0, 1, 3)] == [before[i] for i in (0, 1, 3)]
    culprit = rows[2]
    assert (culprit["status"], culprit["error_code"], culprit["error_stage"]) == (
        "failed", "worker_crashed", "decode",
    )  # fmt: skip
    assert (culprit["index"], culprit["member"], culprit["label"], culprit["label_class"]) == (
        2, "2.jpg", "label 2", 2,
    )  # fmt: skip
    assert culprit["content"] is None


def test_several_culprits_are_found_two_attempts_each() -> None:
    tries, rows = run_until_done(Guard(Attempts()), Work(0, 3), chunk())
    assert tries == 7
    assert [r["status"] for r in rows] == ["failed", "ok", "ok", "failed"]


def test_a_death_that_does_not_repeat_costs_no_image() -> None:
    work = Work(1)
    guard, one = Guard(Attempts()), chunk()
    for _ in range(WHOLE_CHUNK_TRIES):
        with pytest.raises(Killed):
            guard.run(Stage.DECODE, one, work)
    work.deadly = ()
    assert [r["status"] for r in guard.run(Stage.DECODE, one, work).images.to_pylist()] == ["ok"] * 4


def test_machines_that_die_blame_no_image() -> None:
    """Seven machines are lost, each while another image of the chunk is under way; all images are done."""
    lost, died = set[str](), [0]

    class OnMachines(Attempts):
        def begin(self, chunk: str, _machine: str = "") -> int:
            return super().begin(chunk, f"machine {died[0]}")

    def work(images: pa.StructArray) -> pa.StructArray:
        if died[0] < 7 and (len(images) > 1 or images[0]["index"].as_py() == died[0] % 4):
            lost.add(f"machine {died[0]}")
            died[0] += 1
            raise Killed
        return images

    tries, rows = run_until_done(Guard(OnMachines(lost.__contains__)), work, chunk())  # type: ignore[arg-type]
    assert tries == 8
    assert [r["status"] for r in rows] == ["ok"] * 4


def test_a_machine_whose_death_is_told_late_blames_no_image_either() -> None:
    """Ray tells that a machine is dead after its work was given to another."""
    told = set[str]()
    attempts = Attempts(told.__contains__)
    assert [attempts.begin("c", machine) for machine in "abc"] == [1, 2, 3]
    assert attempts.may_try("c", 2)
    told |= {"a", "b", "c"}
    assert attempts.begin("c", "d") == 1, "all at once again"
    for machine in "ef":
        attempts.begin("c", machine)
        assert attempts.may_try("c", 2)
    attempts.begin("c", "e")
    assert not attempts.may_try("c", 2), "e and f live, and two workers died of it"
    assert attempts.may_try("c", 3)


def test_deaths_at_other_images_blame_none() -> None:
    """Workers are killed by hand, whatever they are at: no image is at fault."""
    attempts = Attempts()
    for position in (0, 3, 1, 2):
        attempts.begin("c")
        assert attempts.may_try("c", position)


def test_items_that_failed_before_keep_their_own_reason() -> None:
    rows = [{"index": i, "status": "ok"} for i in range(3)]
    rows[1] |= {"status": "failed", "error_code": "empty_file", "error_stage": "decode"}
    columns = {k: [r.get(k) for r in rows] for k in ("index", "status", "error_code", "error_stage")}
    one = Chunk("s", 0, Data(), struct_array({**columns, "pixels": [b"x"] * 3}, DECODED))
    _, found = run_until_done(Guard(Attempts()), Work(2), one, Stage.EXPLAIN)
    assert [(r["status"], r["error_code"], r["error_stage"]) for r in found] == [
        ("ok", None, None), ("failed", "empty_file", "decode"), ("failed", "worker_crashed", "explain"),
    ]  # fmt: skip
    assert [r["pixels"] for r in found] == [b"x", b"x", None]


def test_the_result_of_a_failed_item_has_the_stage_s_own_type() -> None:
    one = chunk(2)

    def to_decoded(images: pa.StructArray) -> pa.StructArray:
        rows = images.to_pylist()
        if any(r["index"] == 1 and r["status"] == "ok" for r in rows):
            raise Killed
        return struct_array(
            {f.name: [r.get(f.name) for r in rows] for f in MEMBER if f.name != "content"}, DECODED
        )

    guard = Guard(Attempts())
    for _ in range(WHOLE_CHUNK_TRIES + ALONE_TRIES):
        with pytest.raises(Killed):
            guard.run(Stage.DECODE, one, to_decoded)
    done = guard.run(Stage.DECODE, one, to_decoded).images
    assert done.type == DECODED
    assert done.field("status").to_pylist() == ["ok", "failed"]


def test_stages_and_chunks_are_counted_apart() -> None:
    attempts = Attempts()
    for name in ("decode/s/0", "explain/s/0", "decode/s/1", "decode/t/0"):
        assert attempts.begin(name) == 1
    assert attempts.begin("decode/s/0") == 2
    guard, seen = Guard(attempts), Work()
    guard.run(Stage.DECODE, chunk(2), seen)
    guard.run(Stage.EXPLAIN, chunk(2), seen)
    assert len(seen.calls) == 2


def test_only_chunks_under_way_are_held() -> None:
    attempts = Attempts()
    guard = Guard(attempts)
    for index in range(50):
        guard.run(Stage.DECODE, chunk(1, index), Work())
    run_until_done(guard, Work(0), chunk(2, 50))
    assert attempts._begun == {}


def test_an_ordinary_error_is_not_swallowed() -> None:
    def broken(_: pa.StructArray) -> pa.StructArray:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        Guard(Attempts()).run(Stage.DECODE, chunk(), broken)
