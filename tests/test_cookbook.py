"""Every command of the cookbook runs, and says what the cookbook shows: word for word but for the numbers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import camray
from camray.cli.main import main
from tests.cookbook_kitchen import ROOT, lay_out

PAGE = (ROOT / "docs" / "cookbook.md").read_text()
HEAVY = (
    "botnet",
    "densenet",
    "pvt",
    "squeezenet",
    "vgg16",
    "trust-pickle",
    "detr-things",
    "segformer-things",
    "open-clip-things",
    "yolo-things",
    "unet-things",
)


def recipes() -> list[object]:
    """Each command with the output shown below it; where several share a block, with none but their sums."""
    found = []
    pattern = r"```sh\n(.*?)```(?:\s*```text\n(.*?)```)?"
    for commands, shown in re.findall(pattern, PAGE, re.S):
        lines = commands.strip().splitlines()
        for i, line in enumerate(lines):
            own = shown if len(lines) == 1 else "\n".join(shown.splitlines()[i : i + 1])
            marks = [pytest.mark.slow] if any(h in line for h in HEAVY) else []
            found.append(pytest.param(line, own, marks=marks, id=line[:60]))
    return found


def masked(line: str) -> str:
    """Replace what differs from machine to machine: ids, times, sizes and rates."""
    line = re.sub(r"run: \S+", "run: #", line)
    return re.sub(r"\b[0-9a-f]{12,16}\b|\d[\d.,]*", "#", line).strip()


def is_said(line: str, said: set[str]) -> bool:
    """Tell whether a line was printed; of one that ends in … its beginning."""
    if line.endswith("…"):
        return any(found.startswith(masked(line[:-1])) for found in said)
    return masked(line) in said


@pytest.mark.parametrize(("command", "shown"), recipes())
def test_recipe(
    command: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = shlex.split(command)
    assert words[0] == "camray"
    if "scans" in words:
        pytest.importorskip("pydicom")
    lay_out(tmp_path, words)
    monkeypatch.chdir(tmp_path)
    code = main(words[1:])
    told = capfd.readouterr()
    wanted = re.search(r"camray: exit (\d+)", shown)
    assert code == (int(wanted[1]) if wanted else 0), told.err
    told_here = (told.err + told.out).replace(f"{tmp_path}/", "")
    said = {masked(line) for line in told_here.splitlines()}
    missing = [line for line in shown.splitlines() if not is_said(line, said)]
    assert not missing, told.err + told.out
    if code in (0, 3) and words[1] == "explain":
        rows = camray.open_records(words[3]).to_table().to_pylist()
        assert len({row["member"] for row in rows}) >= 4
        drawn = [row["overlay_path"] for row in rows if row["overlay_path"]]
        assert drawn
        assert all((tmp_path / words[3] / path).stat().st_size > 500 for path in drawn)


def test_there_is_a_recipe_for_every_case() -> None:
    assert re.findall(r"^## ([A-H]) ", PAGE, re.M) == list("ABCDEFGH")
    assert len(recipes()) >= 13
