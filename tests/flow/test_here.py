"""Small work in this process: the same table as Ray's, and the same promises when it is killed or stopped."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import camray
from camray.config import InputSpec
from camray.errors import ExitCode, UsageError
from camray.flow.flow import Engine, Pool
from camray.flow.here import here
from camray.flow.progress import Reporter
from camray.flow.stopping import Stopped
from camray.image import guarded
from camray.job import run
from camray.job.canary import choose, difference, explain_again
from camray.job.prepare import prepare
from camray.ledger.runs import crashed_last, first_report, read_reports
from camray.ledger.table import Table
from camray.options import load
from camray.storage import open_folder
from demo import hans64

MODEL = Path(hans64.__file__).parent / "models" / "hans64-clean"
POOL = Pool(actors=1, max_actors=1, device="cpu", cpus=0.5, gpus=0, threads=1, batch_size=8)
STOPS = ((signal.SIGTERM, 143), (signal.SIGINT, 130))


def settings(archive: Path, out: Path, **more: object) -> camray.Config:
    named: dict[str, Any] = {"archive.path": str(archive), "out": str(out), "model.name": str(MODEL)}
    return load(None, named | {name.replace("__", "."): value for name, value in more.items()})


def rows_of(out: Path) -> pa.Table:
    """Every column but the run's name, in the order of the members."""
    table = camray.open_records(str(out)).to_table().drop_columns(["run_id"])
    return table.sort_by([(name, "ascending") for name in ("shard", "index", "target_class")])


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, two tars, and a tar that is cut in its middle, of the same sixteen images."""
    place = tmp_path_factory.mktemp("archives")
    samples = [hans64.render(0, "audit", i) for i in range(16)]
    hans64.write_tar_shards(samples, place / "tar", 8)
    hans64.write_tar_shards(samples, place / "broken", 16)
    (whole,) = (place / "broken").glob("*.tar")
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    (place / "folder" / "a").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(7):
        pixels = rng.integers(0, 255, (80 + i, 70, 3), np.uint8)
        Image.fromarray(pixels).save(place / "folder" / "a" / f"{i}.png")
    (place / "folder" / "bad.jpg").write_bytes(b"no image")
    return place


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("folder", {"run__chunk_size": 3}),
        ("tar", {"run__chunk_size": 3, "overlay__policy": "all", "overlay__picture": "triple"}),
        ("broken", {"run__chunk_size": 4}),
        ("tar", {"method__target": "top:2", "overlay__policy": "all", "overlay__on": "original"}),
    ],
)
def test_the_table_is_that_of_ray(
    archives: Path, tmp_path: Path, local_ray: None, name: str, more: dict[str, object]
) -> None:
    """Bit by bit, with the same number of threads; pictures too."""
    from camray.flow.ray import on_ray

    codes, tables, pictures = [], [], []
    for engine in ("here", "ray"):
        out = tmp_path / engine
        config = settings(archives / name, out, run__max_failed=0.5, **more)
        made = here(config) if engine == "here" else on_ray(config, open_folder(str(out), "OUT"))
        codes.append(explain_by(replace(made, pool=POOL), config))
        tables.append(rows_of(out))
        pictures.append({str(p.relative_to(out)): p.read_bytes() for p in out.glob("overlays/**/*.jpg")})
    assert codes[0] == codes[1]
    assert tables[0].num_rows >= 8
    assert tables[0].equals(tables[1])
    assert pictures[0] == pictures[1]
    assert bool(pictures[0]) == (more.get("overlay__policy") != "none")


def explain_by(engine: Engine, config: camray.Config) -> ExitCode:
    """Run the whole job, driven by this engine."""
    chosen = run.choose_engine
    run.choose_engine = lambda *_: engine
    try:
        return run.explain(config, Reporter()).code
    finally:
        run.choose_engine = chosen


def test_the_canary_is_the_same_on_a_worker_and_here(archives: Path, tmp_path: Path, local_ray: None) -> None:
    from camray.flow.actor import network_of
    from camray.flow.ray import on_ray

    config = settings(archives / "tar", tmp_path / "out", run__engine="here")
    run.explain(config, Reporter())
    ready = prepare(config)
    first = choose(Table(ready.out), ready.explainer.id, 10)
    shards = [replace(s, selection=(0, 3, 5)) for s in ready.listing.shards]
    answers = []
    for engine in (here(config), on_ray(config, ready.out)):
        weights = engine.share(network_of(ready.model))
        answers.append(engine.once(explain_again, POOL, weights, shards, config, ready.explainer))
        assert difference(first, answers[-1])["changed"] == 0
    assert answers[0] == answers[1]
    assert len(answers[0]) == 6


# ── which engine ─────────────────────────────────────────────────────────────────────────────────


class Stub:
    """Stands where an engine is made, and says which."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import camray.flow.here as small
        import camray.flow.ray as large

        monkeypatch.setattr(small, "here", lambda *_: "here")
        monkeypatch.setattr(large, "on_ray", lambda *_: "ray")
        monkeypatch.setattr(run, "_is_ray_up", lambda: self.ray_is_up)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        self.ray_is_up = False

    def chosen(self, out: Path, small: str = "20 images", **more: object) -> str:
        config = settings(Path("archive"), out, **more)
        return str(run.choose_engine(config, open_folder(str(out), "OUT"), small, Reporter()))


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    return Stub(monkeypatch)


