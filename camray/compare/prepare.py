"""What a comparison measures: methods, a sample of the archive, and which of it is done already.

Flows in: a config. Flows out: a `Comparison`; nothing is written. A method belongs to the panel that measured
it first; those that no panel of OUT holds yet make a new one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from camray.archive.frames import FIRST
from camray.archive.members import image_indices, select
from camray.compare.panel import SCORES, Panel, panel_of
from camray.compare.sample import FIELDS, Sample, draw, explained_images, freeze, read_sample, sample_id
from camray.config import ArchiveConfig, Config, Explainer
from camray.errors import EmptyArchiveError, UsageError
from camray.job.prepare import (
    Inputs,
    check_out,
    chosen_shards,
    grouped,
    is_readable,
    listed_for,
    top_folders,
)
from camray.ledger.out import PANELS, ids_in, panel_file
from camray.ledger.plan import Plan, make_plan
from camray.ledger.side import recovered
from camray.ledger.table import Table
from camray.measure.registry import CONTROLS
from camray.records import Shard
from camray.storage import Folder

SAMPLE = 2000  # images, unless asked otherwise
CHUNK = 4  # images between two receipts: each costs hundreds of forwards, half a minute on a core
BATCH = 4  # images whose maps are held at once; their altered copies fill larger batches


@dataclass(frozen=True, slots=True)
class Comparison(Inputs):
    """Everything that `compare` needs."""

    sample: Sample
    shards: tuple[Shard, ...]  # cut down to the sample
    panels: tuple[tuple[Panel, Plan], ...]  # with the methods asked for, the new one last

    @property
    def todo(self) -> list[tuple[Panel, Plan]]:
        """Panels that are not complete."""
        return [(panel, plan) for panel, plan in self.panels if plan.tasks]


def prepare(config: Config) -> Comparison:
    """Check the options, list the archive, load the model, draw or recall the sample, plan. Writes nothing.

    Raises:
        UsageError: a bad option, archive, model, method or OUT, or a sample that is no longer there.
        EmptyArchiveError: nothing to measure.
    """
    out = check_out(config)
    methods = listed_methods(config)
    config = replace(
        config,
        archive=replace(config.archive, frames=FIRST),  # a place of the sample is a file
        run=replace(config.run, chunk_size=CHUNK, batch_size=config.run.batch_size or BATCH),
    )
    table = Table(out, SCORES)
    table.check_columns()
    table.update()
    listing = listed_for(out, config.archive)
    if not listing.shards and not listing.files:
        raise _nothing(config)
    from camray.explain.explainer import resolve  # torch: late, so that bad options are told at once
    from camray.measure.scores import check_target

    check_target(config.method.target, methods)
    explainer, model = resolve(config, top_folders(listing), methods)
    if explainer.activation == "value":
        raise UsageError("--task", "regression, but what is measured are classes", "camray explain")
    explainer = replace(explainer, method="compare")
    groupings = grouped(out, listing, lambda _: False)
    shards = chosen_shards(listing, listing, groupings)
    request = _sample_request(config)
    sample = read_sample(out, sample_id(request)) or _by_records(config, out, explainer, shards, request)
    if sample is None:
        chosen = select(listing, replace(config.archive, sample=request["count"]))
        drawn = chosen_shards(chosen, listing, groupings)
        places = [(shard.key, i) for shard in drawn for i in _images(shard, config.archive)]
        if not places:
            raise _nothing(config)
        sample = freeze(request, (), 0, places, shards)
    cut = sample.shards(shards)
    settings = {"baseline": config.compare.baseline, "activation": explainer.activation}
    base = Panel(explainer, (), settings, sample.id, sample.pictured)
    panels = _panels(out, base, methods)
    again = partial(is_readable, config.archive)
    plans = tuple((p, make_plan(out, p.id, cut, table.shards(p.id), CHUNK, SCORES, again)) for p in panels)
    return Comparison(
        config,
        out,
        listing,
        explainer,
        model.notes,
        lambda: model,
        table,
        groupings,
        sample,
        tuple(cut),
        plans,
    )


def listed_methods(config: Config) -> tuple[str, ...]:
    """Give the methods to measure, each spelled its one way, the controls among them.

    Raises:
        UsageError: an unknown method, or none.
    """
    from camray.cam import parse_method

    named = [parse_method(text).spelled for text in config.compare.methods]
    if not named:
        raise UsageError("--methods", "names no method", "for example --methods gradcam,layercam")
    return tuple(dict.fromkeys([*named, *CONTROLS]))


def _sample_request(config: Config) -> dict[str, Any]:
    a = config.archive
    stratify = config.compare.stratify
    for name in stratify or ():
        if name not in FIELDS:
            raise UsageError("--stratify", f"no column {name!r}", f"some of {', '.join(FIELDS)}")
    archive = " ".join((a.name or a.path, *a.also))
    return {
        "archive": archive, "include": a.include, "exclude": a.exclude, "seed": a.seed,
        "count": a.sample or SAMPLE, "stratify": stratify,
    }  # fmt: skip


def _by_records(
    config: Config, out: Folder, explainer: Explainer, shards: Sequence[Shard], request: dict[str, Any]
) -> Sample | None:
    """Draw a stratified sample where the model's records are there, else None."""
    fields = config.compare.stratify
    used = FIELDS[::2] if fields is None else fields  # predicted_class, confidence
    images = explained_images(out, Table(out), explainer, shards, used) if used else None
    if images is not None and images.num_rows:
        places = draw(images, request["count"], used, request["seed"])
        return freeze(request, used, images.num_rows, places, shards)
    if fields:
        raise UsageError(
            "--stratify", "OUT holds no records of this model and archive",
            "run `camray explain` into the same OUT first, or leave --stratify out",
        )  # fmt: skip
    return None


def _images(shard: Shard, archive: ArchiveConfig) -> Iterable[int]:
    """Give the indices of the images of a shard that was cut down, or was not."""
    if shard.selection is not None:
        return shard.selection
    return range(len(shard.files)) if shard.format == "files" else image_indices(shard, archive)


def _nothing(config: Config) -> EmptyArchiveError:
    return EmptyArchiveError(f"ARCHIVE: {config.archive.path} holds no image. Fix: check the path")


def _panels(out: Folder, base: Panel, methods: Sequence[str]) -> list[Panel]:
    """Give the panels of OUT that hold some of the methods, then one of the rest."""
    panels, left = [], list(methods)
    for panel in read_panels(out, base):
        if set(panel.methods) & set(left):
            panels.append(panel)
            left = [m for m in left if m not in panel.methods]
    return [*panels, replace(base, methods=tuple(left))] if left else panels


def read_panels(out: Folder, base: Panel | None = None) -> list[Panel]:
    """Read the panels of OUT; of those like `base` only, if it is given."""
    every = [recovered(out, panel_file(panel), panel_of) for panel in ids_in(out, PANELS)]
    known = [panel for panel in every if panel is not None]
    return [p for p in known if base is None or p.without_methods() == base.without_methods()]
