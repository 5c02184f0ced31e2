"""Each setting is declared once: help, defaults of each verb, its form in a file, its part in a result."""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camray.cli import main as cli
from camray.config import AuditConfig, Config
from camray.errors import UsageError
from camray.options import SETTINGS, load, to_toml

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "demo" / "models"
VERBS = ("plan", "explain", "audit", "compare", "layers")


def parsers() -> dict[str, argparse.ArgumentParser]:
    (found,) = (
        a.choices for a in cli.build_parser(True)._actions if isinstance(a, argparse._SubParsersAction)
    )
    return dict(found)


def test_every_leaf_of_the_tree_is_declared() -> None:
    leaves = {"out"}
    for top in dataclasses.fields(Config):
        section = getattr(Config(), top.name)
        if dataclasses.is_dataclass(section):
            leaves |= {f"{top.name}.{leaf.name}" for leaf in dataclasses.fields(section)}
    assert set(SETTINGS) == leaves


def test_verbs_have_the_options_that_name_them_and_no_others() -> None:
    """A misspelt verb would leave an option out without a word."""
    for name, parser in parsers().items():
        typed = {action.dest for action in parser._actions} & set(SETTINGS)
        named = {s.name for s in SETTINGS.values() if s.option and name in s.verbs.split()}
        assert typed - {"out", "model.name"} == named - {"out", "model.name"}
    for setting in SETTINGS.values():
        assert {*setting.verbs.split(), *setting.common.split(), *setting.own, *setting.told} <= set(VERBS)


@pytest.mark.parametrize(
    ("verb", "option", "default"),
    [
        ("explain", "--confirm", "(0)"),
        ("audit", "--confirm", "(0.15)"),
        ("plan", "--confirm", "(0; audit: 0.15)"),
        ("explain", "--overlays", "(sample)"),
        ("audit", "--overlays", "(flagged)"),
        ("audit", "--overlay-picture", "(triple)"),
        ("explain", "--max-failed", "(1%)"),
        ("compare", "--max-failed", "(1%)"),
        ("explain", "--max-pixels", "(100,000,000)"),
    ],
)
def test_help_names_the_default_of_the_verb(verb: str, option: str, default: str) -> None:
    (action,) = (a for a in parsers()[verb]._actions if option in a.option_strings)
    assert str(action.help).replace("%%", "%").endswith(f" {default}")


def test_what_help_says_of_a_comparison_is_so() -> None:
    from camray.compare import prepare

    assert SETTINGS["archive.sample"].told["compare"].endswith(f"({prepare.SAMPLE})")
    assert SETTINGS["run.batch_size"].told["compare"].endswith(f"({prepare.BATCH})")


def test_a_verb_has_its_own_defaults_and_whatever_is_written_wins() -> None:
    assert load(None, {}, "audit").audit == AuditConfig(confirm=0.15, looks=0.25, canary=16)
    assert load(None, {}).audit == load(None, {}, "compare").audit == AuditConfig()
    assert load(None, {"audit.confirm": 0}, "audit").audit.confirm == 0


def test_the_command_line_needs_no_heavy_library_for_help() -> None:
    code = "import sys, camray.cli.main as m; m.build_parser(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "timm", "pydantic", "pyarrow", "numpy"} & set(done.stdout.split())


