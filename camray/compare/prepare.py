"""What a comparison measures: methods, a sample of the archive, and which of it is done already.

Flows in: a config. Flows out: `Prepared`; nothing is written. A method belongs to the panel that measured it
first; those that no panel of OUT holds yet make a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from camray.archive.listing import Listing, list_archive
from camray.archive.selection import image_indices, select
from camray.compare.panel import SCORES, Panel
from camray.compare.sample import FIELDS, Sample, draw, explained_images, freeze, read_sample, sample_id
from camray.config import Config
from camray.errors import EmptyArchiveError, UsageError
from camray.job.prepare import check_out, top_folders
from camray.ledger.intake import Grouping, group_files, recall
from camray.ledger.plan import Plan, make_plan
from camray.ledger.table import Table
from camray.measure.catalogue import CONTROLS
from camray.records import Shard
from camray.storage import Folder

if TYPE_CHECKING:
    from camray.models.load import LoadedModel

SAMPLE = 2000  # images, unless asked otherwise
CHUNK = 4  # images between two receipts: each costs hundreds of forwards, half a minute on a core
BATCH = 4  # images whose maps are held at once; their altered copies fill larger batches


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything a comparison needs, with nothing written yet."""

    config: Config
    out: Folder
    grouping: Grouping | None
    sample: Sample
    shards: tuple[Shard, ...]  # cut down to the sample
    model: LoadedModel
    table: Table
    panels: tuple[tuple[Panel, Plan], ...]  # with the methods asked for, the new one last

    @property
    def todo(self) -> list[tuple[Panel, Plan]]:
        """Panels that are not complete."""
        return [(panel, plan) for panel, plan in self.panels if plan.tasks]


def prepare(config: Config) -> Prepared:
    """Check the options, list the archive, load the model, draw or recall the sample, plan. Writes nothing.

    Raises:
        UsageError: a bad option, archive, model, method or OUT, or a sample that is no longer there.
        EmptyArchiveError: nothing to measure.
    """
    out = check_out(config)
    methods = asked_methods(config)
    config = replace(
        config, run=replace(config.run, chunk_size=CHUNK, batch_size=config.run.batch_size or BATCH)
    )
    listing = list_archive(config.archive)
    if not listing.shards and not listing.files:
        raise EmptyArchiveError(f"ARCHIVE: {config.archive.path} holds no image. Fix: check the path")
    from camray.compare.trial import resolve  # torch: late, so that bad options are told at once

    explainer, model = resolve(config, methods, top_folders(listing))
    grouping = None
    shards = list(listing.shards)
    if listing.files:
        grouping = group_files(listing.root, listing.files, recall(out, listing.root), lambda _: False)
        shards += [group.shard(grouping.root) for group in grouping.groups]
    asked = _asked_sample(config)
    sample = read_sample(out, sample_id(asked)) or _drawn(config, out, explainer, listing, shards, asked)
    cut = sample.shards(shards)
    table = Table(out, SCORES)
    table.check_columns()
    base = Panel(explainer, (), _metric_settings(config, explainer.activation), sample.id, sample.pictured)
    panels = _panels(out, base, methods)
    plans = tuple((p, make_plan(out, p.id, cut, table.shards(p.id), CHUNK, SCORES)) for p in panels)
    return Prepared(config, out, grouping, sample, tuple(cut), model, table, plans)


def asked_methods(config: Config) -> tuple[str, ...]:
    """Give the methods to measure, each spelled its one way, the controls among them.

    Raises:
        UsageError: an unknown method, or none.
    """
    from camray.cam import parse_method

    named = [parse_method(text).spelled for text in config.compare.methods]
    if not named:
        raise UsageError("--methods", "names no method", "for example --methods gradcam,layercam")
    return tuple(dict.fromkeys([*named, *CONTROLS]))


def _asked_sample(config: Config) -> dict[str, Any]:
    a = config.archive
    stratify = config.compare.stratify
    for name in stratify or ():
        if name not in FIELDS:
            raise UsageError("--stratify", f"no column {name!r}", f"some of {', '.join(FIELDS)}")
    return {
        "archive": a.path, "include": a.include, "exclude": a.exclude, "seed": a.seed,
        "count": a.sample or SAMPLE, "stratify": stratify,
    }  # fmt: skip


def _drawn(
    config: Config,
    out: Folder,
    explainer: Any,
    listing: Listing,
    shards: Sequence[Shard],
    asked: dict[str, Any],
) -> Sample:
    """Draw a sample: stratified where the model's records are there, else from the listing alone."""
    fields = config.compare.stratify
    wanted = FIELDS[::2] if fields is None else fields  # predicted_class, confidence
    if wanted:
        images = explained_images(out, Table(out), explainer, shards, wanted)
        if images.num_rows:
            places = draw(images, asked["count"], wanted, asked["seed"])
            return freeze(asked, wanted, images.num_rows, places, shards)
        if fields is not None:
            raise UsageError(
                "--stratify", "OUT holds no records of this model and archive",
                "run `camray explain` into the same OUT first, or leave --stratify out",
            )  # fmt: skip
    chosen = select(listing, replace(config.archive, sample=asked["count"]))
    picked = {f.path for f in chosen.files}
    partly = {s.key: s.selection for s in chosen.shards}
    places = []
    for shard in shards:
        if shard.format == "files":
            indices = [i for i, f in enumerate(shard.files) if f.path in picked]
        elif shard.key in partly:
            own = partly[shard.key]
            indices = list(image_indices(shard, config.archive)) if own is None else list(own)
        else:
            continue
        places += [(shard.key, i) for i in indices]
    if not places:
        raise EmptyArchiveError(f"ARCHIVE: {config.archive.path} holds no image. Fix: check the path")
    return freeze(asked, (), 0, places, shards)


def _metric_settings(config: Config, activation: str) -> dict[str, Any]:
    return {"baseline": config.compare.baseline, "activation": activation}


def _panels(out: Folder, base: Panel, methods: Sequence[str]) -> list[Panel]:
    """Give the panels of OUT that hold some of the methods, then one of the rest."""
    found, left = [], list(methods)
    for panel in read_panels(out, base):
        if set(panel.methods) & set(left):
            found.append(panel)
            left = [m for m in left if m not in panel.methods]
    return [*found, replace(base, methods=tuple(left))] if left else found


def read_panels(out: Folder, base: Panel | None = None) -> list[Panel]:
    """Read the panels of OUT; of those like `base` only, if it is given."""
    paths = [e.path for e in out.entries("panels") if e.path.endswith(".json")]
    every = [Panel.from_json(out.read(f"panels/{path}").decode()) for path in paths]
    return [p for p in every if base is None or p.without_methods() == base.without_methods()]
