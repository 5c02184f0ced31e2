"""The CPU stages one by one: read, decode, sink. Each takes chunk rows and gives chunk rows."""

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from camray.config import ArchiveConfig, Config, Explainer, InputSpec, OverlayConfig, RunConfig
from camray.errors import IncompleteError, Stage
from camray.flow import stages
from camray.flow.flow import receipts_of
from camray.flow.guard import Guard
from camray.flow.stages import Decode, Sink, decoder_of, read_shard
from camray.ledger.plan import ShardTask
from camray.records import (
    DECODED,
    EXPLAINED,
    MEMBER,
    RECORD_SCHEMA,
    Chunk,
    Data,
    Lost,
    Member,
    Note,
    Receipt,
    Shard,
    ShardEnd,
    Status,
    member_array,
    struct_array,
)

SPEC = InputSpec(16, 16, (16, 16), "center", "bilinear", (0.5,) * 3, (0.5,) * 3)
EXPLAINER = Explainer(
    "m", {}, "w", (), 256, SPEC, "gradcam", "predicted", "none", {}, 1, 10**6, 1,
)  # fmt: skip


def png(colour: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (16, 16)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, "PNG")
    return data.getvalue()


def tar_shard(path: Path, files: dict[str, bytes], **changes: Any) -> Shard:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return Shard(str(path), "tar", path.stat().st_size, "", **changes)


def images(count: int) -> dict[str, bytes]:
    return {f"{i:03d}.png": png((i, 0, 0)) for i in range(count)}


def read(task: ShardTask, chunk_size: int) -> list[Chunk]:
    return [Chunk.from_row(row) for row in read_shard(task, ArchiveConfig(), chunk_size)]


def names(chunk: Chunk) -> list[str]:
    assert chunk.images is not None
    return chunk.images.field("member").to_pylist()


# ── read ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("finished", [(), (1,)])
def test_a_chunk_ends_at_so_many_bytes_and_no_other_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: tuple[int, ...]
) -> None:
    """Large images go into several chunks; the numbers of all others stay, also of those on disk."""
    monkeypatch.setattr(stages, "CHUNK_BYTES", 2500)
    sizes = [900, 900, 900, 100, 100, 100, 3000, 100, 100, 100]
    shard = tar_shard(tmp_path / "a.tar", {f"{i}.png": bytes(size) for i, size in enumerate(sizes)})
    done = {n: Receipt(shard.id, n, "p", 1, 3, 3, 0, {}) for n in finished}
    *data, end = read(ShardTask(shard, done), 3)
    made = {chunk.index: names(chunk) for chunk in data if isinstance(chunk.note, Data)}
    whole = {
        0: ["0.png", "1.png"], 2**30: ["2.png"], 1: ["3.png", "4.png", "5.png"],
        2: ["6.png"], 2**30 + 1: ["7.png", "8.png"], 3: ["9.png"],
    }  # fmt: skip
    assert made == {n: members for n, members in whole.items() if n not in finished}
    assert {c.index for c in data if isinstance(c.note, Receipt)} == set(finished)
    assert isinstance(end.note, ShardEnd)
    assert (end.note.chunks, end.note.members) == (len(data), 10)
    assert end.index not in {c.index for c in data}


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (3, [3]), (4, [3, 1]), (6, [3, 3])])
def test_read_gives_every_member_once_then_the_end(tmp_path: Path, count: int, sizes: list[int]) -> None:
    shard = tar_shard(tmp_path / "a.tar", images(count))
    *data, end = read(ShardTask(shard), 3)
    assert [c.index for c in data] == list(range(len(sizes)))
    assert [len(names(c)) for c in data] == sizes
    assert [n for c in data for n in names(c)] == list(images(count))
    assert {type(c.note) for c in data} == {Data}
    assert {c.shard_id for c in (*data, end)} == {shard.id}
    assert (end.note, end.index) == (ShardEnd(len(sizes), count), len(sizes))


def test_read_replays_to_the_same_chunks(tmp_path: Path) -> None:
    task = ShardTask(tar_shard(tmp_path / "a.tar", images(5)))
    first, second = ([(c.index, type(c.note), c.images.to_pylist()) for c in read(task, 2)] for _ in range(2))
    assert first == second


def test_a_finished_chunk_passes_without_its_images(tmp_path: Path) -> None:
    shard = tar_shard(tmp_path / "a.tar", images(5))
    receipt = Receipt(shard.id, 1, "explainer=e/x.parquet", 10, 2, 2, 0, {}, reused=True)
    found = read(ShardTask(shard, {1: receipt}), 2)
    assert [type(c.note) for c in found] == [Data, Receipt, Data, ShardEnd]
    assert found[1].note == receipt
    assert len(found[1].images or ()) == 0
    assert [names(found[0]), names(found[2])] == [["000.png", "001.png"], ["004.png"]]
    assert found[3].note == ShardEnd(3, 5)
    assert all(content for i in (0, 2) for content in found[i].images.field("content").to_pylist())


