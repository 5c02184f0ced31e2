"""`camray diff OUT`: may the new model ship? Two explainers of one OUT, image by image.

records of A, records of B ──pairs──> the images that both have ──differ──> Difference ──> lines, a page
Images are the same where shard, place in it and content are. Of several records of an image the first counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image
from pyarrow.dataset import Dataset
from scipy import stats

from camray.audit.gate import rate_above
from camray.errors import ExitCode, UsageError, html_list, printable
from camray.ledger.out import open_out, read_explainer
from camray.ledger.table import Table
from camray.measure.statistics import holm, wilcoxon
from camray.records import Status
from camray.serve.opened import Records
from camray.upkeep.status import totals

ALPHA = 0.01  # of a wrong "better" or "worse" among all that are told, after Holm's correction
FEWEST = 20  # labelled images of a class for a verdict of its own
MOVED = 0.5  # below this cosine of two maps of one class the model looks elsewhere
HEATS = 5_000  # images whose maps are compared at most, chosen by their content
SHOWN = 50  # pairs of pictures
_KEY = ("shard", "index", "content_sha256")
_SAID = ("member", "label", "correct", "predicted_class", "predicted_label", "confidence", "heat_in_box")
_HEAT = ("heatmap", "heat_h", "heat_w")
_RATES = ("flip_rate", "broken_rate", "moved_rate")

Pair = dict[str, Any]  # a row of both: member, label, and each other column with `_a` and `_b`


@dataclass(frozen=True, slots=True)
class Change:
    """Right answers gained and lost by the images of one class, or of all."""

    label: str  # "": all classes
    images: int
    right_a: float  # share
    right_b: float
    broken: int  # right before, wrong now
    fixed: int
    low: float  # 95 % interval of right_b - right_a, by the exact one of broken among broken and fixed
    high: float
    p: float  # McNemar's exact test; Holm's correction over all and the classes
    verdict: str  # "better", "worse", or "" where chance explains it


@dataclass(frozen=True, slots=True)
class Difference:
    """What B says otherwise than A."""

    a: str
    b: str
    images: int  # that both have an answer for
    only_a: int
    only_b: int
    flips: list[tuple[str, str, int]]  # answer of A, answer of B, images; most first
    confidence: tuple[float, float, float]  # mean of B - A where both answer the same, 95 % interval
    changes: list[Change]  # all first; empty without labels
    heat: tuple[int, float, int]  # maps compared, median cosine, maps below `MOVED`
    on_object: tuple[int, float, float, float, float]  # images with boxes; mean of B - A of the share of heat
    # in them, 95 % interval, p of Wilcoxon's test
    rates: dict[str, float]

    def _repr_html_(self) -> str:
        return html_list(lines(self))

    @property
    def is_worse(self) -> bool:
        """Whether B is worse than A, over all or in a class, by more than chance."""
        return any(change.verdict == "worse" for change in self.changes)


def print_diff(place: str, explainers: Sequence[str], to: str, gate: str, as_json: bool) -> ExitCode:
    """Compare two explainers of OUT, write the page to `to`, and say what differs.

    Raises:
        UsageError: OUT has no two explainers, none of these names, or none with images in common.
    """
    fires = parse_gate(gate)
    out, table = open_out(place)
    a, b = _two(table, explainers)
    found, pairs, cosines = compared(Records(place, a), Records(place, b))
    if to:
        from camray.serve.diff_page import write_page

        what = [read_explainer(out, e) for e in (a, b)]
        write_page(to, out, table, found, worst(pairs, cosines), what)
    if as_json:
        print(json.dumps(asdict(found) | {"worse": found.is_worse, "fired": fires(found)}))
    else:
        print("\n".join(lines(found)) + (f"\npage: {to}" if to else ""))
        for text in fires(found):
            print(f"fired: {text}")
    return ExitCode.GATE if fires(found) else ExitCode.DONE


def _two(table: Table, named: Sequence[str]) -> tuple[str, str]:
    known = sorted(totals(table))
    if named and (len(named) != 2 or named[0] == named[1] or not set(named) <= set(known)):
        fix = f"two of those of OUT: {', '.join(known)}"
        raise UsageError("--explainers", printable(",".join(named)), fix)
    if not named and len(known) != 2:
        raise UsageError(
            "OUT", f"it has {len(known)} explainers", "--explainers OLD,NEW" if known else "run it"
        )
    newest = table.latest_owner()
    first, second = named or sorted(known, key=lambda owner: owner == newest)
    return first, second


def compared(old: Records, new: Records) -> tuple[Difference, list[Pair], dict[int, float]]:
    """Compare the records of two explainers: what differs, the pairs, the cosines of their maps.

    Raises:
        UsageError: they have no image in common.
    """
    pairs, only_old, only_new = paired(old, new)
    if not pairs:
        told = f"{old.explainer} and {new.explainer} have no image in common"
        raise UsageError("--explainers", told, "two of the same archive")
    cosines = heat_cosines(old, new, pairs)
    return differ(old.explainer, new.explainer, pairs, cosines, only_old, only_new), pairs, cosines


def paired(old: Dataset, new: Dataset) -> tuple[list[Pair], int, int]:
    """Give the images that both have an answer for, and how many only one has."""
    sides = []
    for records in (old, new):
        rows = records.to_table(
            columns=[*_KEY, *_SAID, "detection"], filter=pc.field("status") == Status.OK.value
        )
        first = rows.filter(pc.less_equal(pc.fill_null(rows["detection"], 0), 0)).drop_columns("detection")
        sides.append(first.group_by([*_KEY], use_threads=False).aggregate([(n, "first") for n in _SAID]))
    common = sides[0].join(sides[1], [*_KEY], join_type="inner", left_suffix="_a", right_suffix="_b")
    names = {f"{n}_first_{s}": f"{n}_{s}" for n in _SAID for s in "ab"}
    pairs = common.rename_columns([names.get(n, n) for n in common.column_names]).sort_by(
        [(n, "ascending") for n in _KEY]
    )
    return pairs.to_pylist(), sides[0].num_rows - len(pairs), sides[1].num_rows - len(pairs)


def heat_cosines(old: Dataset, new: Dataset, pairs: Sequence[Pair]) -> dict[int, float]:
    """Compare the maps of pairs of one answer, by their number among `pairs`; at most `HEATS`."""
    same = [i for i, p in enumerate(pairs) if p["predicted_class_a"] == p["predicted_class_b"]]
    chosen = sorted(same, key=lambda i: (pairs[i]["content_sha256"], i))[:HEATS]
    wanted = pa.array(sorted({pairs[i]["content_sha256"] for i in chosen}), pa.string())
    heats: list[dict[Any, NDArray[np.float64]]] = []
    for records in (old, new):
        rows = records.to_table(columns=[*_KEY, *_HEAT], filter=pc.field("content_sha256").isin(wanted))
        heats.append(
            {
                tuple(row[n] for n in _KEY): np.reshape(row["heatmap"], (row["heat_h"], row["heat_w"]))
                for row in reversed(rows.to_pylist())
                if row["heatmap"]
            }
        )
    found = {}
    for i in chosen:
        key = tuple(pairs[i][n] for n in _KEY)
        if key in heats[0] and key in heats[1]:
            found[i] = cosine(heats[0][key], heats[1][key])
    return found


def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Cosine of the positive parts of two maps (h, w), on the coarser grid; nan where one has none."""
    grid = (min(a.shape[1], b.shape[1]), min(a.shape[0], b.shape[0]))
    one, other = (
        np.asarray(
            Image.fromarray(np.maximum(m, 0).astype(np.float32)).resize(grid, Image.Resampling.BOX),
            np.float64,
        ).ravel()
        for m in (a, b)
    )
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other / length) if length else math.nan


