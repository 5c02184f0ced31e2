"""Label suspects against confident learning and self-confidence as their paper has them (Northcutt 2021)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

from camray.audit.archive_view import ArchiveView
from camray.audit.columns import NUMBERS, WORDS, as_arrays
from camray.audit.verdicts import audit_scores, decide, find_flags
from camray.config import AuditConfig
from camray.records import RECORD_SCHEMA

Scores = NDArray[np.float64]
Labels = NDArray[np.int64]


def records(scores: Scores, labels: Labels, top_k: int = 5, is_old: bool = False) -> pa.RecordBatch:
    """Rows as the explainer writes them; `is_old`: as before the score of the label was kept."""
    rows = []
    for p, label in zip(scores, labels.tolist(), strict=True):
        best = np.argsort(-p)
        row = {
            "status": "ok", "heat_status": "ok", "predicted_class": int(best[0]), "label_class": label,
            "correct": bool(best[0] == label), "confidence": p[best[0]], "margin": p[best[0]] - p[best[1]],
            "topk": [{"class_id": int(c), "score": p[c]} for c in best[:top_k]],
        }  # fmt: skip
        rows.append(row if is_old else row | {"label_score": p[label]})
    return pa.Table.from_pylist(rows, RECORD_SCHEMA).combine_chunks().to_batches()[0]


def judged(batch: pa.RecordBatch, classes: int) -> tuple[NDArray[np.bool_], Scores]:
    """Give suspects and audit scores of an archive that comes in three batches."""
    view = ArchiveView(classes)
    for start in range(0, len(batch), 300):
        view.add(batch.slice(start, 300))
    no, unknown = np.zeros(len(batch), bool), np.full(len(batch), np.nan)
    no_cause = {"has_cause": no, "place_drop": unknown}
    rows, whole = as_arrays(batch), view.of(batch) | no_cause
    flags = find_flags(rows, whole, AuditConfig())
    return flags["label_suspect"], audit_scores(decide(flags), rows, flags, unknown)


def by_the_paper(scores: Scores, labels: Labels) -> NDArray[np.bool_]:
    """As many as lie off the diagonal of the confident joint, those of the least self-confidence."""
    classes = scores.shape[1]
    threshold = np.array([scores[labels == c, c].mean() for c in range(classes)])
    count = 0
    for p, label in zip(scores, labels, strict=True):
        sure = [c for c in range(classes) if p[c] >= threshold[c]]
        if sure and max(sure, key=lambda c: p[c]) != label and p.argmax() != label:
            count += 1
    order = np.argsort(scores[np.arange(len(labels)), labels])
    return np.isin(np.arange(len(labels)), order[:count])


def average_precision(positive: NDArray[np.bool_], scores: Scores) -> float:
    """Sum of (R_n - R_n-1) P_n over the thresholds, equal scores being one, as scikit-learn defines it."""
    found, recall = 0.0, 0.0
    for threshold in np.unique(scores)[::-1]:
        chosen = scores >= threshold
        reached = positive[chosen].sum() / positive.sum()
        found, recall = found + (reached - recall) * positive[chosen].mean(), reached
    return float(found)


def made_up(seed: int, count: int = 800, classes: int = 10) -> tuple[Scores, Labels, Labels]:
    """Scores of a model that is right on some nine of ten, the truth, and labels of which 5 % are wrong."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes))
    logits[np.arange(count), truth] += rng.normal(4.5, 1.5, count)
    labels = np.where(rng.random(count) < 0.05, (truth + rng.integers(1, classes, count)) % classes, truth)
    e = np.exp(logits)
    return (e / e.sum(1, keepdims=True)).astype(np.float32).astype(np.float64), truth, labels


@pytest.mark.parametrize("seed", range(3))
def test_suspects_are_those_of_the_paper_and_ranked_by_self_confidence(seed: int) -> None:
    scores, truth, labels = made_up(seed)
    suspects, queue = judged(records(scores, labels), 10)
    expected = by_the_paper(scores, labels)
    assert expected.sum() > 20
    assert (suspects == expected).all()
    own = scores[np.arange(len(labels)), labels]
    assert (np.argsort(-queue[suspects]) == np.argsort(own[suspects])).all()
    # Of the whole queue: not below self-confidence alone, on the same scores.
    flipped = labels != truth
    best = average_precision(flipped, 1 - own)
    assert average_precision(flipped, queue) >= best - 0.01
    assert best > 0.9


