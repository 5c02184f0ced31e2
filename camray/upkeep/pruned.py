"""Which runs gave up their overlays: `prune` writes it, `verify` reads it."""

from __future__ import annotations

import json

from camray.storage import Folder

PRUNED = "overlays/pruned.json"


def pruned_runs(out: Folder) -> frozenset[str]:
    """Give the runs whose overlays were pruned; their records still name the pictures."""
    return frozenset(json.loads(out.read(PRUNED))) if out.exists(PRUNED) else frozenset()