def differ(
    a: str, b: str, pairs: Sequence[Pair], cosines: Mapping[int, float], only_a: int = 0, only_b: int = 0
) -> Difference:
    """Count what differs, and tell what chance does not explain."""
    flips: dict[tuple[str, str], int] = {}
    for p in pairs:
        if p["predicted_class_a"] != p["predicted_class_b"]:
            told = (answer(p, "a"), answer(p, "b"))
            flips[told] = flips.get(told, 0) + 1
    same = (p for p in pairs if p["predicted_class_a"] == p["predicted_class_b"])
    sure = ((p["confidence_a"], p["confidence_b"]) for p in same)
    kept = [b_ - a_ for a_, b_ in sure if a_ is not None and b_ is not None]
    known = np.array([c for c in cosines.values() if not math.isnan(c)])
    labelled = [p for p in pairs if p["correct_a"] is not None and p["correct_b"] is not None]
    moved = int((known < MOVED).sum())
    broken = sum(p["correct_a"] and not p["correct_b"] for p in labelled)
    return Difference(
        a, b, len(pairs), only_a, only_b,
        [(*told, n) for told, n in sorted(flips.items(), key=lambda item: (-item[1], item[0]))],
        _mean(kept), _changes(labelled),
        (len(known), float(np.median(known)) if len(known) else math.nan, moved), _on_object(pairs),
        {
            "flip_rate": sum(flips.values()) / len(pairs),
            "broken_rate": broken / max(1, len(labelled)),
            "moved_rate": moved / max(1, len(known)),
        },
    )  # fmt: skip


def answer(pair: Pair, side: str) -> str:
    """Name the class that a side answered."""
    label = pair[f"predicted_label_{side}"]
    return str(label) if label is not None else f"class {pair[f'predicted_class_{side}']}"


def _on_object(pairs: Sequence[Pair]) -> tuple[int, float, float, float, float]:
    """Compare the shares of heat in the boxes of the archive, image by image."""
    shares = np.array([(p["heat_in_box_a"], p["heat_in_box_b"]) for p in pairs], float).reshape(-1, 2)
    before, after = shares[~np.isnan(shares).any(1)].T
    return len(before), *_mean(list(after - before)), wilcoxon(after, before)


