import cv2
import numpy as np
import pytest
import torch

from camray.measure.localisation import (
    CUTS,
    box_hits,
    box_iou,
    box_regions,
    boxes_of,
    max_box_acc_v2,
    overlap,
    pxap,
)
from tests.measure.measure_toys import region_metrics, tie_free


def test_boxes_mark_pixels_by_their_centres() -> None:
    regions = box_regions(
        [
            torch.tensor([[1.0, 2.0, 3.0, 4.0]]),
            torch.zeros(0, 4),
            torch.tensor([[0.4, 0, 1.6, 1], [5, 5, 9, 9]]),
        ],
        (6, 7),
    )
    assert regions[0].nonzero().tolist() == [[2, 1], [2, 2], [3, 1], [3, 2]]
    assert not regions[1].any()
    assert regions[2].nonzero().tolist() == [[0, 0], [0, 1], [5, 5], [5, 6]]


def test_region_metrics_in_plain_loops() -> None:
    heat = tie_free(3, 2, 9, 11)
    regions = torch.rand(3, 9, 11, generator=torch.Generator().manual_seed(2)) < 0.3
    found = region_metrics(heat, regions, tolerance=2.0)
    for b in range(3):
        for m in range(2):
            h, M = heat[b, m].double().numpy(), regions[b].numpy()
            share = h[M].sum() / h.sum()
            assert float(found["energy_pointing"][b, m]) == pytest.approx(share, abs=1e-9)
            assert float(found["enrichment"][b, m]) == pytest.approx(share / M.mean(), abs=1e-9)
            top = np.argsort(-h.ravel())[: M.sum()]
            assert float(found["rank_accuracy"][b, m]) == pytest.approx(M.ravel()[top].mean(), abs=1e-9)
            y, x = np.unravel_index(h.argmax(), h.shape)
            near = [M[v, u] for v in range(9) for u in range(11) if (v - y) ** 2 + (u - x) ** 2 <= 4]
            assert float(found["pointing"][b, m]) == float(any(near))


def test_the_oracle_is_perfect_and_its_opposite_a_failure() -> None:
    regions = torch.zeros(1, 12, 12, dtype=torch.bool)
    regions[:, 2:6, 3:9] = True
    heat = torch.stack([regions.float(), 1 - regions.float(), torch.ones(1, 12, 12)], 1)
    found = region_metrics(heat, regions, tolerance=0.0)
    assert found["energy_pointing"][0].tolist() == pytest.approx([1, 0, 1 / 6])
    assert found["enrichment"][0].tolist() == pytest.approx([6, 0, 1])
    assert found["pointing"][0].tolist() == [1, 0, 0]  # of equal pixels the first counts: no lucky hit
    assert found["rank_accuracy"][0].tolist()[:2] == [1, 0]
    boxes = np.array([[3, 2, 9, 6]], dtype=float)
    assert box_iou(heat[0, 0].double().numpy(), boxes) == 1
    assert max_box_acc_v2(box_hits(heat[0, 0].double().numpy(), boxes)) == 1
    assert pxap(heat, regions)[0].tolist() == pytest.approx([1, 1 / 6, 1 / 6])


def test_an_empty_region_is_no_hit_and_no_miss() -> None:
    found = region_metrics(tie_free(1, 2, 8, 8), torch.zeros(1, 8, 8, dtype=torch.bool), 3.0)
    assert all(bool(v.isnan().all()) for v in found.values())


def test_tolerance_reaches_a_region_nearby() -> None:
    heat = torch.zeros(1, 1, 20, 20)
    heat[..., 10, 10] = 1
    regions = torch.zeros(1, 20, 20, dtype=torch.bool)
    regions[:, 10, 14] = True
    hits = [float(region_metrics(heat, regions, t)["pointing"]) for t in (0, 3.9, 4.0)]
    assert hits == [0, 0, 1]