def test_of_records_without_the_score_of_the_label_nearly_the_same_are_suspected() -> None:
    """An earlier table: the score is among the best five, or at most the smallest of them."""
    scores, truth, labels = made_up(7)
    suspects, queue = judged(records(scores, labels, is_old=True), 10)
    expected = by_the_paper(scores, labels)
    assert (suspects & expected).sum() >= 0.85 * max(expected.sum(), suspects.sum())
    assert average_precision(labels != truth, queue) > 0.85


def test_what_is_missing_is_no_suspect() -> None:
    assert "label_score" in NUMBERS
    assert "label_score" not in WORDS
    rows = [{"status": "failed"}, {"status": "ok", "predicted_class": 1, "confidence": 1.0}]
    batch = pa.Table.from_pylist(rows, RECORD_SCHEMA).combine_chunks().to_batches()[0]
    view = ArchiveView(2)
    view.add(batch)
    assert view.of(batch)["label_suspect"].tolist() == [False, False]


@pytest.mark.slow
def test_wrong_labels_of_photographs_are_found_as_the_paper_finds_them(shared: Path) -> None:
    """5 % of CIFAR-10 labels swapped under a trained ResNet-20: precision, recall, average precision."""
    scores, truth = photographs(shared)
    rng = np.random.default_rng(0)
    swapped = rng.random(len(truth)) < 0.05
    labels = np.where(swapped, (truth + rng.integers(1, 10, len(truth))) % 10, truth)
    suspects, queue = judged(records(scores, labels), 10)
    assert (suspects == by_the_paper(scores, labels)).all()
    own = scores[np.arange(len(labels)), labels]
    assert (suspects & swapped).sum() / swapped.sum() >= 0.9
    assert average_precision(swapped, queue) >= average_precision(swapped, 1 - own) - 0.01


@pytest.mark.slow
def test_suspects_and_their_order_are_no_worse_than_cleanlabs_on_the_same_scores(shared: Path) -> None:
    """Five draws: the same suspects as its low_self_confidence; no other filter has more of both
    precision and recall, and none of its rankings more average precision.
    """
    filters = pytest.importorskip("cleanlab.filter", reason="cleanlab is not installed")
    ranks = pytest.importorskip("cleanlab.rank")
    scores, truth = photographs(shared)
    names = "low_self_confidence", "both", "confident_learning", "prune_by_noise_rate", "prune_by_class"
    found: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in ("camray", *names)}
    flips = []
    for seed in range(5):
        rng = np.random.default_rng([seed, 5])
        swapped = rng.random(len(truth)) < 0.05
        labels = np.where(swapped, (truth + rng.integers(1, 10, len(truth))) % 10, truth)
        suspects, queue = judged(records(scores, labels), 10)
        flips.append(swapped)
        found["camray"].append(suspects)
        for name in names:
            found[name].append(filters.find_label_issues(labels, scores, filter_by=name, n_jobs=1))
        for name in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
            quality = ranks.get_label_quality_scores(labels, scores, method=name)
            assert average_precision(swapped, queue) >= average_precision(swapped, -quality) - 0.001
    every = np.concatenate(flips)
    flags = {name: np.concatenate(parts) for name, parts in found.items()}
    assert (flags["camray"] == flags["low_self_confidence"]).all()
    precision = {name: every[flag].mean() for name, flag in flags.items()}
    recall = {name: flag[every].mean() for name, flag in flags.items()}
    assert not any(precision[n] > precision["camray"] and recall[n] >= recall["camray"] for n in names), (
        precision,
        recall,
    )


def photographs(shared: Path) -> tuple[Scores, Labels]:
    """Softmax scores of the test images by a plain forward, and their true classes."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    weights = shared / "weights"
    spec = importlib.util.spec_from_file_location("cifar_resnet", weights / "cifar_resnet.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.resnet20()
    model.load_state_dict(load_file(weights / "cifar10_resnet20.safetensors"))
    names = sorted(p.name for p in (shared / "cifar10_test").iterdir() if p.is_dir())
    files = [
        (p, c) for c, name in enumerate(names) for p in sorted((shared / "cifar10_test" / name).iterdir())
    ]
    x = np.stack([np.asarray(Image.open(p).convert("RGB")) for p, _ in files]) / 255
    x = (x - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        logits = model.eval()(torch.tensor(x, dtype=torch.float32).permute(0, 3, 1, 2)).double()
    return logits.softmax(1).numpy(), np.array([c for _, c in files])
