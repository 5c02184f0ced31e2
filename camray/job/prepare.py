"""What a run needs, with nothing written yet: options checked, archive listed, model probed, work planned.

Config ──prepare──> Prepared      Everything that can be refused is refused here.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from pyarrow import fs as pafs

from camray.archive.frames import file_index
from camray.archive.listing import Listing, called, joined, list_archive, place_of
from camray.archive.members import read_members, select
from camray.archive.names import file_kind
from camray.config import ArchiveConfig, Config, Explainer, ModelConfig
from camray.errors import PASSING_ERRORS, EmptyArchiveError, ShardError, UsageError, printable
from camray.job.rehash import rehashed
from camray.job.resolved import Origin, Resolved, origin_of, recall
from camray.job.retry import check_codes, retried
from camray.ledger import intake
from camray.ledger.cuts import grown
from camray.ledger.intake import Grouping, group_files
from camray.ledger.out import HOLD, RUNS, TABLE, log_folder
from camray.ledger.plan import Plan, ShardTask, make_plan
from camray.ledger.table import Table
from camray.records import Shard
from camray.storage import Folder, open_folder

if TYPE_CHECKING:
    from camray.models.load import LoadedModel


@dataclass(frozen=True, slots=True)
class Inputs:
    """What every job works with, and where it writes; nothing is written yet."""

    config: Config
    out: Folder
    listing: Listing
    explainer: Explainer
    notes: tuple[str, ...]  # what was done to load the model
    load: Callable[[], LoadedModel]
    table: Table
    groupings: tuple[Grouping, ...]  # of the loose images, one for each archive that has some

    @property
    def model(self) -> LoadedModel:
        """The model; loaded now, where the explainer was remembered."""
        return self.load()


@dataclass(frozen=True, slots=True)
class Prepared(Inputs):
    """Everything that `explain` needs."""

    plan: Plan
    origin: Origin | None  # what the explainer was resolved from; None where it is not to be remembered
    is_remembered: bool = False


def prepare(config: Config) -> Prepared:
    """Check the options, list the archive, load and probe the model, and plan. Writes nothing.

    Raises:
        UsageError: a bad option, archive, model, layer or OUT.
        EmptyArchiveError: nothing to explain.
    """
    check_codes(config.run.retry)
    out = check_out(config)
    table = Table(out)  # before the listing, which is then newer than all that the plan may replace
    table.check_columns()
    table.update()
    listing = listed_for(out, config.archive)
    arrays = config.archive.reads_arrays
    are_images = (file_kind(file.path, arrays) == "image" for file in listing.files)
    is_empty = not listing.shards and not any(are_images)
    if is_empty and not config.run.allow_empty:
        others = f", but {len(listing.files):,} other files" if listing.files else ""
        raise EmptyArchiveError(
            f"ARCHIVE: {config.archive.path} holds no image{others}. "
            "Fix: check the path and --include/--exclude"
        )
    folders = top_folders(listing)
    origin = origin_of(config, folders)
    known = recall(out, origin, config, folders)
    ready = None
    if known is not None:
        ready = _planned(config, table, listing, known)
        if not ready.plan.tasks:
            return replace(ready, is_remembered=True)
    resolve, cached_weights = _libraries()
    if origin is not None:
        origin = origin_of(config, folders, cached_weights(config.model))
    explainer, model = resolve(config, folders)
    if ready is None or ready.explainer != explainer:
        ready = _planned(config, table, listing, Resolved(explainer, model.notes))
    return replace(ready, notes=model.notes, load=lambda: model, origin=origin)


def _libraries() -> tuple[Callable[..., tuple[Explainer, LoadedModel]], Callable[[ModelConfig], list[Path]]]:
    """Import what loads a model: late, so that bad options are told at once."""
    try:
        from camray.explain.explainer import resolve
        from camray.models.load import cached_weights
    except (ImportError, MemoryError) as error:
        why = printable(f"the model's libraries cannot be loaded here: {error}")
        raise UsageError(
            "this machine", why, "give it more memory (ulimit -v), or install camray anew"
        ) from None
    return resolve, cached_weights


def _planned(config: Config, table: Table, listing: Listing, resolved: Resolved) -> Prepared:
    """Plan what an explainer has still to do; its model is loaded by whoever asks for it."""
    out, explainer = table.out, resolved.explainer
    committed = table.shards(explainer.id)
    chosen = select(listing, config.archive)
    groupings = grouped(out, listing, committed.holds)
    asked = chosen_shards(chosen, listing, groupings)
    place_of = partial(file_index, frames=config.archive.frames)
    shards = grown(out, asked, committed, place_of, _there(listing))
    more = sum(is_ != was for is_, was in zip(shards, asked, strict=True))
    others = set[str]()
    if chosen is not listing:
        others = {s.key for s in chosen_shards(listing, listing, groupings)} - {s.key for s in asked}
    more += sum(key in committed for key in others)
    if config.archive.rehash:
        shards = rehashed(out, shards, committed, config.archive)
    if config.run.retry:
        shards = retried(table, explainer.id, shards, committed, config.run.retry)
    again = partial(is_readable, config.archive)
    plan = make_plan(out, explainer.id, shards, committed, config.run.chunk_size, is_readable=again)
    gone = plan.gone - sum(key in committed for key in others)
    plan = replace(plan, gone=gone, more=more)

    def load() -> LoadedModel:
        return _libraries()[0](config, top_folders(listing))[1]

    return Prepared(config, out, listing, explainer, resolved.notes, load, table, groupings, plan, None)


def _there(listing: Listing) -> Callable[[Shard, int], bool]:
    """Tell of a shard's files which the archive lists today; of what is no loose file, all are there."""

    @cache
    def listed() -> set[tuple[str, str]]:
        return {(file.archive or listing.identity, file.path) for file in listing.files}

    def is_there(shard: Shard, place: int) -> bool:
        root = shard.uri.rpartition("#")[0]
        return shard.format != "files" or (root, shard.files[place].path) in listed()

    return is_there


