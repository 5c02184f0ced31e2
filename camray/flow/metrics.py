"""What Prometheus sees of a run while it works, through Ray's own metrics. Told from receipts, by the driver.

Ray puts `ray_` before each name and `_total` behind a counter, and serves them at every node's metrics port.
The numbers of a finished night are elsewhere: OUT/runs/<run>/run.json and metrics.prom.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from camray.flow.progress import RunProgress
from camray.ledger.hold import repeating

TELL_EVERY_S = 5.0  # half of Ray's report interval
OWNER = "explainer"  # a label of every metric: the explainer id, or the panel of a comparison
COUNTERS = {  # name: what it counts, and the label beside the explainer
    "camray_images": ("images finished, by what became of them", "status"),
    "camray_failures": ("failed images, by error code", "code"),
    "camray_stage_seconds": ("seconds of work, by stage, all workers together", "stage"),
    "camray_changed_answers": ("answers that were others with the hot border blurred", "region"),
}
GAUGES = {
    "camray_shards_left": ("shards not committed yet", None),
    "camray_bottleneck_share": ("share of the model's time that it works, or waits for `limit`", "limit"),
}


def counted(progress: RunProgress) -> Iterator[tuple[str, str, float]]:
    """Give every counter's value so far: name, label, value."""
    images = progress.images
    yield from (("camray_images", s, n) for s, n in (("ok", images.ok), ("skipped", images.skipped)))
    yield "camray_images", "failed", images.n_failed
    yield from (("camray_failures", code, n) for code, n in images.failed.items())
    seconds = dict(progress.stage_seconds)  # a copy in one step: another thread adds to it
    yield from (("camray_stage_seconds", stage, n) for stage, n in seconds.items())
    yield "camray_changed_answers", "border", progress.changed_answers


@contextmanager
def run_metrics(owner: str, progress: RunProgress) -> Iterator[None]:
    """Tell Ray every few seconds within the body what has changed.

    From a thread: Ray forgets a gauge that is not set again within two of its reports, and a run that stands
    still must not vanish.
    """
    from ray.util.metrics import Counter, Gauge

    tags = {OWNER: owner}
    counters = {
        name: Counter(name, text, (OWNER, label)).set_default_tags(tags)
        for name, (text, label) in COUNTERS.items()
    }
    gauges = {
        name: Gauge(name, text, (OWNER, label) if label else (OWNER,)).set_default_tags(tags)
        for name, (text, label) in GAUGES.items()
    }
    totals: defaultdict[tuple[str, str], float] = defaultdict(float)  # as Ray knows them

    def update() -> None:
        for name, label, value in counted(progress):
            grown = value - totals[name, label]
            if grown > 0:
                totals[name, label] = value
                counters[name].inc(grown, {COUNTERS[name][1]: label})
        gauges["camray_shards_left"].set(progress.shards_left)
        limit, share = progress.limit()
        if limit:
            gauges["camray_bottleneck_share"].set(share, {"limit": limit})

    try:
        with repeating(update, TELL_EVERY_S, "metrics"):
            yield
    finally:
        with suppress(Exception):  # where the cluster is gone, that is why the run ends
            update()
