"""The recommendation: which method to use on this model, in sentences that the table bears out.

Flows in: the tree of a comparison (see `summary`). Flows out: the method, or none, with the reasons. Rules,
in this order: a method must beat every control on ROAD and insertion; it must see the class; of those left
the best mean rank wins, unless a cheaper one is not told apart from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Tree = Mapping[str, Any]
MUST_BEAT = ("road", "insertion")
FEW = 30  # images below which nothing can be told
BLIND = 0.9  # mean rank correlation with another class's map, above which a method does not see the class


def advise(tree: Tree) -> dict[str, Any]:
    """Give {method, sentences, rejected: {method: reason}}; `method` is None where none will do."""
    lines = {(line["method"], line["metric"]): line for line in tree["lines"]}
    one_of = {m: g[0] for g in tree["groups"] for m in g[1:]}
    candidates = [m for m in tree["methods"] if m not in tree["controls"] and m not in one_of]
    rejected = {m: why for m in candidates if (why := _why_not(m, lines))}
    left = sorted(set(candidates) - set(rejected), key=lambda m: (tree["overall"].get(m) or math.inf, m))
    if not left:
        why = _TOO_FEW.format(tree["images"]) if tree["images"] < FEW else _NONE.format(len(candidates))
        return {"method": None, "rejected": rejected, "sentences": [why]}
    best = _cheapest_of_equals(left, tree)
    return {"method": best, "rejected": rejected, "sentences": _sentences(best, left, rejected, lines, tree)}


_TOO_FEW = "{} images are too few to tell methods from controls: give a larger --sample."
_NONE = (
    "None of the {} methods can be recommended on this sample: each fails a control, or does not see the "
    "class. Do not draw conclusions from single maps of this model; look at other layers, or at more images."
)


def _why_not(method: str, lines: Mapping[tuple[str, str], Tree]) -> str:
    failed = [m for m in MUST_BEAT if (method, m) in lines and lines[method, m]["above_controls"] is False]
    if failed:
        return f"does not beat every control on {' and '.join(failed)}"
    seen = lines.get((method, "class_sensitivity"))
    if seen is not None and seen["mean"] is not None and seen["mean"] > BLIND:
        return f"does not see the class: its maps of two classes correlate by {seen['mean']:.2f}"
    return ""


def _cheapest_of_equals(ordered: Sequence[str], tree: Tree) -> str:
    """Give the first, or a cheaper one whose ranks do not differ from it by the critical difference."""
    best = ordered[0]
    equals = [m for m in ordered if not _told_apart(best, m, tree)]
    return min(equals, key=lambda m: (round(_forwards(m, tree), 1), ordered.index(m)))


def _told_apart(one: str, other: str, tree: Tree) -> bool:
    """Tell whether mean ranks on ROAD or insertion differ by the critical difference."""
    i, j = tree["methods"].index(one), tree["methods"].index(other)
    for metric in MUST_BEAT:
        ranks = tree["ranks"].get(metric)
        if ranks is None or ranks["critical_difference"] is None:
            continue
        a, b = ranks["mean"][i], ranks["mean"][j]
        if a is not None and b is not None and abs(a - b) > ranks["critical_difference"]:
            return True
    return False


def _forwards(method: str, tree: Tree) -> float:
    cost = tree["cost"].get(method)
    return float(cost["work"]) if cost is not None else 0.0


def _sentences(
    best: str,
    left: Sequence[str],
    rejected: Mapping[str, str],
    lines: Mapping[tuple[str, str], Tree],
    tree: Tree,
) -> list[str]:
    twins = next((g for g in tree["groups"] if best in g), [best])
    also = f" ({', '.join(m for m in twins if m != best)} give the same map here)" if len(twins) > 1 else ""
    proof = ", ".join(
        f"{m} {lines[best, m]['mean']:.3f} [{lines[best, m]['low']:.3f}, {lines[best, m]['high']:.3f}]"
        for m in (*MUST_BEAT, "class_sensitivity")
        if (best, m) in lines and lines[best, m]["low"] is not None
    )
    advice = [
        f"Use {best}{also}: it beats random, center and sobel on {' and '.join(MUST_BEAT)} and sees the"
        f" class ({proof})."
    ]
    top = left[0]
    if top != best:
        advice.append(
            f"{top} has the best mean rank ({tree['overall'][top]:.2f} against {tree['overall'][best]:.2f}), "
            f"but is not told apart from {best} and costs {_forwards(top, tree):.1f} forwards against "
            f"{_forwards(best, tree):.1f}."
        )
    near = [m for m in left if m not in (best, top) and not _told_apart(best, m, tree)]
    if near:
        advice.append(f"Not told apart from it: {', '.join(near)}.")
    if rejected:
        advice.append("Left out: " + "; ".join(f"{m} {why}" for m, why in rejected.items()) + ".")
    advice.append(f"Measured on {tree['images']:,} images; it speaks of this model, layer and archive only.")
    return advice
