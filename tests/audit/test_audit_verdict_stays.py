"""The gate's word about a night stays until its images are judged anew or a person accepts it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from camray.audit.report import write_report
from camray.cli.main import main
from demo import hans64
from tests.audit.night_world import night, write_archive

GATE = "wrong_rate>10%"
RUNS = [f"2026110{i}T000000Z-0" for i in range(1, 8)]


def tagged(count: int, seed: int = 0, tag: bool = True) -> list[hans64.Sample]:
    """Images with the barcode that the model reads; without it the same model is right."""
    return [hans64.render(seed, "audit", i, tagged=tag) for i in range(count)]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_archive(tmp_path / "archive", tagged(12), 12)


def gate(archive: Path, out: Path, run: int, fail_on: str = GATE) -> dict[str, Any]:
    said = night(archive, out, RUNS[run], audit__fail_on=fail_on)
    (out / "runs" / RUNS[run] / "run.json").write_text("{}")  # as a whole run leaves one
    return said["gate"] | {"message": said["message"]}


def fires(said: dict[str, Any]) -> bool:
    return bool(said["fired"] or said["standing"])


def test_the_same_command_again_ends_as_the_first_did(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert gate(archive, out, 0)["fired"] == [GATE]
    again = gate(archive, out, 1)
    assert (again["fired"], again["standing"]) == ([], {RUNS[0]: [GATE]})
    assert f"Still so of run {RUNS[0]}: {GATE}" in again["message"]
    assert "camray accept" in again["message"]
    metrics = (out / "runs" / RUNS[1] / "metrics.prom").read_text()
    assert [
        line.split()[-1] for line in metrics.splitlines() if line.startswith("camray_audit_gate_fired{")
    ] == ["1"]
    page = Path(write_report(str(out))).read_text("utf-8")
    assert f"The gate fired, of run {RUNS[0]}" in page
    assert "The gate is quiet" not in page


def test_new_images_do_not_cover_it(archive: Path, tmp_path: Path) -> None:
    """A retry that meets three new images, all well, is no better night."""
    out = tmp_path / "out"
    assert gate(archive, out, 0)["fired"]
    hans64.write_tar_shards(tagged(3, 5, tag=False), archive / "more", 3)
    later = gate(archive, out, 1)
    assert (later["fired"], list(later["standing"])) == ([], [RUNS[0]])
    assert list(gate(archive, out, 2)["standing"]) == [RUNS[0]]
    assert list(gate(archive, out, 3, fail_on="")["standing"]) == [RUNS[0]]  # nor an audit without a gate
    assert gate(archive, out, 4, fail_on="wrong_rate>99%")["standing"] == {}  # the command decides how much
    assert list(gate(archive, out, 5)["standing"]) == [RUNS[0]]


def test_images_judged_anew_end_it(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert gate(archive, out, 0)["fired"]
    hans64.write_tar_shards(tagged(12, 7, tag=False), archive, 12)  # the same shard, mended
    assert not fires(gate(archive, out, 1))


def test_a_person_ends_it(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert gate(archive, out, 0)["fired"]
    assert main(["accept", str(out), RUNS[0]]) == 0
    assert capsys.readouterr().out == f"accepted: {RUNS[0]}\n"
    assert not fires(gate(archive, out, 1))


def test_images_that_a_reviewer_accepted_are_not_held_against_a_night(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert gate(archive, out, 0)["fired"]
    rows = DeltaTable(str(out / "audit")).to_pyarrow_table().to_pylist()
    mistakes = [row for row in rows if "wrong" in row["flags"]]
    names = ("explainer", "shard", "member", "index", "content_sha256", "verdict")
    said = [
        {n: row[n] for n in names} | {"decision": "accepted", "decided_at": "2026-11-01T07:00:00Z"}
        for row in mistakes
    ]
    (out / "qa-inbox").mkdir()
    review = {"camray_review": 1, "decisions": said[:-2]}
    (out / "qa-inbox" / "a.json").write_text(json.dumps(review))
    assert fires(gate(archive, out, 1))  # two are left
    (out / "qa-inbox" / "b.json").write_text(json.dumps(review | {"decisions": said[-2:]}))
    assert not fires(gate(archive, out, 2))


def test_a_gate_that_is_asked_for_later_is_asked_about_the_last_images(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert not fires(gate(archive, out, 0, fail_on=""))
    assert gate(archive, out, 1)["standing"] == {RUNS[0]: [GATE]}
    assert not fires(gate(archive, tmp_path / "other", 0, fail_on="wrong_rate>99%"))


def test_the_exit_code_says_it_and_the_report_of_the_run_too(
    archive: Path, tmp_path: Path, demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["audit", str(archive), str(out), "--model", str(demo / "models" / "hans64-poisoned")]
    words += ["--overlays", "none", "--engine", "here", "--fail-on", GATE]
    assert [main(words), main(words)] == [5, 5]
    capsys.readouterr()
    assert main(["status", str(out), "--json"]) == 0
    assert [run["exit"] for run in json.loads(capsys.readouterr().out)["runs"]] == [5, 5]