def test_overlaps_by_hand() -> None:
    found = np.array([[0, 0, 2, 2], [5, 5, 6, 6]], dtype=float)
    true = np.array([[1, 1, 3, 3], [5, 5, 6, 6]], dtype=float)
    assert overlap(found, true).tolist() == pytest.approx(np.array([[1 / 7, 0], [0, 1]]))


def blobs(seed: int, side: int = 40) -> np.ndarray:
    noise = np.random.default_rng(seed).random((side, side))
    heat = cv2.GaussianBlur(noise, (0, 0), 3)
    return (heat - heat.min()) / (heat.max() - heat.min())


def test_boxes_equal_opencvs_outer_contours() -> None:
    """The published evaluation takes contours; holes, which it also takes, are no parts."""
    for seed in range(5):
        for cut in (60, 128, 200):
            mask = (blobs(seed) * 255).astype(np.uint8) > cut
            contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            theirs = {(x, y, x + w, y + h) for x, y, w, h in map(cv2.boundingRect, contours)}
            inside = {tuple(map(int, b)) for b in boxes_of(mask)}
            assert theirs <= inside  # we also see a part that lies in another's hole
            assert boxes_of(mask).shape[1] == 4


def test_max_box_acc_v2_in_plain_loops() -> None:
    """Dataset-level: best threshold for each overlap, any part against any true box."""
    rng = np.random.default_rng(0)
    heats = [blobs(seed) for seed in range(6)]
    trues = [
        np.array([[x, y, x + 14, y + 12] for x, y in rng.integers(0, 24, (n, 2))], float)
        for n in (1, 2, 1, 1, 3, 1)
    ]
    share = np.mean([box_hits(h, t) for h, t in zip(heats, trues, strict=True)], axis=0)
    expected = []
    for delta in (0.3, 0.5, 0.7):
        best = 0.0
        for cut in CUTS:
            hits = 0
            for heat, true in zip(heats, trues, strict=True):
                grey = (heat * 255).astype(np.uint8)
                found = boxes_of(grey > int(cut * grey.max()))
                hits += any(iou(tuple(a), tuple(b)) >= delta for a in found for b in true)
            best = max(best, hits / 6)
        expected.append(best)
    assert max_box_acc_v2(share) == pytest.approx(np.mean(expected))
    assert 0 < max_box_acc_v2(share) < 1


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    pixels = [
        {(x, y) for x in range(int(r[0]), int(r[2])) for y in range(int(r[1]), int(r[3]))} for r in (a, b)
    ]
    return len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1])


def test_a_blank_map_hits_nothing() -> None:
    blank, true = np.zeros((20, 20)), np.array([[0.0, 0, 20, 20]])
    assert box_iou(blank, true) == 0
    assert not box_hits(blank, true).any()


def test_pxap_as_the_published_evaluation_counts_it() -> None:
    """Histograms from the right edge, precision times the gain in recall."""
    heat = tie_free(4, 1, 25, 20).square()
    regions = torch.rand(4, 25, 20, generator=torch.Generator().manual_seed(1)) < 0.4
    edges = np.append(np.arange(0, 1, 0.001), [1.0, 2.0, 3.0])
    for found, h, mask in zip(pxap(heat, regions)[:, 0], heat[:, 0].double().numpy(), regions, strict=True):
        inside = np.histogram(h[mask.numpy()], edges)[0].astype(float)
        outside = np.histogram(h[~mask.numpy()], edges)[0].astype(float)
        tp, fp = inside[::-1].cumsum(), outside[::-1].cumsum()
        precision, recall = tp / np.maximum(tp + fp, 1), tp / inside.sum()
        theirs = (precision[1:] * np.diff(recall))[tp[1:] > 0].sum()
        assert float(found) == pytest.approx(theirs, abs=1e-6)


def test_pxap_of_an_empty_region_is_undefined() -> None:
    assert bool(pxap(tie_free(1, 1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.bool)).isnan().all())
