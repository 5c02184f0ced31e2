"""Nights without Ray: the real flow, in this process."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from camray.audit.looks import look_again
from camray.audit.night import audit_night
from camray.config import Config
from camray.flow.actor import network_of
from camray.flow.flow import Engine, Pool, explain_flow
from camray.flow.here import _at_once as at_once
from camray.flow.here import run_here
from camray.flow.progress import Reporter
from camray.job.prepare import prepare
from camray.ledger.commit import CommitDesk
from camray.ledger.intake import remember
from camray.ledger.runs import write_explainer
from camray.ledger.table import ShardCommit
from camray.options import load
from camray.records import ShardEnd
from demo import hans64

MODELS = Path(hans64.__file__).parent / "models"
POOL = Pool(actors=1, max_actors=1, device="cpu", cpus=1, gpus=0, threads=1, batch_size=32)


def settings_for(archive: Path, out: Path, model: str = "hans64-poisoned", **settings: Any) -> Config:
    named = {"archive.path": str(archive), "out": str(out), "model.name": str(MODELS / model)}
    named |= {"overlay.policy": "none", "audit.canary": 0}
    return load(None, named | {name.replace("__", "."): v for name, v in settings.items()}, "audit")


def explain(settings: Config, run_id: str, die_after: int | None = None) -> int:
    """Explain what is new, and give the number of images explained; dies before commit `die_after`."""
    ready = prepare(settings)
    if not ready.plan.tasks:
        return 0
    write_explainer(ready.out, ready.explainer)
    ready.table.create()
    for grouping in ready.groupings:
        remember(ready.out, grouping.root, grouping.new)
    desk = CommitDesk(ready.table, ready.explainer.id, run_id, ready.plan.tasks)
    network = network_of(ready.model)
    flow = explain_flow(settings, ready.explainer, lambda: network, run_id)
    commits: list[ShardCommit] = []
    done_all = True
    for chunks in run_here(ready.plan.tasks, flow, POOL):
        if len(commits) == die_after and any(isinstance(chunk.note, ShardEnd) for chunk in chunks):
            done_all = False
            break
        commits += desk.take(chunks) + desk.flush()
    if settings.audit.looks and done_all:
        engine = Engine(
            "here", POOL, run_here, lambda network: lambda: network, at_once, lambda *_: nullcontext()
        )
        look_again(ready, engine, run_id, Reporter())
    return sum(receipt.rows for commit in commits for receipt in commit.receipts if not receipt.reused)


def night(
    archive: Path, out: Path, run_id: str, model: str = "hans64-poisoned", **settings: Any
) -> dict[str, Any]:
    """One night: explain, audit; gives the summary, with `done`: images explained."""
    chosen = settings_for(archive, out, model, **settings)
    done = explain(chosen, run_id)
    found = audit_night(str(out), prepare(chosen).explainer.id, run_id, chosen.audit)
    return found.to_json() | {"done": done}


def write_archive(folder: Path, samples: Iterable[hans64.Sample], per_shard: int = 120) -> Path:
    """Write tar shards and give their folder."""
    hans64.write_tar_shards(samples, folder, per_shard)
    return folder
