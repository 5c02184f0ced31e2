"""The actor's core on the bundled models, against plain forwards, the reference package and sums by hand."""

import csv
import io
import json
import math
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from camray import cam
from camray.config import Config, MethodConfig, ModelConfig, OverlayConfig, RunConfig
from camray.errors import ModelError, UsageError
from camray.explain import explainer as explainer_module
from camray.explain.explainer import BatchExplainer, is_flagged, own_copies, resolve
from camray.flow.actor import choose_overlays
from camray.models.load import load_model
from camray.records import DECODED, EXPLAINED, struct_array

DEMO = Path(__file__).resolve().parents[2] / "demo"
MODELS = ("hans64-clean", "hans64-poisoned")
SCORES = ("predicted_class", "confidence", "margin", "entropy", "topk", "heatmap", "heat_status", "method")
Rows = list[dict[str, Any]]


def config(model: str = MODELS[0], target: str = "predicted", top_k: int = 5) -> Config:
    return Config(
        model=ModelConfig(name=str(DEMO / "models" / model)),
        method=MethodConfig(target=target),
        run=RunConfig(top_k=top_k),
    )


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """The first images of the bundled archive, as encoded."""
    found = []
    with tarfile.open(DEMO / "archive/hans64-00000.tar") as tar:
        for member in tar:
            if member.name.endswith((".png", ".jpg")):
                content = tar.extractfile(member)
                assert content is not None
                found.append(content.read())
            if len(found) == 11:
                break
    return found


@pytest.fixture(scope="module")
def pixels(pictures: list[bytes]) -> np.ndarray[Any, Any]:
    """Uint8 (N, 64, 64, 3): at the model's size already."""
    return np.stack([np.asarray(Image.open(io.BytesIO(p)).convert("RGB")) for p in pictures])


@pytest.fixture(scope="module")
def both() -> dict[str, BatchExplainer]:
    found = {}
    for name in MODELS:
        explainer, loaded = resolve(config(name))
        state = loaded.module.state_dict()
        found[name] = BatchExplainer(explainer, state, batch_size=4, folded=loaded.folded)
    return found


@pytest.fixture
def clean(both: dict[str, BatchExplainer]) -> BatchExplainer:
    return both[MODELS[0]]


def retargeted(base: BatchExplainer, batch_size: int = 4, **changes: Any) -> BatchExplainer:
    explainer = replace(base.explainer, **changes)
    return BatchExplainer(explainer, base.module.state_dict(), batch_size=batch_size, folded=base.folded)


def decoded(views: np.ndarray[Any, Any], **columns: Sequence[Any]) -> pa.StructArray:
    size = len(views)
    base: dict[str, Any] = {
        "index": list(range(size)),
        "member": [f"{i}.png" for i in range(size)],
        "status": ["ok"] * size,
        "pixels": [v.tobytes() for v in views],
    }
    return struct_array(base | columns, DECODED)


def rows_of(found: pa.StructArray) -> Rows:
    assert found.type == EXPLAINED
    rows: Rows = found.to_pylist()
    return rows


def plain_logits(name: str, pictures: list[bytes]) -> Tensor:
    """What timm alone says: its own loader, its own transform, one image at a time."""
    folder = DEMO / "models" / name
    described = json.loads((folder / "config.json").read_text())
    module = timm.create_model("test_resnet", num_classes=6, output_stride=8).eval()
    module.load_state_dict(load_file(folder / "model.safetensors"))
    cfg = resolve_data_config(described["pretrained_cfg"], model=module)
    transform = create_transform(**cfg, is_training=False)
    with torch.no_grad():
        return torch.cat(
            [module(transform(Image.open(io.BytesIO(p)).convert("RGB"))[None]) for p in pictures]
        )


