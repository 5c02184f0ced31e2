"""A worker that cannot load the model though the driver could: one line, soon, exit 4; mended, it resumes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import camray
from camray.flow.guard import STARTS, Attempts, Guard

MODEL = '''
import os
from pathlib import Path

import ray
from torch import nn

PLACE = Path({place!r})


class Net(nn.Module):
    """Works where the driver runs; in a worker only once a file is there that this machine lacks."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3, stride=4)
        self.head = nn.Linear(4, 2)
        if ray.is_initialized() and ray.get_runtime_context().get_actor_id():
            with (PLACE / "starts").open("a") as log:
                log.write("x")
            if not (PLACE / "licence").exists():
                {deed}

    def forward(self, x):
        return self.head(self.features(x).relu().mean((2, 3)))
'''
RAISES, ENDS = '(PLACE / "licence").read_text()', "os._exit(1)"


def prepare(place: Path, deed: str) -> list[str]:
    """Write the model and its weights; give the options that name them."""
    (place / "net.py").write_text(MODEL.format(place=str(place), deed=deed))
    torch.manual_seed(0)
    parts = {"features": torch.nn.Conv2d(3, 4, 3, stride=4), "head": torch.nn.Linear(4, 2)}
    save_file(
        {f"{n}.{k}": v for n, p in parts.items() for k, v in p.state_dict().items()}, place / "w.safetensors"
    )
    return ["--model", f"{place}/net.py:Net", "--checkpoint", f"{place}/w.safetensors", "--layer", "features"]


def settings_of(place: Path) -> dict[str, object]:
    prepare(place, RAISES)
    model = {"model__checkpoint": str(place / "w.safetensors"), "method__layer": "features"}
    small = {"preprocess__input_size": [32], "overlay__policy": "none", "archive__limit": 20}
    return {**model, **small, "run__engine": "ray", "run__actors": 1}


@pytest.mark.usefixtures("local_ray")
def test_a_worker_without_a_file(
    demo: Path, explain: Callable[..., camray.job.run.Outcome], tmp_path: Path
) -> None:
    settings = settings_of(tmp_path)
    with pytest.raises(camray.CamrayError) as stopped:
        explain(demo / "archive", tmp_path / "out", f"{tmp_path}/net.py:Net", **settings)
    assert stopped.value.exit_code == camray.ExitCode.INCOMPLETE
    assert str(stopped.value) == (
        "a worker could not load the model: --model: net:Net: FileNotFoundError: [Errno 2] No such file or "
        f"directory: '{tmp_path}/licence'. Fix: give workers what this machine has: packages, files, memory"
    )
    assert (tmp_path / "starts").read_text() == "x"  # one worker, one try


@pytest.mark.faults
@pytest.mark.usefixtures("local_ray")
def test_a_worker_that_got_its_file(
    demo: Path, explain: Callable[..., camray.job.run.Outcome], tmp_path: Path
) -> None:
    test_a_worker_without_a_file(demo, explain, tmp_path)
    (tmp_path / "licence").touch()
    settings = settings_of(tmp_path)
    outcome = explain(demo / "archive", tmp_path / "out", f"{tmp_path}/net.py:Net", **settings)
    assert outcome.code == camray.ExitCode.DONE
    assert outcome.accounting.members == 20


def run(place: Path, demo: Path, options: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "camray.cli", "explain", str(demo / "archive"), str(place / "out")]
    command += [*options, "--input-size", "32", "--actors", "1", "--overlays", "none", "--limit", "20"]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)


@pytest.mark.faults
def test_a_worker_whose_process_ends(demo: Path, tmp_path: Path) -> None:
    """Ray starts such a worker again for ever."""
    options = prepare(tmp_path, ENDS)
    done = run(tmp_path, demo, options)
    assert done.returncode == 4, done.stderr
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    assert len(errors) == 1, done.stderr
    assert f"its process ended {STARTS} times at it (a crash, or out of memory)" in errors[0]
    assert (tmp_path / "starts").read_text() == "x" * STARTS
    (tmp_path / "licence").touch()
    done = run(tmp_path, demo, options)
    assert done.returncode == 0, done.stderr


@pytest.mark.faults
def test_sabotage_of_the_count_is_noticed(demo: Path, tmp_path: Path) -> None:
    """Without the count of starts the run does not end by itself."""
    options = prepare(tmp_path, ENDS)
    patch = "import camray.flow.guard as a; a.STARTS = 10**9\n"
    (tmp_path / "sitecustomize.py").write_text(patch)  # read by the driver and by each worker
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    command = [sys.executable, "-m", "camray.cli", "explain", str(demo / "archive"), str(tmp_path / "out")]
    command += [*options, "--input-size", "32", "--actors", "1", "--overlays", "none"]
    job = subprocess.Popen(
        command, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path}, start_new_session=True
    )
    try:
        ends = time.monotonic() + 120
        while time.monotonic() < ends and job.poll() is None:
            if (tmp_path / "starts").exists() and len((tmp_path / "starts").read_text()) > STARTS + 1:
                break
            time.sleep(0.5)
        assert job.poll() is None
        assert len((tmp_path / "starts").read_text()) > STARTS + 1
    finally:
        job.terminate()
        job.wait(60)


def test_starts_are_counted_for_each_worker() -> None:
    attempts = Attempts()

    def at(worker: str) -> Guard:
        attempts.worker = lambda: worker  # type: ignore[method-assign]
        return Guard(attempts)

    def ends() -> None:
        raise KeyboardInterrupt

    for _ in range(2 * STARTS):  # each is well: nothing is counted against it
        assert at("one").start(lambda: "loaded") == "loaded"
    for _ in range(STARTS):
        with pytest.raises(KeyboardInterrupt):
            at("other").start(ends)
    assert "ended 3 times" in str(at("other").start(lambda: "loaded"))
    assert at("one").start(lambda: "loaded") == "loaded"
