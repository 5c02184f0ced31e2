"""bench/gpu.py runs where no GPU is, so that it runs where one is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench" / "gpu.py"


@pytest.mark.slow
def test_it_runs_on_a_cpu_and_its_maps_are_those_of_float64() -> None:
    options = [
        "--device",
        "cpu",
        "--models",
        "resnet18",
        "--batch",
        "2",
        "--side",
        "64",
        "--rounds",
        "1",
        "--forms",
        "fp32",
        "bf16",
    ]
    done = subprocess.run([sys.executable, BENCH, *options], capture_output=True, text=True, check=True)
    off = [float(value) for value in re.findall(r"map (\S+) off float64", done.stdout)]
    assert len(off) == 2
    assert off[0] < 1e-5 < off[1] < 0.1