def test_a_selection_is_cut_into_chunks_of_its_own(tmp_path: Path) -> None:
    """Chunks count the chosen members, not their indices: 2 and 3 are chunk 0 here."""
    shard = tar_shard(tmp_path / "a.tar", images(9), selection=(2, 3, 5, 8))
    receipt = Receipt(shard.id, 1, "p", 1, 2, 2, 0, {}, reused=True)
    plain, resumed = read(ShardTask(shard), 2), read(ShardTask(shard, {1: receipt}), 2)
    assert [names(c) for c in plain[:-1]] == [["002.png", "003.png"], ["005.png", "008.png"]]
    assert [type(c.note) for c in resumed] == [Data, Receipt, ShardEnd]
    assert resumed[0].images.equals(plain[0].images)
    assert None not in resumed[0].images.field("content").to_pylist()


def test_a_torn_shard_keeps_what_was_read_and_says_so(tmp_path: Path) -> None:
    shard = tar_shard(tmp_path / "a.tar", images(5))
    Path(shard.uri).write_bytes(Path(shard.uri).read_bytes()[: 3 * 1024 + 530])  # inside the fourth file
    *data, last = read(ShardTask(Shard(shard.uri, "tar", 3 * 1024 + 530, "")), 2)
    end = last.note
    assert isinstance(end, ShardEnd)
    assert [n for c in data for n in names(c)] == ["000.png", "001.png", "002.png"]
    assert (end.chunks, end.members, end.error_code) == (2, 3, "shard_truncated")
    assert end.error_message


def test_a_shard_that_is_not_there_is_an_end_with_an_error(tmp_path: Path) -> None:
    (only,) = read(ShardTask(Shard(str(tmp_path / "no.tar"), "tar", 1, "")), 2)
    assert isinstance(only.note, ShardEnd)
    assert (only.note.error_code, only.note.members) == ("shard_read_failed", 0)


# ── decode ───────────────────────────────────────────────────────────────────────────────────────


def decode(
    members: list[Member], keep_content: bool = False, max_pixels: int = 10**6
) -> list[dict[str, Any]]:
    row = Chunk("s", 3, Data({"read": 1.5}), member_array(members)).to_row(MEMBER)
    out = Chunk.from_row(Decode(SPEC, max_pixels, keep_content, Guard())(row))
    assert (out.shard_id, out.index) == ("s", 3)
    assert isinstance(out.note, Data)
    assert set(out.note.seconds) == {"read", "decode"}
    assert out.images.type == DECODED
    rows: list[dict[str, Any]] = out.images.to_pylist()
    assert [r["index"] for r in rows] == [m.index for m in members]
    return rows


def test_pixels_and_geometry_of_a_plain_image() -> None:
    data = png((10, 20, 30), (16, 16))
    (row,) = decode([Member(0, "a.png", data, "cat", 1)])
    assert np.frombuffer(row["pixels"], np.uint8).reshape(16, 16, 3)[5, 5].tolist() == [10, 20, 30]
    assert row["content_sha256"] == hashlib.sha256(data).hexdigest()
    assert (row["width"], row["height"], row["format"]) == (16, 16, "PNG")
    assert [row[f"crop_{e}"] for e in ("x0", "y0", "x1", "y1")] == [0, 0, 16, 16]
    assert (row["label"], row["label_class"], row["content"]) == ("cat", 1, None)
    assert row["file_bits"] == pytest.approx(8 * len(data) / 256)


def test_content_is_kept_only_where_it_is_asked_for() -> None:
    data = png()
    assert decode([Member(0, "a.png", data)], keep_content=True)[0]["content"] == data


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "empty_file"), (b"not an image at all", "not_an_image"), (png(size=(50, 50)), "too_many_pixels")],
)
def test_a_bad_image_fails_alone(content: bytes, code: str) -> None:
    good = png()
    first, bad, last = decode(
        [Member(0, "a.png", good), Member(1, "b.png", content), Member(2, "c.png", good)], max_pixels=2000
    )
    assert (first["status"], last["status"]) == ("ok", "ok")
    assert first["pixels"] == last["pixels"] is not None
    assert (bad["status"], bad["error_code"], bad["error_stage"]) == ("failed", code, "decode")
    assert bad["pixels"] is None
    assert bad["error_message"]
    assert bad["content_sha256"] == hashlib.sha256(content).hexdigest()


