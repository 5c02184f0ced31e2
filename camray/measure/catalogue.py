"""Every metric by name, in the order of tables and pages.

Flows in: the modules whose formulas are metrics. Flows out: `METRICS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType

from camray.measure.registry import REGISTERED, Metric

MODULES = (
    "camray.measure.faithfulness",
    "camray.measure.localisation",
    "camray.measure.sanity",
    "camray.measure.sparsity",
)
for _module in MODULES:
    import_module(_module)

METRICS: Mapping[str, Metric] = MappingProxyType(
    {m.name: m for place in MODULES for m in REGISTERED.values() if m.compute.__module__ == place}
)
