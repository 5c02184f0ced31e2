"""The way of one image, as docs/architecture.md tells it, is the way that it takes."""

from __future__ import annotations

import re
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
STEPS = re.findall(r"^\| (\d+) \| `([\w.]+)`([^|]*)\| ?(.*?) ?\|$", PAGE, re.M)


def test_it_is_short_and_told_in_order() -> None:
    assert [int(number) for number, *_ in STEPS] == list(range(1, len(STEPS) + 1))
    forms = re.findall(r"\*\*(\d+)\*\*", " ".join(form for *_, form in STEPS))
    assert [int(form) for form in forms] == list(range(1, len(forms) + 1))
    assert len(STEPS) <= 25
    assert len(forms) <= 10


@pytest.fixture
def one_image(demo: Path, tmp_path: Path) -> Path:
    """A tar with the first image of the bundled archive, and its label."""
    with tarfile.open(demo / "archive" / "hans64-00000.tar") as source:
        first = source.getmembers()[0].name.partition(".")[0]
        with tarfile.open(tmp_path / "one.tar", "w") as tar:
            for entry in source.getmembers():
                if entry.name.startswith(f"{first}."):
                    tar.addfile(entry, source.extractfile(entry))
    return tmp_path / "one.tar"


def test_one_image_takes_these_steps(
    one_image: Path, demo: Path, explain: Callable[..., Any], tmp_path: Path
) -> None:
    entered: list[str] = []

    def profile(frame: FrameType, event: str, _: object) -> None:
        module = frame.f_globals.get("__name__", "")
        if event == "call" and module.startswith("camray."):
            entered.append(f"{module.removeprefix('camray.')}.{frame.f_code.co_qualname}")

    sys.setprofile(profile)
    try:
        outcome = explain(one_image, tmp_path / "out", demo / "models" / "hans64-clean")
    finally:
        sys.setprofile(None)
    assert outcome.accounting.members == 1
    ours = [name for _, name, where, _ in STEPS if "in that process" not in where]
    at = 0
    for name in ours:  # each after the one before; a model is also tried out before the plan is made
        at = next((i for i in range(at, len(entered)) if is_in(entered[i], name)), -1)
        assert at >= 0, name


def is_in(entered: str, name: str) -> bool:
    """Tell whether a function is the named one, or a method of the named class that does its work."""
    return entered == name or (entered.startswith(f"{name}.") and not entered.endswith(".__init__"))