# ── to a file and back ───────────────────────────────────────────────────────────────────────────

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
WHOLE = st.integers(-(2**63), 2**63 - 1)
PLAIN = st.recursive(
    st.booleans() | WHOLE | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def values(name: str) -> st.SearchStrategy[Any]:
    """Every value that a setting may have, by its type and range as docs/settings.md tells them."""
    s = SETTINGS[name]
    low = -(2**40) if s.low is None else s.low
    ints = st.integers(int(low), int(2**40 if s.high is None else s.high))
    floats = st.floats(float(low), 2.0**40 if s.high is None else float(s.high))
    kinds: dict[Any, st.SearchStrategy[Any]] = {
        bool: st.booleans(), int: ints, float: floats, str: TEXTS,
        tuple[str, ...]: st.lists(TEXTS, max_size=3).map(tuple),
        tuple[int, ...]: st.lists(ints, min_size=1, max_size=2).map(tuple),
        tuple[float, ...]: st.lists(floats, min_size=1, max_size=4).map(tuple),
        dict[str, Any]: st.dictionaries(TEXTS, PLAIN, max_size=3),
        int | float: st.integers(0, 2**40) | st.floats(0, 1),
    }  # fmt: skip
    if name == "compare.budget":
        return st.fixed_dictionaries({}, optional={"forwards": st.integers(1, 2**40)})
    if name == "archive.frames":
        return st.sampled_from(("first", "middle", "all", "0", "17"))
    return st.sampled_from(get_args(s.kind)) if get_origin(s.kind) is Literal else kinds[s.kind]


def compatible(chosen: dict[str, Any]) -> dict[str, Any]:
    """Leave out what does not go together."""
    for one, other in (("archive.limit", "archive.sample"), ("preprocess.resize", "preprocess.crop_pct")):
        if one in chosen:
            chosen.pop(other, None)
    if "run.actors" in chosen:
        chosen.pop("run.max_actors", None)
    return chosen


@given(
    chosen=st.fixed_dictionaries({}, optional={n: values(n) for n in SETTINGS}), verb=st.sampled_from(VERBS)
)
@settings(max_examples=60, deadline=None)
def test_what_print_config_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, chosen: dict[str, Any], verb: str
) -> None:
    config = load(None, compatible(chosen), verb)
    file = tmp_path_factory.mktemp("toml") / "c.toml"
    file.write_text(to_toml(config), "utf-8", newline="")
    for reader in VERBS:  # whatever defaults the reader has
        assert load(str(file), {}, reader) == config


@pytest.mark.parametrize("value", [None, b"x", {1: 2}, "\udce9", [1, None], 1j])
def test_what_toml_has_no_form_for_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match=r"^model\.args: .* has no form in TOML\. Fix: "):
        to_toml(load(None, {"model.args": {"x": value}}))


# ── what decides a result ────────────────────────────────────────────────────────────────────────

DECIDES: dict[str, Any] = {  # another value of each, for the demonstration's model
    "archive.max_pixels": 10**6, "archive.bands": [3, 2, 1], "method.heat_boxes": 0.25,
    "model.name": str(MODELS / "hans64-poisoned"),
    "model.args": {"drop_rate": 0.1}, "model.trust_pickle": True,
    "model.checkpoint": str(MODELS / "hans64-poisoned" / "model.safetensors"),
    "model.class_names": "names.txt", "model.activation": "sigmoid", "preprocess.input_size": 96,
    "preprocess.resize": 80, "preprocess.crop_pct": 0.5, "preprocess.crop_mode": "squash",
    "preprocess.interpolation": "nearest", "preprocess.mean": 0.4, "preprocess.std": 0.4,
    "preprocess.fast_decode": True, "method.name": "layercam", "method.target": "label",
    "method.layer": "layer3", "model.precision": "bf16", "audit.confirm": 0.1, "run.top_k": 2,
}  # fmt: skip
WITH_ANOTHER_HEAD = {"model.num_classes", "model.partial"}  # both need a checkpoint of another size
ELSEWHERE = {  # of models that the demonstration has not: tests/models, test_explain_readings.py
    "preprocess.channels", "model.prompts", "model.head", "model.task", "model.output", "method.grid",
    "method.prefix", "method.min_score", "method.max_detections", "method.min_share",
}  # fmt: skip
NEITHER = {"archive.path", "out"}


def test_settings_that_decide_a_result_are_those_that_change_the_explainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from camray.explain.explainer import resolve

    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("a\nb\nc\nd\ne\nf\n")
    plain = {"model.name": str(MODELS / "hans64-clean")}
    first = resolve(load(None, plain))[0].id
    decides = {name for name, setting in SETTINGS.items() if setting.result}
    assert decides == set(DECIDES) | WITH_ANOTHER_HEAD | ELSEWHERE
    for name, value in DECIDES.items():
        assert resolve(load(None, plain | {name: value}))[0].id != first, name
    others: dict[str, Any] = {
        name: next(v for v in get_args(s.kind) if v != s.default) if get_origin(s.kind) is Literal
        else {bool: not s.default, int: 7, float: 0.25, str: "x", tuple[str, ...]: ["x"], int | float: 0.5,
              dict[str, Any]: {"forwards": 3}}[s.kind]
        for name, s in SETTINGS.items() if not s.result and name != "archive.limit"
    }  # fmt: skip
    others["archive.frames"] = "all"
    assert resolve(load(None, plain | others))[0].id == first
