"""`--fail-on confirmed_rate>0.5%,drift=major`: when a night ends with exit code 5."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from camray.errors import UsageError, printable

RATES = (
    "confirmed_rate", "suspected_rate", "wrong_rate", "label_suspect_rate", "low_margin_rate", "failed_rate",
    "dark_rate", "blurry_rate",
)  # fmt: skip
DRIFT_LEVELS = ("none", "moderate", "major")
_RATE = re.compile(r"\s*(\w+)\s*>\s*([0-9]*\.?[0-9]+)\s*(%?)\s*")
_DRIFT = re.compile(r"\s*drift\s*=\s*(\w+)\s*")


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that must not be. `limit` is a share 0..1, or the place in `DRIFT_LEVELS`."""

    name: str
    limit: float
    text: str

    def fires(self, rates: Mapping[str, float], drift: str) -> bool:
        """Tell whether it is so tonight."""
        if self.name == "drift":
            return DRIFT_LEVELS.index(drift) >= self.limit
        return rates[self.name] > self.limit


def parse_gate(text: str) -> tuple[Condition, ...]:
    """Read conditions, separated by commas.

    Raises:
        UsageError: a condition that names no rate or level.
    """
    return tuple(_condition(part.strip()) for part in text.split(",") if part.strip())


def _condition(text: str) -> Condition:
    drift = _DRIFT.fullmatch(text)
    if drift and drift[1] in DRIFT_LEVELS[1:]:
        return Condition("drift", DRIFT_LEVELS.index(drift[1]), text)
    return Condition(*rate_above(text, RATES, "drift=moderate, drift=major"), text)


def rate_above(text: str, rates: Sequence[str], others: str) -> tuple[str, float]:
    """Read `wrong_rate>5%` or `wrong_rate>0.05`: one of the rates, and a share 0..1.

    Raises:
        UsageError: neither; `others` are the conditions that would do as well.
    """
    rate = _RATE.fullmatch(text)
    if rate is None or rate[1] not in rates:
        known = f"RATE>SHARE with {', '.join(rates)}; or {others}"
        raise UsageError("--fail-on", f"{printable(text)!r} is no condition", f"give {known}")
    limit = float(rate[2]) / (100 if rate[3] else 1)
    if limit > 1:
        raise UsageError("--fail-on", f"{printable(text)!r}: a share above 1", "give 0.005 or 0.5%")
    return rate[1], limit