# ── predictions ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", MODELS)
def test_predictions_are_those_of_timm(
    name: str, pictures: list[bytes], pixels: np.ndarray[Any, Any]
) -> None:
    explainer, loaded = resolve(config(name))
    rows = rows_of(
        BatchExplainer(explainer, loaded.module.state_dict(), folded=loaded.folded)(decoded(pixels))
    )
    p = plain_logits(name, pictures).double().softmax(1)
    assert [r["predicted_class"] for r in rows] == p.argmax(1).tolist()
    assert [r["confidence"] for r in rows] == pytest.approx(p.amax(1).tolist(), abs=1e-6)
    for row, scores in zip(rows, p.tolist(), strict=True):
        order = sorted(range(6), key=lambda c: -scores[c])
        assert row["margin"] == pytest.approx(scores[order[0]] - scores[order[1]], abs=1e-6)
        expected = -sum(s * math.log(s) for s in scores if s > 0) / math.log(6)
        assert row["entropy"] == pytest.approx(expected, abs=1e-5)
        assert [t["class_id"] for t in row["topk"]] == order[:5]
        assert [t["score"] for t in row["topk"]] == pytest.approx([scores[c] for c in order[:5]], abs=1e-6)
        assert [t["label"] for t in row["topk"]] == [explainer.class_names[c] for c in order[:5]]
        assert row["predicted_label"] == explainer.class_names[order[0]]


def test_margin_and_entropy_by_hand(clean: BatchExplainer) -> None:
    logits = torch.tensor(
        [[math.log(6.0), math.log(3.0), 0.0], [0.0, 0.0, 0.0], [900.0, 0.0, -900.0]]
    ).double()
    explainer = replace(clean.explainer, num_classes=3, class_names=("a", "b"), top_k=2)
    columns = explainer_module._predictions(logits, logits.softmax(1), explainer)
    first, even, sure = explainer_module.as_rows(
        {n: c if isinstance(c, list) else c.to_pylist() for n, c in columns.items()}
    )
    assert (first["confidence"], first["margin"]) == pytest.approx((0.6, 0.3))
    assert first["entropy"] == pytest.approx(
        -(0.6 * math.log(0.6) + 0.3 * math.log(0.3) + 0.1 * math.log(0.1)) / math.log(3)
    )
    assert (even["margin"], even["entropy"]) == pytest.approx((0.0, 1.0))
    assert (sure["confidence"], sure["margin"], sure["entropy"]) == pytest.approx((1.0, 1.0, 0.0))
    assert first["topk"] == [
        {"class_id": 0, "label": "a", "score": pytest.approx(0.6)},
        {"class_id": 1, "label": "b", "score": pytest.approx(0.3)},
    ]


@pytest.mark.parametrize("top_k", [1, 2, 6])
def test_top_k(clean: BatchExplainer, pixels: np.ndarray[Any, Any], top_k: int) -> None:
    rows = rows_of(retargeted(clean, top_k=top_k)(decoded(pixels[:2])))
    assert {len(r["topk"]) for r in rows} == {top_k}
    assert all(
        r["margin"] == pytest.approx(w["margin"])
        for r, w in zip(rows, rows_of(clean(decoded(pixels[:2]))), strict=True)
    )


# ── heatmaps ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "target"), [(MODELS[0], "3"), (MODELS[1], "predicted")])
def test_heatmaps_are_those_of_the_reference_package(
    name: str, target: str, both: dict[str, BatchExplainer], pixels: np.ndarray[Any, Any]
) -> None:
    made = both[name]
    reference = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    rows = rows_of(retargeted(made, target=target)(decoded(pixels)))
    module = load_model(ModelConfig(name=str(DEMO / "models" / name))).module.requires_grad_(
        True
    )  # not folded
    x = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float() / 255
    spec = made.explainer.input
    x = (x - torch.tensor(spec.mean)[:, None, None]) / torch.tensor(spec.std)[:, None, None]
    layer = module.get_submodule(made.explainer.target_layer)
    classes = [r["target_class"] for r in rows]
    engine = reference.GradCAM(model=module, target_layers=[layer])
    theirs = engine(
        input_tensor=x, targets=[ClassifierOutputTarget(c) for c in classes]
    )  # (N, 64, 64) in 0..1
    for row, wanted in zip(rows, theirs, strict=True):
        raw = torch.tensor(row["heatmap"]).reshape(row["heat_h"], row["heat_w"])
        assert row["heat_max"] == pytest.approx(float(raw.max()))
        # Their finishing of the positive part: min-max, resize to the input, min-max again.
        resized = cv2.resize(min_max(raw.clamp(min=0).numpy()), (64, 64))
        assert np.abs(min_max(resized) - wanted).max() <= 1e-5