def is_readable(archive: ArchiveConfig, shard: Shard) -> bool:
    """Tell whether one of the selected members of a shard can be read now."""
    try:
        return any(member.error_code not in PASSING_ERRORS for member in read_members(shard, archive))
    except ShardError:
        return False


def describe_plan(ready: Prepared) -> dict[str, str | int]:
    """Say what would run, how much of it, and why the rest would not."""
    e, plan = ready.explainer, ready.plan
    images = known_members(plan.tasks)
    gone_files = sum(grouping.gone for grouping in ready.groupings)
    facts: dict[str, str | int] = {
        "archive": " ".join((ready.config.archive.path, *ready.config.archive.also)),
        "explainer": f"{e.id} ({e.model}, {e.method} at {e.target_layer}, target {e.target})",
        "shards_to_do": len(plan.tasks),
        "images_to_do": images if images is not None else "known once the shards are read",
        "bytes_to_read": plan.size_bytes,
        "committed_shards": f"{plan.committed:,}, skipped: same content, same explainer",
    }
    if ready.notes:
        facts["notes"] = "; ".join(ready.notes)
    if plan.changed:
        facts["changed"] = f"{plan.changed:,} of the shards to do replace older content in OUT"
    if plan.resumed:
        facts["resumed"] = f"{plan.resumed:,} of the shards to do have finished chunks on disk, reused"
    if plan.gone or gone_files:
        facts["gone"] = (
            f"{plan.gone:,} shards, {gone_files:,} files no longer listed, or left out; their rows stay"
        )
    if plan.more:
        facts["more"] = f"{plan.more:,} shards keep rows that only other commands asked for"
    if ready.listing.left_out:
        facts["left_out"] = ", ".join(f"{n:,} {why}" for why, n in sorted(ready.listing.left_out.items()))
    return facts


def check_out(config: Config) -> Folder:
    """Refuse an OUT that is not ours, cannot be written, or lies inside the archive."""
    out = open_folder(config.out, "OUT")
    kind = out.reach("OUT")
    if kind == pafs.FileType.File:
        raise UsageError("OUT", f"{out.uri} is a file", "give a folder")
    ours = any(out.exists(name) for name in (log_folder(TABLE), RUNS, HOLD))
    if kind == pafs.FileType.Directory and not ours:
        other = next(iter(out.names()), None)
        if other is not None:
            raise UsageError(
                "OUT", f"{out.uri} is not empty and not camray's (it holds {printable(other)!r})",
                "give a new or empty folder",
            )  # fmt: skip
    if out.is_local:
        for archive in (config.archive.path, *config.archive.also):
            _check_local_out(out, archive)
    return out


