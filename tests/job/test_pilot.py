"""`camray plan --pilot`: the arithmetic by hand, the figures against the job that follows, nothing in OUT."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import camray
from camray.cli.main import main
from camray.job.pilot import Pilot

SECONDS = {"read": 0.001, "decode": 0.004, "explain": 0.020, "sink": 0.005}


def made(device: str, actors: int, cores: int) -> Pilot:
    return Pilot(
        images=32, shards=8, seconds=SECONDS, device=device, actors=actors, cores=cores, record_bytes=3000.0,
        overlay_bytes=500.0, archive_images=1_000_000, counted="as listed",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("device", "actors", "cores", "images_per_s"),
    [
        ("cpu", 4, 8, 4 / 0.024),  # an actor decodes and explains; half of the cores are free for the rest
        ("cpu", 16, 8, 8 / 0.030),  # more actors than cores: every stage shares the 8
        ("cuda", 2, 8, 2 / 0.020),
        ("cuda", 2, 1, 1 / 0.010),  # one core cannot feed two GPUs
    ],
)
def test_the_slowest_part_decides(device: str, actors: int, cores: int, images_per_s: float) -> None:
    pilot = made(device, actors, cores)
    assert pilot.images_per_s == pytest.approx(images_per_s)
    assert pilot.hours == pytest.approx(1_000_000 / images_per_s / 3600)


def test_each_line_says_what_it_rests_on() -> None:
    lines = made("cpu", 2, 2).lines()
    assert lines["an image"] == "read 1.0, decode 4.0, explain 20.0, sink 5.0 ms (one core of this machine)"
    assert lines["speed"] == "66.7 images/s: 2 actors, 2 cores, no waits"
    assert lines["time"] == "4 h 10 min, 8.33 core hours, for 1,000,000 images; start-up not counted"
    assert made("cuda", 2, 1).lines()["time"].startswith("2 h 46 min, 5.56 GPU hours, for")  # 100 images/s
    assert lines["output"].startswith("3,000.0 MB of records, 500.0 MB of overlays")
    assert lines["images"] == "as listed"


def planned(demo: Path, out: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, object]:
    model = str(demo / "models" / "hans64-clean")
    assert main(["plan", str(demo / "archive"), str(out), "--model", model, "--json", *more]) == 0
    pilot: dict[str, object] = json.loads(capsys.readouterr().out)["pilot"]
    return pilot


def test_the_demonstration_archive(demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pilot = planned(demo, tmp_path / "out", capsys, "--pilot", "12")
    assert not (tmp_path / "out").exists()
    assert (pilot["images"], pilot["shards"], pilot["moved"]) == (12, 6, None)
    assert pilot["archive_images"] == pytest.approx(360, rel=0.02)  # six tars of 60
    assert str(pilot["counted"]).startswith("estimated: 60 in one shard of ")
    seconds = pilot["seconds"]
    assert isinstance(seconds, dict)
    assert list(seconds) == ["read", "decode", "explain", "sink"]
    assert all(0 < s < 1 for s in seconds.values())


def test_a_pilot_of_nothing_is_refused(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = str(demo / "models" / "hans64-clean"), str(tmp_path / "out")
    with pytest.raises(SystemExit) as left:
        main(["plan", str(demo / "archive"), out, "--model", model, "--pilot", "0"])
    assert left.value.code == 2
    assert "--pilot: 0 is out of range" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["sample", "all"])
def test_the_job_writes_what_the_pilot_said(
    demo: Path, explain: Callable[..., camray.job.run.Outcome], tmp_path: Path, policy: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    pilot = planned(demo, out, capsys, "--pilot", "64", "--overlays", policy, "--chunk-size", "60")
    outcome = explain(
        demo / "archive", out, demo / "models" / "hans64-clean", overlay__policy=policy, run__chunk_size=60
    )
    assert outcome.code == camray.ExitCode.DONE
    for folder, ending, each in (
        ("records", "parquet", "record_bytes"),
        ("overlays", "jpg", "overlay_bytes"),
    ):
        told = float(str(pilot[each])) * 360
        found = sum(p.stat().st_size for p in (out / folder).rglob(f"*.{ending}"))
        assert told == pytest.approx(found, rel=0.25), folder