def min_max(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    values = values - values.min()
    return values / (1e-7 + values.max())


def test_heatmaps_follow_the_definition(clean: BatchExplainer, pixels: np.ndarray[Any, Any]) -> None:
    """Grad-CAM from its formula: channel weights are the mean gradient of the class score."""
    rows = rows_of(clean(decoded(pixels[:3])))
    module, kept = clean.module, {}
    layer = module.get_submodule(clean.explainer.target_layer)
    handle = layer.register_forward_hook(lambda _m, _i, out: kept.update(A=out))
    x = torch.from_numpy(pixels[:3].copy()).permute(0, 3, 1, 2).float() / 255
    spec = clean.explainer.input
    x = (
        (x - torch.tensor(spec.mean)[:, None, None]) / torch.tensor(spec.std)[:, None, None]
    ).requires_grad_()
    logits = module(x)
    handle.remove()
    score = logits.gather(1, torch.tensor([[r["target_class"]] for r in rows])).sum()
    (G,) = torch.autograd.grad(score, kept["A"])
    maps = (kept["A"] * G.mean((2, 3), keepdim=True)).sum(1)
    for row, one in zip(rows, maps, strict=True):
        assert (row["heat_h"], row["heat_w"]) == tuple(one.shape)
        assert row["heatmap"] == pytest.approx(one.flatten().tolist(), abs=1e-5)


def test_neither_batch_size_nor_neighbours_nor_order_matter(
    clean: BatchExplainer, pixels: np.ndarray[Any, Any]
) -> None:
    whole = rows_of(retargeted(clean, batch_size=11)(decoded(pixels)))
    ones = rows_of(retargeted(clean, batch_size=1)(decoded(pixels)))
    turned = rows_of(retargeted(clean, batch_size=3)(decoded(pixels[::-1])))[::-1]
    alone = [rows_of(clean(decoded(pixels[i : i + 1])))[0] for i in (0, 5)]
    for other in (ones, turned):
        for a, b in zip(whole, other, strict=True):
            assert_same(a, b)
    assert_same(whole[0], alone[0])
    assert_same(whole[5], alone[1])


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    for name in set(a) - {"index", "member", "topk", "heatmap", "pixels"}:
        assert a[name] == (pytest.approx(b[name], abs=1e-5) if isinstance(a[name], float) else b[name]), name
    assert a["heatmap"] == pytest.approx(b["heatmap"], abs=1e-5)
    assert [t["class_id"] for t in a["topk"]] == [t["class_id"] for t in b["topk"]]


def test_a_slice_of_a_longer_chunk_is_explained_as_itself(
    clean: BatchExplainer, pixels: np.ndarray[Any, Any]
) -> None:
    """As the guard does from the third attempt on."""
    whole = decoded(pixels[:4])
    together = rows_of(clean(whole))
    for i in range(4):
        (alone,) = rows_of(clean(whole[i : i + 1]))
        assert alone["index"] == i
        assert_same(alone, together[i])


# ── targets and labels ───────────────────────────────────────────────────────────────────────────


def test_the_target_is_what_was_asked_for(clean: BatchExplainer, pixels: np.ndarray[Any, Any]) -> None:
    rows = rows_of(clean(decoded(pixels[:3])))
    assert all(r["target_class"] == r["predicted_class"] and r["target_kind"] == "predicted" for r in rows)
    rows = rows_of(retargeted(clean, target="2")(decoded(pixels[:3])))
    assert {(r["target_class"], r["target_label"], r["target_kind"]) for r in rows} == {
        (2, "triangle", "class")
    }
    rows = rows_of(retargeted(clean, target="label")(decoded(pixels[:3], label=["ring", "disk", "star"])))
    assert [(r["target_class"], r["target_label"], r["target_kind"]) for r in rows] == [
        (4, "ring", "label"), (0, "disk", "label"), (5, "star", "label"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value"),
    [("min_score", 0.3), ("max_detections", 3), ("min_share", 0.3), ("grid", (2, 2)), ("prefix", 1)],
)
def test_what_only_other_networks_have_is_refused_for_a_classifier(option: str, value: Any) -> None:
    """Accepted and of no effect, it would look like a setting of the result."""
    given = replace(config(), method=MethodConfig(**{option: value}))
    with pytest.raises(ModelError, match=f"^--{option.replace('_', '-')}: layer4 .*no .*Fix: leave it out"):
        resolve(given)


def test_another_target_is_another_map(clean: BatchExplainer, pixels: np.ndarray[Any, Any]) -> None:
    first, second = (rows_of(retargeted(clean, target=t)(decoded(pixels[:1])))[0] for t in ("0", "1"))
    assert first["heatmap"] != pytest.approx(second["heatmap"], abs=1e-3)
    assert first["predicted_class"] == second["predicted_class"]


def test_a_label_that_is_no_class_fails_its_own_member_only(
    clean: BatchExplainer, pixels: np.ndarray[Any, Any]
) -> None:
    labels, classes = ["disk", "dog", None, None, "star"], [None, None, None, 99, None]
    rows = rows_of(retargeted(clean, target="label")(decoded(pixels[:5], label=labels, label_class=classes)))
    assert [r["status"] for r in rows] == ["ok", "failed", "failed", "failed", "ok"]
    for row in rows[1:4]:
        assert (row["error_code"], row["error_stage"]) == ("bad_target", "explain")
        assert {row[name] for name in SCORES if name != "topk"} == {None}
    assert "'dog'" in rows[1]["error_message"]
    good = rows_of(retargeted(clean, target="label")(decoded(pixels[[0, 4]], label=["disk", "star"])))
    assert_same(rows[0], good[0])
    assert_same(rows[4], good[1])


def test_correct_is_known_only_where_the_archive_knows(
    clean: BatchExplainer, pixels: np.ndarray[Any, Any]
) -> None:
    truth = [r["predicted_class"] for r in rows_of(clean(decoded(pixels[:6])))]
    names = clean.explainer.class_names
    wrong = (truth[1] + 1) % 6
    rows = rows_of(
        clean(
            decoded(
                pixels[:6],
                label=[names[truth[0]], names[wrong], "dog", None, None, "dog"],
                label_class=[None, None, None, None, truth[4], truth[5]],
            )
        )
    )
    assert [r["correct"] for r in rows] == [True, False, None, None, True, True]
    assert [r["label_class"] for r in rows] == [truth[0], wrong, None, None, truth[4], truth[5]]
    kept = [{t["class_id"]: t["score"] for t in r["topk"]}.get(r["label_class"]) for r in rows]
    assert [r["label_score"] for r in rows if r["label_class"] is not None][:1] == [rows[0]["confidence"]]
    assert all(r["label_score"] == own for r, own in zip(rows, kept, strict=True) if own is not None)
    assert [r["label_score"] is None for r in rows] == [False, False, True, True, False, False]
    assert rows[2]["label"] == "dog"


def test_classes_are_in_the_order_of_the_archives_labels(
    clean: BatchExplainer, pixels: np.ndarray[Any, Any]
) -> None:
    """End to end: the names of truth.csv, the order of the model's head, a model right on 98 % of images."""
    with (DEMO / "truth.csv").open() as file:
        names = [row["label_name"] for row in csv.DictReader(file)][: len(pixels)]
    rows = rows_of(clean(decoded(pixels, label=names)))
    assert sum(r["correct"] for r in rows) >= len(rows) - 1
    assert [r["label"] for r in rows] == names
    assert [r["label"] == r["predicted_label"] for r in rows] == [r["correct"] for r in rows]


# ── failures ─────────────────────────────────────────────────────────────────────────────────────


def test_items_that_failed_before_pass_untouched(clean: BatchExplainer, pixels: np.ndarray[Any, Any]) -> None:
    items = decoded(
        pixels[:3],
        status=["ok", "failed", "skipped"],
        error_code=[None, "empty_file", None],
        error_stage=[None, "decode", None],
        pixels=[pixels[0].tobytes(), None, None],
    )
    first, failed, skipped = rows_of(clean(items))
    assert first["status"] == "ok"
    assert (failed["status"], failed["error_code"], failed["error_stage"]) == (
        "failed",
        "empty_file",
        "decode",
    )
    assert skipped["status"] == "skipped"
    for row in (failed, skipped):
        assert {row[n] for n in SCORES if n != "topk"} == {None}


def test_a_chunk_without_a_single_good_image(clean: BatchExplainer, pixels: np.ndarray[Any, Any]) -> None:
    rows = rows_of(clean(decoded(pixels[:2], status=["failed"] * 2, pixels=[None, None])))
    assert [r["status"] for r in rows] == ["failed"] * 2
    assert len(clean(decoded(pixels[:0]))) == 0


class Picky(torch.nn.Module):
    """The model, but it cannot take an image of one colour."""

    def __init__(self, inner: torch.nn.Module, answer: float | None) -> None:
        super().__init__()
        self.inner, self.answer = inner, answer

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1).std(1) < 0.3
        if self.answer is None and bool(flat.any()):
            raise RuntimeError("unlucky\nkernel \x1b[31m")
        z: Tensor = self.inner(x)
        return z if self.answer is None else torch.where(flat[:, None], z * 0 + self.answer, z)


@pytest.fixture
def with_flat(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    flat = np.full_like(pixels[0], 120)
    return np.stack([pixels[0], flat, pixels[1], pixels[2], flat])


@pytest.mark.parametrize(
    ("answer", "code"),
    [(None, "model_failed"), (math.nan, "nonfinite_output"), (math.inf, "nonfinite_output")],
)
def test_an_image_the_model_fails_on_harms_no_other(
    clean: BatchExplainer, with_flat: np.ndarray[Any, Any], answer: float | None, code: str,
) -> None:  # fmt: skip
    picky = retargeted(
        clean, target_layer=f"inner.{clean.explainer.target_layer}", model_args=clean.explainer.model_args
    )
    picky.module = Picky(picky.module, answer).eval()
    rows = rows_of(picky(decoded(with_flat)))
    assert [r["status"] for r in rows] == ["ok", "failed", "ok", "ok", "failed"]
    for row in (rows[1], rows[4]):
        assert (row["error_code"], row["error_stage"]) == (code, "explain")
        assert row["error_message"].isprintable()
        assert {row[n] for n in SCORES if n != "topk"} == {None}
    expected = rows_of(clean(decoded(with_flat[[0, 2, 3]])))
    for row, wanted in zip([rows[0], rows[2], rows[3]], expected, strict=True):
        assert_same(row | {"target_layer": None}, wanted | {"target_layer": None})


def test_a_map_that_is_not_finite_is_null_with_all_its_signals() -> None:
    maps = torch.tensor(
        [[[1.0, 2.0], [3.0, math.nan]], [[1.0, 2.0], [3.0, 4.0]], [[-1.0, 0.0], [-2.0, -1.0]]]
    )
    bad, good, dead = explainer_module.as_rows(explainer_module.heat_columns(maps))
    assert (bad["heat_status"], bad["heatmap"], bad["heat_max"]) == ("nonfinite", None, None)
    assert {v for k, v in bad.items() if k not in ("heat_status", "heat_h", "heat_w")} == {None}
    assert (good["heat_status"], good["heatmap"].tolist(), good["heat_max"]) == ("ok", [[1, 2], [3, 4]], 4)
    assert good["heat_peak_x"] == 0.75
    assert (dead["heat_status"], dead["heatmap"].tolist(), dead["heat_max"]) == (
        "dead",
        [[-1, 0], [-2, -1]],
        0,
    )
    assert dead["heat_peak_x"] is None


# ── naming the result ────────────────────────────────────────────────────────────────────────────


def test_the_same_settings_are_the_same_explainer(both: dict[str, BatchExplainer]) -> None:
    """How the work is done does not name it; what is asked for does."""
    first, base = both[MODELS[0]].explainer, config()
    hurried = replace(base, run=replace(base.run, batch_size=3, chunk_size=7), overlay=OverlayConfig("all"))
    again, _ = resolve(hurried)
    assert (again, again.id) == (first, first.id)
    asked, _ = resolve(config(target="label", top_k=99))
    assert asked.top_k == 6  # never more than there are classes
    assert len({first.id, both[MODELS[1]].explainer.id, asked.id}) == 3


@pytest.mark.parametrize(
    "target", ["6", "class:6", "class:1,9", "class:1@vs:6", "dog", "-1", "", "top", "top:x", "above", "1@vs"]
)
def test_a_target_that_cannot_be_is_refused_before_the_run(target: str) -> None:
    with pytest.raises(UsageError, match="target"):
        resolve(config(target=target))


def test_several_targets_are_several_rows_of_one_member(
    clean: BatchExplainer, pixels: np.ndarray[Any, Any]
) -> None:
    rows = rows_of(retargeted(clean, target="top:3")(decoded(pixels[:3])))
    for first, second, third in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        one, two = (np.maximum(row["heatmap"], 0) for row in (first, second))
        expected = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
        assert [r["heat_top2_cosine"] for r in (first, second, third)] == pytest.approx([expected] * 3)
    assert [r["index"] for r in rows] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for i in range(3):
        mine = rows[3 * i : 3 * i + 3]
        assert [r["target_class"] for r in mine] == [t["class_id"] for t in mine[0]["topk"]][:3]
        for row in mine:
            (single,) = rows_of(
                retargeted(clean, target=str(row["target_class"]))(decoded(pixels[i : i + 1]))
            )
            assert row["heatmap"] == pytest.approx(single["heatmap"], abs=1e-5)
            assert row["predicted_class"] == single["predicted_class"]


def test_an_image_without_any_class_above_the_bar_keeps_its_row(
    clean: BatchExplainer, pixels: np.ndarray[Any, Any]
) -> None:
    rows = rows_of(retargeted(clean, target="above:0.9999")(decoded(pixels[:6])))
    assert {r["index"] for r in rows} == set(range(6))
    for row in rows:
        assert row["status"] == "ok"
        assert (
            (row["heatmap"] is None) == (row["target_class"] is None) == (row["heat_status"] == "no_target")
        )
        assert row["confidence"] is not None
    alone = [rows_of(retargeted(clean, target="above:0.9999")(decoded(pixels[i : i + 1]))) for i in range(6)]
    assert [r["target_class"] for r in rows] == [r["target_class"] for one in alone for r in one]


@pytest.mark.parametrize("target", ["label@softmax", "-label"])
def test_every_way_to_aim_at_the_label_uses_the_label(
    clean: BatchExplainer, pixels: np.ndarray[Any, Any], target: str
) -> None:
    rows = rows_of(retargeted(clean, target=target)(decoded(pixels[:3], label=["ring", None, "star"])))
    assert [(r["status"], r["target_class"]) for r in rows] == [("ok", 4), ("failed", None), ("ok", 5)]


def test_a_layer_that_the_model_does_not_have() -> None:
    base = config()
    with pytest.raises(ModelError, match="layer"):
        resolve(replace(base, method=replace(base.method, layer="layer9")))


def test_the_explainer_survives_json_for_the_actor(clean: BatchExplainer) -> None:
    layout = clean.explainer.layout
    assert set(layout) == {"layout", "prefix", "grid"}
    assert isinstance(clean.layer, cam.TargetLayer)


# ── which images get a picture ───────────────────────────────────────────────────────────────────


def chosen(policy: str, images: Rows, **options: Any) -> list[int]:
    columns = {k: [r.get(k) for r in images] for k in images[0]}
    indices = sorted({r["index"] for r in images})
    source = struct_array(
        {"index": indices, "pixels": [b"p%d" % i for i in indices], "content": [b"c%d" % i for i in indices]},
        DECODED,
    )
    explained = struct_array(columns, EXPLAINED)
    out = choose_overlays(explained, source, "s", OverlayConfig(policy, **options)).to_pylist()  # type: ignore[arg-type]
    kept, dropped = ("content", "pixels") if options.get("on") == "original" else ("pixels", "content")
    for row in out:
        assert row[kept] == (b"%c%d" % (ord(kept[0]), row["index"]) if row["overlay"] else None)
        assert row[dropped] is None
    return [r["index"] for r in out if r["overlay"]]


def image(index: int, **changes: Any) -> dict[str, Any]:
    base = {"index": index, "status": "ok", "correct": True, "heat_status": "ok", "margin": 0.9}
    return base | changes


def test_policies() -> None:
    images = [
        image(0), image(1, correct=False), image(2, margin=0.05), image(3, heat_status="dead"),
        image(4, heat_status="nonfinite", correct=False),
        image(5, status="failed", heat_status=None, margin=None),
        image(6, correct=None),
    ]  # fmt: skip
    assert chosen("none", images) == []
    assert chosen("all", images) == [0, 1, 2, 3, 6]
    assert chosen("flagged", images, sample_per_chunk=0) == [1, 2, 3]
    assert len(chosen("sample", images, sample_per_chunk=2)) == 2
    assert chosen("sample", images, sample_per_chunk=0) == []
    assert chosen("sample", images, sample_per_chunk=99) == [0, 1, 2, 3, 6]
    assert chosen("all", images, on="original") == [0, 1, 2, 3, 6]


def test_beside_the_flagged_those_are_drawn_that_come_next_in_the_queue() -> None:
    """An archive without labels has little to flag: the least sure of each chunk have a picture too."""
    images = [image(i, correct=None, margin=0.9 - i / 10) for i in range(6)] + [image(6, correct=False)]
    assert chosen("flagged", images, sample_per_chunk=2) == [4, 5, 6]
    assert chosen("flagged", images[::-1], sample_per_chunk=2) == [6, 5, 4]


def test_nothing_to_draw_is_no_error() -> None:
    assert chosen("none", [image(0)]) == chosen("all", [image(0, status="failed", heat_status=None)]) == []


def test_every_class_of_a_sampled_image_is_drawn() -> None:
    images = [image(i // 3) for i in range(30)]
    picked = chosen("sample", images, sample_per_chunk=2)
    assert len(picked) == 6
    assert len(set(picked)) == 2


def test_the_sample_depends_on_the_images_not_on_their_order() -> None:
    images = [image(i) for i in range(40)]
    picked = chosen("sample", images, sample_per_chunk=8)
    assert sorted(chosen("sample", images[::-1], sample_per_chunk=8)) == picked
    assert set(chosen("sample", images, sample_per_chunk=4)) < set(picked)
    assert picked != list(range(8))


def test_flags() -> None:
    assert not is_flagged(image(0))
    assert is_flagged(image(0, correct=False))
    assert is_flagged(image(0, margin=0.0))
    assert is_flagged(image(0, heat_status="dead"))


@pytest.mark.parametrize(("kind", "shared"), [("timm", True), ("torchvision", True), ("own", False)])
def test_only_what_no_model_writes_is_shared(kind: str, shared: bool) -> None:
    """The state may lie in read-only memory: buffers, and weights of own code, are copies."""
    module = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    state = module.state_dict()
    used = own_copies(module, state, kind)
    assert used.keys() == state.keys()
    assert all(torch.equal(used[name], state[name]) for name in state)
    same = {name for name in state if used[name].data_ptr() == state[name].data_ptr()}
    weights = {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert same == (weights if shared else set())