def test_members_without_an_image_pass_untouched() -> None:
    skipped = Member(0, "a.txt", status=Status.SKIPPED, error_message="a .txt file")
    (row,) = decode([skipped])
    assert (row["status"], row["error_message"], row["error_stage"], row["pixels"]) == (
        "skipped", "a .txt file", None, None,
    )  # fmt: skip


OTHERS = [Receipt("k-c", 1, "p", 1, 2, 2, 0, {}, reused=True), ShardEnd(1, 1), Lost(28, "full")]


@pytest.mark.parametrize("note", OTHERS)
def test_rows_without_images_pass_decode(note: Note) -> None:
    out = Chunk.from_row(Decode(SPEC, 100, False, Guard())(Chunk("s", 1, note).to_row(MEMBER)))
    assert (out.shard_id, out.index, out.note) == ("s", 1, note)


# ── sink ─────────────────────────────────────────────────────────────────────────────────────────


def explained(count: int, **columns: Any) -> pa.StructArray:
    base: dict[str, Any] = {
        "index": list(range(count)),
        "member": [f"d/{i}.x.png" for i in range(count)],
        "status": ["ok"] * count,
        "heatmap": [[0.0, 0.0, 0.0, 1.0]] * count,
        "heat_h": [2] * count,
        "heat_w": [2] * count,
        "heat_status": ["ok"] * count,
        "predicted_class": [1] * count,
        "target_class": [1] * count,
        "confidence": [0.5] * count,
        "overlay": [False] * count,
        "pixels": [None] * count,
    }
    return struct_array({**base, **columns}, EXPLAINED)


@pytest.fixture
def sink(tmp_path: Path) -> Callable[..., Sink]:
    def make(overlay: OverlayConfig | None = None) -> Sink:
        config = Config(str(tmp_path), overlay=overlay or OverlayConfig(), run=RunConfig(chunk_size=4))
        return Sink(config, EXPLAINER, "r1", {"k-c": "/data/a.tar"})

    return make


def receipt_of(sink: Sink, items: pa.StructArray) -> Receipt:
    note = Chunk.from_row(sink(Chunk("k-c", 0, Data(), items).to_row(EXPLAINED))).note
    assert isinstance(note, Receipt)
    return note


def test_sink_writes_rows_and_gives_their_receipt(sink: Callable[..., Sink], tmp_path: Path) -> None:
    items = explained(
        3,
        status=["ok", "failed", "skipped"],
        error_code=[None, "empty_file", None],
        heatmap=[[1.0], None, None],
        confidence=[0.5, None, None],
    )
    row = Chunk("k-c", 2, Data({"read": 0.5}), items).to_row(EXPLAINED)
    out = Chunk.from_row(sink()(row))
    receipt = out.note
    assert isinstance(receipt, Receipt)
    assert (out.shard_id, out.index) == ("k-c", 2)
    assert (receipt.rows, receipt.ok, receipt.failed, receipt.skipped) == (3, 1, {"empty_file": 1}, 1)
    assert set(receipt.seconds) == {"read", "sink"}
    file = tmp_path / "records" / receipt.path
    assert file.stat().st_size == receipt.size_bytes
    table = pq.read_table(file, partitioning=None)
    assert table.schema.equals(RECORD_SCHEMA)
    rows = table.to_pylist()
    assert [r["member"] for r in rows] == ["d/0.x.png", "d/1.x.png", "d/2.x.png"]
    assert [r["key"] for r in rows] == ["d/0", "d/1", "d/2"]
    assert {(r["run_id"], r["model"], r["weights_sha256"], r["shard"]) for r in rows} == {
        ("r1", "m", "w", "/data/a.tar")
    }
    assert [r["confidence"] for r in rows] == [0.5, None, None]
    assert not (tmp_path / "overlays").exists()


def test_a_file_is_named_by_its_bytes(sink: Callable[..., Sink], tmp_path: Path) -> None:
    """A second attempt with the same outcome writes the same file; another outcome never replaces it."""

    def written(count: int) -> str:
        return receipt_of(sink(), explained(count)).path

    paths = [written(1), written(1), written(2)]
    assert paths[0] == paths[1] != paths[2]
    for path in paths:
        digest = hashlib.sha256((tmp_path / "records" / path).read_bytes()).hexdigest()
        assert path.endswith(f"-{digest[:16]}.parquet")


def test_sink_draws_the_overlays_that_are_due(sink: Callable[..., Sink], tmp_path: Path) -> None:
    grey = np.full((16, 16, 3), 128, np.uint8).tobytes()
    items = explained(3, overlay=[False, True, False], pixels=[None, grey, None])
    receipt = receipt_of(sink(), items)
    paths = pq.read_table(tmp_path / "records" / receipt.path, partitioning=None)["overlay_path"].to_pylist()
    assert [p is not None for p in paths] == [False, True, False]
    assert receipt.overlays == 1
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.glob("overlays/**/*.jpg")] == [paths[1]]
    with Image.open(tmp_path / paths[1]) as picture:
        shown = np.asarray(picture.convert("RGB")).astype(int)
    top_left, bottom_right = shown[5, 5], shown[-5, -5]
    assert np.ptp(top_left) < 12  # no heat: still grey
    assert np.abs(bottom_right - 128).max() > 40  # hot: coloured