def _check_local_out(out: Folder, archive: str) -> None:
    path = Path(out.path)
    existing = next(p for p in (path, *path.parents) if p.exists())
    if not existing.is_dir():
        raise UsageError("OUT", f"{existing} is a file", "give a folder")
    _refuse_links(path)
    if not _is_writable(existing):
        raise UsageError("OUT", f"no permission to write in {existing}", "choose another folder")
    inside = "://" not in archive and path.is_relative_to(Path(archive).expanduser().absolute())
    if inside:
        raise UsageError("OUT", f"{out.uri} lies inside the archive", "give a folder outside")


def _refuse_links(out: Path) -> None:
    """Refuse folders of OUT that lead elsewhere: who may write in OUT must not choose where a run writes."""
    for link in (*out.glob("*"), *out.glob(log_folder("*"))):
        if link.is_symlink() and link.is_dir():
            where = printable(f"{link} is a link to {link.readlink()}")
            raise UsageError("OUT", where, "remove the link; OUT itself may be one")


def _is_writable(folder: Path) -> bool:
    """Try it with a nameless file: permission bits say nothing of read-only mounts, or to root."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def listed_for(out: Folder, archive: ArchiveConfig) -> Listing:
    """List the archive under the identity that OUT knows it by.

    Without `--archive-name` that is its path without symbolic links; or as given, where OUT knows it so.

    Raises:
        UsageError: as `list_archive`; or several archives of one name, or one inside another.
    """
    if archive.also:
        if archive.name:
            raise UsageError("--archive-name", "given with several archives", "name one archive at a time")
        each = (replace(archive, path=path, also=()) for path in (archive.path, *archive.also))
        return joined([listed_for(out, one) for one in each])
    listing = list_archive(archive)
    given = place_of(listing, archive.path)
    resolved = given if "://" in given else os.path.realpath(given)
    if archive.name or resolved == given:
        return listing
    keys = {shard.key for shard in listing.shards}
    is_known = Table(out).holds_any(keys) or intake.recall(out, listing.root)
    return listing if is_known else called(listing, archive.path, resolved)


def grouped(out: Folder, listing: Listing, is_committed: Callable[[Shard], bool]) -> tuple[Grouping, ...]:
    """Group the loose images of each archive into shards, as OUT remembers them."""
    return tuple(
        group_files(part.identity, part.files, intake.recall(out, part.identity), is_committed)
        for part in listing.archives
        if part.files
    )


def chosen_shards(chosen: Listing, listing: Listing, groupings: Sequence[Grouping]) -> list[Shard]:
    """Give the chosen shards, then the groups; where only some files are asked for, as a selection."""
    everything = len(chosen.files) == len(listing.files)
    places = {part.identity: part.root for part in listing.archives}
    paths = {(f.archive or listing.identity, f.path) for f in chosen.files}
    shards = list(chosen.shards)
    for grouping in groupings:
        for group in grouping.groups:
            shard = group.shard(grouping.root, places[grouping.root])
            indices = tuple(i for i, f in enumerate(group.files) if (grouping.root, f.path) in paths)
            if everything or len(indices) == len(group.files):
                shards.append(shard)
            elif indices:
                shards.append(replace(shard, selection=indices))
    return shards


def top_folders(listing: Listing) -> set[str]:
    """Give the folders that loose images lie in, right below the archive: they often name the classes."""
    return {top for top, slash, _ in (f.path.partition("/") for f in listing.files) if slash}


def known_members(tasks: Sequence[ShardTask]) -> int | None:
    """Count the members where the listing tells (loose files, selections)."""
    total = 0
    for task in tasks:
        if task.shard.selection is not None:
            total += len(task.shard.selection)
        elif task.shard.format == "files":
            total += len(task.shard.files)
        else:
            return None
    return total