def _mean(values: Sequence[float]) -> tuple[float, float, float]:
    if not values:
        return (math.nan,) * 3
    mean, half = float(np.mean(values)), 1.96 * float(np.std(values)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def _changes(labelled: Sequence[Pair]) -> list[Change]:
    """Test all labelled images, and each class that has enough of them."""
    by_label: dict[str, list[Pair]] = {"": list(labelled)} if labelled else {}
    for p in labelled:
        by_label.setdefault(str(p["label_a"]), []).append(p)
    groups = {label: own for label, own in by_label.items() if not label or len(own) >= FEWEST}
    counts = {
        label: (sum(p["correct_a"] and not p["correct_b"] for p in own),
                sum(p["correct_b"] and not p["correct_a"] for p in own))
        for label, own in groups.items()
    }  # fmt: skip
    tests = [stats.binomtest(n, n + m, 0.5) if n + m else None for n, m in counts.values()]
    p_values = [float(test.pvalue) if test else 1.0 for test in tests]
    found = []
    for (label, own), test, corrected in zip(groups.items(), tests, holm(p_values), strict=True):
        broken, fixed = counts[label]
        a, b = (float(np.mean([row[f"correct_{s}"] for row in own])) for s in "ab")
        share = (broken + fixed) / len(own)
        low, high = test.proportion_ci() if test else (0.5, 0.5)
        verdict = "" if corrected >= ALPHA else "worse" if broken > fixed else "better"
        found.append(Change(label, len(own), a, b, broken, fixed,
                            share * (1 - 2 * high), share * (1 - 2 * low), corrected, verdict))  # fmt: skip
    return [*found[:1], *sorted(found[1:], key=lambda c: (c.verdict != "worse", c.p, c.label))]


def worst(pairs: Sequence[Pair], cosines: Mapping[int, float]) -> list[Pair]:
    """Choose what a person should see: newly wrong and sure first, then other flips, then moved heat."""

    def order(i: int) -> tuple[int, float]:
        p = pairs[i]
        sure = -(p["confidence_b"] or 0.0)
        if p["correct_a"] and p["correct_b"] is False:
            return 0, sure
        return (1, sure) if p["predicted_class_a"] != p["predicted_class_b"] else (2, cosines[i])

    shown = [i for i, p in enumerate(pairs)
             if p["predicted_class_a"] != p["predicted_class_b"] or cosines.get(i, 1.0) < MOVED]  # fmt: skip
    return [pairs[i] | {"cosine": cosines.get(i)} for i in sorted(shown, key=order)[:SHOWN]]


def parse_gate(text: str) -> Callable[[Difference], list[str]]:
    """Read `worse,flip_rate>5%` into what gives the conditions that a difference meets.

    Raises:
        UsageError: a condition that names neither.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    limits = {part: rate_above(part, _RATES, "worse") for part in parts if part != "worse"}

    def fires(found: Difference, part: str) -> bool:
        name, limit = limits.get(part, ("", 0.0))
        return found.rates[name] > limit if name else found.is_worse

    return lambda found: [part for part in parts if fires(found, part)]


def lines(found: Difference) -> list[str]:
    """Say it in a terminal."""
    said = [f"{found.images:,} images have an answer of both; {found.only_a:,} only of {found.a}, "
            f"{found.only_b:,} only of {found.b}"]  # fmt: skip
    if not found.changes:
        said.append("no labels: what is better or worse is not known")
    for change in found.changes:
        if change.label and not change.verdict:
            continue
        name = printable(change.label) or "all classes"
        said.append(
            f"{name}: {change.right_a:.2%} right, now {change.right_b:.2%} "
            f"({change.low:+.2%} to {change.high:+.2%}); {change.broken:,} broken, {change.fixed:,} fixed: "
            f"{change.verdict.upper() or 'no more than chance'}"
        )
    said.append(f"{found.rates['flip_rate']:.2%} of the answers differ")
    said += [f"  {printable(a)} -> {printable(b)}: {n:,}" for a, b, n in found.flips[:10]]
    if not math.isnan(found.confidence[0]):
        mean, low, high = found.confidence
        said.append(f"where the answer is the same: confidence {mean:+.4f} ({low:+.4f} to {high:+.4f})")
    if found.heat[0]:
        said.append(f"heat of {found.heat[0]:,} of them: median cosine {found.heat[1]:.2f}; "
                    f"{found.rates['moved_rate']:.2%} look elsewhere (below {MOVED})")  # fmt: skip
    if found.on_object[0]:
        images, mean, low, high, p = found.on_object
        said.append(
            f"heat in the boxes of {images:,} images: {mean:+.1%} ({low:+.1%} to {high:+.1%}), p {p:.2g}"
        )
    return said