def test_little_work_is_done_here(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stub.chosen(tmp_path) == "here"
    assert capsys.readouterr().err == "engine here: 20 images, starting Ray would cost more (--engine ray)\n"
    assert stub.chosen(tmp_path, small="") == "ray"
    assert capsys.readouterr().err == "engine ray: starting on this machine\n"
    assert stub.chosen(tmp_path, small="", run__engine="here") == "here"
    assert stub.chosen(tmp_path, run__engine="ray") == "ray"
    assert stub.chosen(tmp_path, run__actors=2) == "ray"
    stub.ray_is_up = True
    capsys.readouterr()
    assert stub.chosen(tmp_path) == "ray"
    assert capsys.readouterr().err == ""
    stub.ray_is_up = False
    monkeypatch.setenv("RAY_ADDRESS", "ray-head:6379")
    assert stub.chosen(tmp_path) == "ray"
    assert capsys.readouterr().err == "engine ray: joining ray-head:6379\n"


@pytest.mark.parametrize(
    ("ended", "engine"),
    [(None, "ray"), (1, "ray"), (0, "here"), (143, "here"), ("damaged", "here")],
)
def test_after_a_crash_ray_looks_for_the_culprit(
    stub: Stub, tmp_path: Path, ended: int | str | None, engine: str
) -> None:
    """The latest run decides, whatever earlier ones said."""
    out = open_folder(str(tmp_path), "OUT")
    for run_id, code in (("20260101T000000Z-0", 1), ("20260102T000000Z-0", ended)):
        report = first_report(run_id, "e", camray.Config(), {})
        replace(report, exit=None if code == "damaged" else code).write(out)
        if code == "damaged":
            out.write(f"runs/{run_id}/run.json", b"{")
    assert stub.chosen(tmp_path) == engine
    assert crashed_last(open_folder(str(tmp_path), "OUT")) == (engine == "ray")


@pytest.mark.parametrize("more", [{"run__actors": 2}, {"run__max_actors": 3}])
def test_several_actors_do_not_fit_one_process(tmp_path: Path, more: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="--engine: here"):
        here(settings(tmp_path, tmp_path, run__engine="here", **more))


# ── killed and stopped ───────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six tars of forty images: long enough to be killed in the middle."""
    folder = tmp_path_factory.mktemp("many")
    samples = [hans64.render(0, "audit", i) for i in range(40)]
    hans64.write_tar_shards(samples, folder, 40)
    (first,) = folder.glob("*.tar")
    for i in range(1, 6):
        (folder / f"copy-{i}.tar").write_bytes(first.read_bytes())
    return folder


def start(many: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "camray.cli", "explain", str(many), str(out), "--model", str(MODEL)]
    command += ["--engine", "here", "--chunk-size", "4", "--overlays", "all"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_for_files(process: subprocess.Popen[str], out: Path, count: int) -> None:
    while process.poll() is None and len(list(out.glob("records/explainer=*/*.parquet"))) < count:
        time.sleep(0.005)


def finish(many: Path, out: Path) -> None:
    """The same command again: nothing lost, nothing repeated, nothing committed done again."""
    before = {(r["shard"], r["index"]): r["run_id"] for r in committed(out)}
    files = {p.name for p in out.glob("records/explainer=*/*.parquet")}
    again = start(many, out)
    _, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    after = committed(out)
    assert sorted((Path(r["shard"]).name, r["index"]) for r in after) == sorted(
        (p.name, i) for p in many.glob("*.tar") for i in range(40)
    )
    assert before.items() <= {(r["shard"], r["index"]): r["run_id"] for r in after}.items()
    in_table = {Path(uri).name for uri in Table(open_folder(str(out), "OUT")).delta.file_uris()}  # type: ignore[union-attr]
    assert files <= in_table, "a finished chunk was not reused"
    assert f"{240 - len(before)} members = {240 - len(before)} ok + 0 failed + 0 skipped" in said


def committed(out: Path) -> list[dict[str, Any]]:
    if not (out / "records" / "_delta_log").exists():
        return []
    rows: list[dict[str, Any]] = (
        camray.open_records(str(out)).to_table(columns=["shard", "index", "run_id"]).to_pylist()
    )
    return rows


def test_killed_and_resumed(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(many, out)
    wait_for_files(process, out, 23)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    assert crashed_last(open_folder(str(out), "OUT"))
    finish(many, out)


@pytest.mark.parametrize(("number", "code"), STOPS)
def test_stopped(number: int, code: int, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(many, out)
    wait_for_files(process, out, 12)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert said.splitlines()[-1] == f"camray: exit {code}: {ExitCode(code).meaning}"
    (report,) = read_reports(open_folder(str(out), "OUT"))
    assert report["exit"] == code
    assert not crashed_last(open_folder(str(out), "OUT"))


@pytest.mark.faults
def test_a_run_that_stands_still_for_a_minute_is_overtaken(many: Path, tmp_path: Path) -> None:
    """The age of its heartbeat decides, though its process is there; woken, it adds nothing."""
    out = tmp_path / "out"
    first = start(many, out)
    wait_for_files(first, out, 1)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        second = start(many, out)
        _, said = second.communicate(timeout=300)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert second.returncode == 0, said
    before = committed(out)
    _, said = first.communicate(timeout=300)
    assert first.returncode in (0, 4), said
    assert committed(out) == before


def test_a_signal_leaves_no_answer_of_the_decoder_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the process goes on, as a notebook does, what came too late is not the next image's answer."""
    spec = InputSpec(8, 8, (8, 8), "center", "nearest", (0.5,), (0.5,))
    decoder = guarded.GuardedDecoder(10**6)

    def pixels(grey: int) -> bytes:
        data = io.BytesIO()
        Image.new("RGB", (8, 8), (grey, grey, grey)).save(data, "PNG")
        return decoder.decode(memoryview(data.getvalue()), spec).pixels.tobytes()

    def stopped(*_: object) -> None:
        raise Stopped(ExitCode.INTERRUPTED)

    try:
        assert pixels(10) == bytes([10]) * 192
        with monkeypatch.context() as patch:
            patch.setattr(guarded, "_receive", stopped)
            with pytest.raises(Stopped):
                pixels(20)
        assert pixels(30) == bytes([30]) * 192
    finally:
        decoder.close()
