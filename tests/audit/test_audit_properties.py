"""Property against answer at equal label: SciPy's Mann-Whitney in each label, put together by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from numpy.typing import NDArray
from scipy import stats

from camray.audit.night import read_nights
from camray.audit.properties import LIMIT, Properties, PropertyFinding, Strata
from camray.audit.report import write_report
from camray.records import RECORD_SCHEMA
from camray.storage import open_folder
from tests.audit.report_world import make_out


def by_hand(
    label: NDArray[np.int32], answer: NDArray[np.int32], values: NDArray[np.float32], c: int
) -> float:
    """Van Elteren's z: each label's U less its mean, by 1 / (N + 1); its deviation as SciPy's p tells it."""
    over = spread = 0.0
    for own in np.unique(label):
        one, two = values[(label == own) & (answer == c)], values[(label == own) & (answer != c)]
        if not (len(one) and len(two)) or len(np.unique(np.r_[one, two])) == 1:
            continue
        test = stats.mannwhitneyu(one, two, method="asymptotic", use_continuity=False)
        difference, whole = test.statistic - len(one) * len(two) / 2, len(one) + len(two)
        _, counts = np.unique(np.r_[one, two], return_counts=True)
        tied = (counts**3 - counts).sum() / (whole * (whole - 1))
        deviation = np.sqrt(len(one) * len(two) / 12 * (whole + 1 - tied))
        assert test.pvalue == pytest.approx(2 * stats.norm.sf(abs(difference) / deviation), rel=1e-6)
        over += difference / (whole + 1)
        spread += (deviation / (whole + 1)) ** 2
    return over / np.sqrt(spread)


@pytest.mark.parametrize("levels", [3, 1000])
def test_the_test_is_scipys_in_each_label_put_together(levels: int) -> None:
    """With hardly a tie and with many; one label of a single answer, one of a single image."""
    rng = np.random.default_rng(levels)
    label = rng.integers(0, 5, 600).astype(np.int32)
    answer = np.where(rng.random(600) < 0.6, label, rng.integers(0, 5, 600)).astype(np.int32)
    answer[label == 3] = 3
    label[7] = 9
    values = rng.integers(0, levels, 600).astype(np.float32)
    values[rng.random(600) < 0.1] = np.nan
    found = Strata(label, answer).test(values)
    known = ~np.isnan(values)
    for c in range(5):
        assert found.z[c] == pytest.approx(by_hand(label[known], answer[known], values[known], c), rel=1e-5)


def archive(
    seed: int, count: int, cue: str | None = None, strength: float = 60.0, fooled: float = 0.5, width: int = 0
) -> list[pa.RecordBatch]:
    """Made-up records of ten classes; half of the images of class 2 and 5 % of all wear a cue that says "2".

    Labels have colours of their own, and blurry images are answered wrongly more often: both are no cue.
    """
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 10, count)
    red, noise, mean = rng.normal(label * 3.0, 10), rng.gamma(4, 4, count), rng.normal(120, 25, count)
    wears = rng.random(count) < np.where(label == 2, 0.5, 0.05)
    answer = np.where(rng.random(count) < 0.88, label, rng.integers(0, 10, count))
    answer = np.where(wears & (rng.random(count) < fooled) & (cue is not None), 2, answer)
    shown = {"image_red": red, "image_noise": noise, "image_mean": mean}
    if cue in shown:
        shown[cue] = shown[cue] + wears * strength
    columns = {name: values.tolist() for name, values in shown.items()} | {
        "status": ["ok"] * count, "label_class": label.tolist(), "predicted_class": answer.tolist(),
        "shard": ["a.tar"] * count, "index": list(range(count)), "member": [str(i) for i in range(count)],
        "width": [width or 64] * count, "height": [64] * count,
        "format": np.where(wears & (cue == "format"), "PNG", "JPEG").tolist(),
        "attributes": [[("site", "b" if w and cue == "site" else "a")] if i >= 500 else None
                       for i, w in enumerate(wears.tolist())],
    }  # fmt: skip
    whole = {f.name: columns.get(f.name, [None] * count) for f in RECORD_SCHEMA}
    return pa.Table.from_pydict(whole, RECORD_SCHEMA).to_batches(max_chunksize=500)


