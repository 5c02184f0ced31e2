"""A night with nothing new loads no model, and never takes one thing for another."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from camray.config import Config
from camray.job import resolved
from camray.job.prepare import prepare
from camray.options import SETTINGS, load
from camray.storage import open_folder
from demo import hans64

MODELS = Path(hans64.__file__).parent / "models"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A model folder and a tar of four images."""
    shutil.copytree(MODELS / "hans64-clean", tmp_path / "model")
    hans64.write_tar_shards([hans64.render(0, "audit", i) for i in range(4)], tmp_path / "in", 4)
    return tmp_path


def settings(place: Path, **more: Any) -> Config:
    named = {"archive.path": str(place / "in"), "out": str(place / "out"), "model.name": str(place / "model")}
    return load(None, named | {"run.engine": "here"} | more)


def night(place: Path, *more: str) -> tuple[int, str, list[str]]:
    """Run `camray explain` in a process of its own; give exit code, what was said, and what it imported."""
    line = ["explain", str(place / "in"), str(place / "out"), "--model", str(place / "model"), *more]
    program = (
        "import sys; from camray.cli.main import main; code = main(sys.argv[1:]); "
        "print(*(n for n in ('torch', 'timm', 'ray', 'cv2') if n in sys.modules)); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program, *line], check=False, capture_output=True, text=True)
    return done.returncode, done.stderr, done.stdout.split()


def test_a_night_with_nothing_new_loads_no_model_and_ends_as_ever(place: Path) -> None:
    assert night(place)[0] == 0
    metrics, ends = place / "m.prom", place / "end.json"
    code, said, imported = night(place, "--metrics-file", str(metrics), "--on-end", f"cat > {ends}")
    assert (code, imported) == (0, ["cv2"]), said
    assert "nothing to do: every shard is committed for this explainer; the model is as it was" in said
    first, last = (json.loads(f.read_text()) for f in sorted(place.glob("out/runs/*/run.json")))
    assert (last["exit"], last["shards"]["todo"]) == (0, 0)
    assert (last["explainer"], last["notes"]) == (first["explainer"], first["notes"])
    assert "camray_last_run_exit_code" in metrics.read_text()
    assert json.loads(ends.read_text())["exit"] == 0


def _knows(config: Config, before: resolved.Origin | None) -> bool:
    return resolved.origin_of(config, ["b", "a"]) == before


FILES: dict[str, Callable[[Path], Any]] = {
    "the weights are others of the same size": lambda m: (m / "model.safetensors").write_bytes(
        bytes(reversed((m / "model.safetensors").read_bytes()))
    ),
    "the same weights, put there again with their times": lambda m: _again(m / "model.safetensors"),
    "its description": lambda m: (m / "config.json").write_text((m / "config.json").read_text() + " "),
    "another file": lambda m: (m / "preprocessor_config.json").write_text("{}"),
    "a file that is gone": lambda m: (m / "model.safetensors").unlink(),
    "all is gone": shutil.rmtree,
}


def _again(file: Path) -> None:
    was = file.stat()
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data)
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))


@pytest.mark.parametrize("what", FILES)
def test_a_changed_model_is_another(place: Path, what: str) -> None:
    before = resolved.origin_of(settings(place), ["a", "b"])
    assert before is not None
    assert _knows(settings(place), before)
    FILES[what](place / "model")
    assert not _knows(settings(place), before)


@pytest.mark.parametrize("name", [n for n, s in SETTINGS.items() if s.result])
def test_any_setting_of_a_result_misses_the_memory(place: Path, name: str) -> None:
    section, _, field = name.partition(".")
    config = settings(place)
    part = getattr(config, section)
    value = getattr(part, field)
    other = (
        not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else f"{value}x"
    )
    changed = replace(config, **{section: replace(part, **{field: other})})
    assert not _knows(changed, resolved.origin_of(config, ["a", "b"]))


def test_other_software_folders_and_places_miss_the_memory(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = settings(place)
    before = resolved.origin_of(config, ["a", "b"])
    assert resolved.origin_of(config, ["a", "c"]) != before
    alone = replace(config, run=replace(config.run, batch_size=1))  # a model may need it
    assert not _knows(alone, before)
    packages = tmp_path / "packages"
    (packages / "torch-1.dist-info").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(packages))
        first = resolved.origin_of(config, ["a", "b"])
        (packages / "torch-1.dist-info").rename(packages / "torch-2.dist-info")
        assert resolved.origin_of(config, ["a", "b"]) != first
        (packages / "torch-2.dist-info").rename(packages / "torch-1.dist-info")
        os.utime(packages / "torch-1.dist-info")  # installed again from elsewhere
        assert resolved.origin_of(config, ["a", "b"]) != first
    with monkeypatch.context() as patch:
        patch.setattr("camray.job.resolved.__version__", "9")
        assert not _knows(config, before)
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        assert not _knows(config, before)
    assert _knows(config, before)


def test_own_code_is_known_by_what_it_imports(place: Path) -> None:
    (place / "net.py").write_text("from parts import Part\nclass Net(Part): pass\n")
    (place / "parts.py").write_text("class Part: pass\n")
    config = settings(place, **{"model.name": f"{place}/net.py:Net"})
    before = resolved.origin_of(config, [])
    assert before == resolved.origin_of(config, [])
    was = (place / "parts.py").stat()
    (place / "parts.py").write_text("class Port: pass\n")
    os.utime(place / "parts.py", ns=(was.st_atime_ns, was.st_mtime_ns))
    assert resolved.origin_of(config, []) != before


@pytest.mark.parametrize("name", ["hf-hub:a/b", "resnet18"])
def test_what_a_hub_may_have_changed_is_asked_again(place: Path, name: str) -> None:
    config = settings(place, **{"model.name": name, "model.download": name == "resnet18"})
    assert resolved.origin_of(config, []) is None


def test_weights_of_a_cache_are_looked_at_where_only_the_library_knows_them(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = place / "cache" / "w.pth"
    cached.parent.mkdir()
    cached.write_bytes(b"1")
    out, config = open_folder(str(place / "out"), "OUT"), settings(place, **{"model.name": "resnet18"})
    explainer = resolved.Resolved(prepare(settings(place)).explainer, ("told",))
    resolved.keep(out, resolved.origin_of(config, [], [cached]), explainer)
    assert resolved.recall(out, resolved.origin_of(config, []), config, []) == explainer
    cached.write_bytes(b"2")
    assert resolved.recall(out, resolved.origin_of(config, []), config, []) is None


def test_a_damaged_memory_is_set_aside(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, config = open_folder(str(place / "out"), "OUT"), settings(place)
    origin = resolved.origin_of(config, [])
    resolved.keep(out, origin, resolved.Resolved(prepare(config).explainer, ()))
    (file,) = (place / "out" / "resolved").iterdir()
    file.write_text(file.read_text().replace("a", "b"))
    assert resolved.recall(out, origin, config, []) is None
    assert "set aside" in capsys.readouterr().err
