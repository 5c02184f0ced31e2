"""Settings: TOML and overrides, every refusal by name, the identity of an explainer."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from camray.config import Config, Explainer, InputSpec
from camray.errors import UsageError
from camray.options import load


def test_defaults_need_no_file() -> None:
    assert load(None, {}) == Config()


def test_options_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        'out = "a"\n[model]\nname = "x"\n[run]\ntop_k = 3\nmax_failed = 1\n[overlay]\nalpha = 1\n'
    )
    found = load(str(file), {"run.top_k": 7})
    assert (found.out, found.model.name, found.run.top_k) == ("a", "x", 7)
    assert found.overlay.alpha == 1.0
    assert isinstance(found.overlay.alpha, float)
    assert found.run.chunk_size == Config().run.chunk_size


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("1%", 0.01),
        ("0.5 %", 0.005),
        ("0.02", 0.02),
        ("25", 25),
        (25, 25),
        (0.5, 0.5),
        (1, 1),
        ("0", 0),
        ("100%", 1.0),
    ],
)
def test_failures_that_are_fine_are_a_number_or_a_share(given: Any, read: float) -> None:
    found = load(None, {"run.max_failed": given}).run.max_failed
    assert found == read
    assert isinstance(found, type(read))  # 1 is one image, 1.0 is all of them


def test_lists_become_tuples_and_a_class_index_text() -> None:
    found = load(None, {"archive.include": ["*.jpg", "a/*"], "method.target": 3})
    assert found.archive.include == ("*.jpg", "a/*")
    assert found.method.target == "3"


@pytest.mark.parametrize("target", ["predicted", "label", "0", "12"])
def test_targets_that_make_sense(target: str) -> None:
    assert load(None, {"method.target": target}).method.target == target


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"run.chunk_sise": 3}, "did you mean run.chunk_size?"),
    ({"nonsense": 3}, "no such setting"),
    ({"run": 3}, "no such setting"),
    ({"run.": 3}, "no such setting"),
    ({"archive.path.x": 3}, "no such setting"),
    ({"run.chunk_size": "3"}, "run.chunk_size"),
    ({"run.chunk_size": True}, "run.chunk_size"),
    ({"run.chunk_size": 3.5}, "run.chunk_size"),
    ({"run.chunk_size": None}, "run.chunk_size"),
    ({"run.force": 1}, "run.force"),
    ({"archive.path": 5}, "archive.path"),
    ({"archive.include": "*.jpg"}, "archive.include"),
    ({"run.device": "tpu"}, "one of auto, cpu, cuda"),
    ({"overlay.policy": "some"}, "one of none, sample, flagged, all"),
    ({"overlay.on": ["input"]}, "one of input, original"),
    ({"archive.limit": 0}, "--limit: 0 is out of range. Fix: give a value at least 1"),
    ({"archive.sample": -1}, "--sample"),
    ({"run.actors": 0}, "--actors"),
    ({"run.batch_size": 0}, "--batch-size"),
    ({"run.batch_size": 4097}, "--batch-size: 4097 is out of range. Fix: give a value between 1 and 4096"),
    ({"run.chunk_size": 0}, "--chunk-size"),
    ({"run.top_k": 0}, "--top-k"),
    ({"model.num_classes": 0}, "--num-classes"),
    ({"overlay.alpha": 1.01}, "--overlay-alpha"),
    ({"overlay.alpha": float("nan")}, "--overlay-alpha"),
    ({"overlay.alpha": 10**400}, "overlay.alpha"),
    ({"overlay.quality": 0}, "overlay.quality"),
    ({"preprocess.input_size": []}, "give one number or a list of them"),
    ({"archive.include": [1]}, "give a list of texts"),
    ({"model.args": 3}, "model.args: 3 will not do. Fix: give a table"),
    ({"run.max_actors": 2, "run.actors": 3}, "--max-actors: 2 is out of range. Fix: give a value at least 3"),
    ({"overlay.sample_per_chunk": -1}, "--overlay-sample"),
    ({"archive.max_pixels": 0}, "--max-pixels"),
    ({"archive.max_member_bytes": -1}, "max_member_bytes"),
    ({"run.max_failed": -0.1}, "--max-failed"),
    ({"run.max_failed": float("inf")}, "--max-failed"),
    ({"run.max_failed": True}, "run.max_failed: True will not do"),
    ({"run.max_failed": "1 %%"}, "--max-failed: '1 %%' will not do"),
    ({"run.max_failed": float("nan")}, "--max-failed"),
    ({"archive.limit": 1, "archive.sample": 1}, "--limit"),
    ({"method.target": True}, "method.target"),
]


@pytest.mark.parametrize(("settings", "said"), REFUSED, ids=[str(r[0]) for r in REFUSED])
def test_refused_by_name(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(None, settings)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"out = ", "not TOML"),
        (b"\xff\xfe", "not TOML"),
        (b"[run]\nchunk_sice = 1", "did you mean run.chunk_size?"),
        (b"[model]\ncheckpoint = 3", "model.checkpoint"),
        (b"[run.device]\nkind = 1", "run.device"),
        (b"[ruin]\n", "ruin"),
        (b"[[archive]]\npath = 'x'", "archive"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: bytes, said: str) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(text)
    with pytest.raises(UsageError) as caught:
        load(str(file), {})
    assert said in str(caught.value)


def test_an_empty_section_is_fine(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[run]\n[model]\n")
    assert load(str(file), {}) == Config()


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--config.*nope\.toml"):
        load(str(tmp_path / "nope.toml"), {})


SPEC = InputSpec(8, 8, (8, 8), "center", "bicubic", (0.5,) * 3, (0.5,) * 3)
EXPLAINER = Explainer(
    "resnet18", {"model_name": "resnet18"}, "ab" * 32, ("cat", "dog"), 2, SPEC, "gradcam", "predicted",
    "layer4", {"layout": "NCHW", "prefix": 0, "grid": None}, 2, 10**8, 1,
)  # fmt: skip


def changed(value: Any) -> Any:
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, dict):
        return {**value, "more": 1}
    if isinstance(value, tuple):
        return (*value, "bird")
    if isinstance(value, InputSpec):
        return dataclasses.replace(value, fill=(1, 0, 0))
    return value + 1


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Explainer)])
def test_every_field_decides_the_id(field: str) -> None:
    other = dataclasses.replace(EXPLAINER, **{field: changed(getattr(EXPLAINER, field))})
    assert other.id != EXPLAINER.id


def test_id_is_stable_over_releases_and_key_order() -> None:
    """The id names a partition of every table there is."""
    assert EXPLAINER.id == "9f7bb246bde7d5bf"
    turned = dict(reversed(EXPLAINER.layout.items()))
    assert dataclasses.replace(EXPLAINER, layout=turned).id == EXPLAINER.id


def test_labels_by_class() -> None:
    assert [EXPLAINER.label_of(i) for i in (0, 1, 2, -1)] == ["cat", "dog", None, None]