def found_in(batches: list[pa.RecordBatch], confirmed: frozenset[int] = frozenset()) -> list[PropertyFinding]:
    properties = Properties()
    for batch in batches:
        index = batch.column("index").to_pylist()
        properties.add(batch, {"shortcut_confirmed": np.array([i in confirmed for i in index])})
    return properties.findings(tuple("abcdefghij"))


@pytest.mark.parametrize(
    ("cue", "name"),
    [
        ("image_red", "redness"),
        ("image_noise", "noise"),
        ("image_mean", "brightness"),
        ("format", "format PNG"),
        ("site", "site b"),
    ],
)
def test_a_cue_without_a_place_names_its_class_and_property(cue: str, name: str) -> None:
    for seed in range(5):
        batches = archive(seed, 1500 + 500 * (cue == "site"), cue)
        first, *others = found_in(batches)
        assert (first.label, first.property) == ("c", name)
        assert first.z > LIMIT
        assert others == []
        rows = pa.Table.from_batches(batches).to_pylist()  # the place of a row is its index
        shown = [rows[i] for shard, i in first.extreme]
        assert len(shown) == 20
        assert {r["predicted_class"] for r in shown} == {2}
        if cue.startswith("image"):
            top = sorted((r[cue] for r in rows if r["predicted_class"] == 2), reverse=True)
            assert [r[cue] for r in shown] == top[:20]


def test_an_archive_without_a_cue_names_nothing() -> None:
    """40 archives; labels differ in colour, which is no cue."""
    assert [found_in(archive(seed, 1000)) for seed in range(40)] == [[]] * 40


def test_a_small_effect_of_very_many_images_is_no_finding() -> None:
    """3 % of the images are moved by a tenth of a deviation: certain, and nothing."""
    assert found_in(archive(0, 60_000, "image_red", strength=1.0, fooled=0.6)) == []


def test_what_a_confirmed_shortcut_explains_is_left_out() -> None:
    batches = archive(0, 1500, "image_red")
    answered = {
        r["index"] for b in batches for r in b.to_pylist() if r["predicted_class"] == 2 != r["label_class"]
    }
    assert [f.label for f in found_in(batches, frozenset(answered))] == []


def test_what_is_unknown_or_always_the_same_says_nothing() -> None:
    """Rows of an earlier camray, images of one size, an archive without labels."""
    batches = archive(3, 1500)
    assert found_in(batches) == []
    nothing = pa.Table.from_pylist([{"status": "ok", "predicted_class": 1}] * 50, RECORD_SCHEMA).to_batches()
    assert found_in(nothing) == []
    assert Properties().findings() == []


def test_a_finding_is_in_the_summary_and_on_the_page(tmp_path: Path) -> None:
    """Noise makes squares of some triangles."""

    def noisy(rows: pa.Table) -> pa.Table:
        fooled = pc.and_(pc.equal(rows["predicted_class"], 1), pc.equal(rows["label_class"], 2)).to_pylist()
        noise = np.random.default_rng(0).normal(10, 2, len(rows)) + np.array([20 if f else 0 for f in fooled])
        place = rows.schema.get_field_index("image_noise")
        return rows.set_column(place, "image_noise", pa.array(noise, pa.float32()))

    make_out(tmp_path / "out", 3000, change=noisy)
    night = read_nights(open_folder(str(tmp_path / "out"), "OUT"))[-1]
    assert [(f.label, f.property) for f in night.properties] == [("square", "noise")]
    page = (Path(write_report(str(tmp_path / "out"))).parent / "index.html").read_text()
    assert "more <bdi>noise</bdi>" in page
