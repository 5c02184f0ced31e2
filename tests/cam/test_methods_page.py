"""docs/methods.md: its snippet runs, its table names every method, its target forms parse."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from camray.cam import METHODS, TargetRule, parse_method

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text("utf-8")


def test_the_snippet_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {"images": torch.randn(2, 3, 224, 224)}
    small = code.replace('"resnet50", pretrained=True', '"resnet18", pretrained=False')  # no network here
    assert small != code
    exec(compile(small, "methods.md", "exec"), names)
    heat = names["heat"]
    assert isinstance(heat, torch.Tensor)
    assert heat.shape == (2, 5, 224, 224)
    assert 0 <= float(heat.min()) <= float(heat.max()) <= 1


def test_the_table_names_every_method() -> None:
    table = PAGE[PAGE.index("## The table") : PAGE.index("## Targets")]
    named = {
        name
        for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        for name in re.findall(r"`(.*?)`", row)
    }
    assert {name.partition("(")[0] for name in named if ":" not in name} | {"captum"} == set(METHODS)


def test_written_methods_and_targets_parse() -> None:
    for text in re.findall(r"`(\w[\w+-]*\(\w+=[^`]*\))`", PAGE):
        if text.partition("(")[0] in METHODS:
            parse_method(text.replace("channels=N", "channels=8"))
    targets = PAGE[PAGE.index("## Targets") : PAGE.index("## Layers")]
    for row in re.findall(r"^\| (`[^|]*) \|", targets, re.MULTILINE):
        for text in re.findall(r"`(.*?)`", row):
            TargetRule.parse(text.replace("...", "predicted"))