def test_each_explained_class_of_an_image_has_its_own_picture(
    sink: Callable[..., Sink], tmp_path: Path
) -> None:
    grey = np.full((16, 16, 3), 128, np.uint8).tobytes()
    items = explained(
        2, index=[0, 0], member=["a.png"] * 2, overlay=[True] * 2, pixels=[grey] * 2, target_class=[1, 2]
    )
    receipt = receipt_of(sink(OverlayConfig(caption=True)), items)
    assert (receipt.rows, receipt.ok, receipt.overlays) == (2, 1, 2)
    assert len(list(tmp_path.glob("overlays/**/*.jpg"))) == 2


def test_an_overlay_on_the_original_needs_its_bytes_only(sink: Callable[..., Sink], tmp_path: Path) -> None:
    where = {"width": 40, "height": 20, "crop_x0": 10.0, "crop_y0": 0.0, "crop_x1": 30.0, "crop_y1": 20.0}
    items = explained(
        1, overlay=[True], content=[png((90, 90, 90), (40, 20))], **{k: [v] for k, v in where.items()}
    )
    receipt_of(sink(OverlayConfig(on="original")), items)
    (file,) = tmp_path.glob("overlays/**/*.jpg")
    with Image.open(file) as picture:
        assert picture.size == (40, 20)


def test_the_end_of_a_broken_shard_writes_the_shards_own_row(
    sink: Callable[..., Sink], tmp_path: Path
) -> None:
    note = ShardEnd(2, 300, "shard_truncated", "ends at byte 7")
    first, second = receipts_of(sink()(Chunk("k-c", 2, note).to_row(EXPLAINED)))
    receipt = first.note
    assert isinstance(receipt, Receipt)
    assert (first.index, second.note) == (2, note)
    assert (receipt.chunk, receipt.rows, receipt.ok, receipt.failed, receipt.skipped) == (2, 1, 0, {}, 0)
    (row,) = pq.read_table(tmp_path / "records" / receipt.path, partitioning=None).to_pylist()
    assert (row["member"], row["index"], row["shard"]) == (None, None, "/data/a.tar")
    assert (row["status"], row["error_code"], row["error_stage"], row["error_message"]) == (
        "failed", "shard_truncated", str(Stage.READ), "ends at byte 7",
    )  # fmt: skip


@pytest.mark.parametrize("note", OTHERS)
def test_other_rows_pass_the_sink(sink: Callable[..., Sink], tmp_path: Path, note: Note) -> None:
    out = Chunk.from_row(sink()(Chunk("k-c", 1, note).to_row(EXPLAINED)))
    assert (out.shard_id, out.index, out.note) == ("k-c", 1, note)
    assert not (tmp_path / "records").exists()


def test_a_lost_chunk_stops_the_driver_with_its_reason() -> None:
    """A full disk keeps its number, which the exit code follows from; a model that is missing has none."""
    for note, kind in ((Lost(28, "no space"), OSError), (Lost(None, "no model"), IncompleteError)):
        with pytest.raises(kind, match=note.message) as stopped:
            receipts_of(Chunk("k-c", 0, note).to_row(MEMBER))
        assert getattr(stopped.value, "errno", None) == note.errno


def test_the_same_bytes_in_a_chunk_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"a.png": png((9, 0, 0)), "b.png": png((0, 9, 0)), "c.png": png((9, 0, 0)), "d.png": b"no image"}
    files["e.png"] = files["d.png"]
    asked: list[bytes] = []
    whole = decoder_of(10**6).decode

    class Counting:
        def decode(self, content: Any, *more: Any) -> Any:
            asked.append(bytes(content))
            return whole(content, *more)

    monkeypatch.setattr(stages, "decoder_of", lambda _: Counting())
    chunk, _ = read(ShardTask(tar_shard(tmp_path / "s.tar", files)), 8)
    found = Decode(SPEC, 10**6, False, Guard()).decode(chunk.images).to_pylist()
    assert asked == [files["a.png"], files["b.png"], files["d.png"]]
    assert [row["status"] for row in found] == ["ok", "ok", "ok", "failed", "failed"]
    assert [row["member"] for row in found] == list(files)
    assert [row["pixels"][:3] for row in found[:3]] == [b"\x09\0\0", b"\0\x09\0", b"\x09\0\0"]
    assert found[0] | {"member": "", "index": 0} == found[2] | {"member": "", "index": 0}
