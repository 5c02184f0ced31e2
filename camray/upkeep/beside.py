"""What lies in OUT beside the record files, checked: logs, other tables, side files, runs, the report.

Each finding is one line that names the file. A log may not be shorter than a run or a night said when it
ended; a side file must be as it was written; what one file names must be there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow.parquet as pq

from camray.audit.night import Night, canary_of, night_of, state_of
from camray.audit.reviewed import decisions_in
from camray.compare.panel import SCORES, panel_of
from camray.errors import UsageError, printable
from camray.ledger import log
from camray.ledger.committed import checksum
from camray.ledger.hold import last_hold
from camray.ledger.out import (
    AUDIT,
    EXPLAINERS,
    HOLD,
    INBOX,
    INTAKE,
    LOOKS,
    OVERLAYS,
    PANELS,
    PRUNED,
    QA,
    REPORT,
    RESOLVED,
    RUNS,
    TABLE,
    answers_of,
    beat_file,
    canary_file,
    costs_file,
    explainer_of,
    files_of_runs,
    hold_file,
    log_folder,
    pruned_of,
    run_file,
    sample_file,
)  # fmt: skip
from camray.ledger.runs import report_of
from camray.ledger.side import DAMAGED, DamagedError, as_object, read_side
from camray.ledger.table import STORE_ERRORS, Table
from camray.storage import Folder
from camray.upkeep.since import Since

Read = Callable[[Any], Any]
_SIDE: dict[str, Callable[[str], Read]] = {  # a folder of side files, and how one of them is read, by its id
    EXPLAINERS: lambda name: partial(_named_by_hash, name, explainer_of),
    PANELS: lambda name: partial(_named_by_hash, name, panel_of),
    INBOX: lambda _: decisions_in,
    "canary": lambda name: partial(answers_of, name),
    RESOLVED: lambda _: as_object,
    "samples": lambda _: as_object,
    "costs": lambda _: as_object,
    "comparisons": lambda _: as_object,
}
_TABLES = (INTAKE, AUDIT, QA, LOOKS)  # beside records and scores


def find_beside(out: Folder, table: Table, new: Since | None = None) -> Iterator[str]:
    """Yield each problem beside the record files in one line; nothing when all is sound.

    `new`: of the runs and of the files in tables, only what is new.
    """
    nights: list[Night] = []
    said: dict[str, int] = {}
    places = [RUNS] if new is None else [f"{RUNS}/{run}" for run in new.runs]
    paths = [f"{place}/{entry.path}" for place in places for entry in out.entries(place)]
    yield from _side_files(out)
    yield from _files_of_runs(out, paths, said, nights)
    yield from _missing_runs(out, table, paths, nights, new)
    yield from _logs(out, said)
    for folder in _TABLES:
        yield from _table(out, folder, new)
    yield from _report(out, nights)


def problem_of(out: Folder, path: str, read: Read) -> str | None:
    """Give what is wrong with a side file that must be there; None where nothing is."""
    try:
        read_side(out, path, read)
    except FileNotFoundError:
        return f"{path} is missing"
    except DamagedError as damage:
        return damage.problem
    return None


def _anything(tree: Any) -> Any:
    return tree


def _named_by_hash(name: str, read: Read, tree: Any) -> Any:
    """Take what is named by a hash of exactly this JSON."""
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    if hashlib.sha256(text.encode()).hexdigest()[:16] != name:
        raise ValueError("it is not what this id stands for")
    return read(tree)


def _side_files(out: Folder) -> Iterator[str]:
    for folder, reader in _SIDE.items():
        for entry in out.entries(folder):
            path = f"{folder}/{entry.path}"
            if path.endswith(DAMAGED):
                yield f"{path} was found damaged and set aside"
            elif path.endswith(".json") and (problem := problem_of(out, path, reader(_id_of(path)))):
                yield problem
    if out.exists(PRUNED) and (problem := problem_of(out, PRUNED, pruned_of)):
        yield problem
    yield from (f"{OVERLAYS}/{name} was set aside" for name in out.names(OVERLAYS) if name.endswith(DAMAGED))
    beats = (name.partition(".") for name in out.names(HOLD))
    if number := max([last_hold(out), *(int(n) for n, _, end in beats if end == "beat" and n.isdecimal())]):
        files = (hold_file(number), beat_file(number))
        yield from filter(None, (problem_of(out, path, as_object) for path in files))


def _id_of(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".json")


def _files_of_runs(
    out: Folder, paths: Sequence[str], said: dict[str, int], nights: list[Night]
) -> Iterator[str]:
    """Check these files of runs; note in `said` the latest version of each log that one of them names."""

    def note(tree: dict[str, Any]) -> None:
        for name, version in as_object(tree.get("tables", {})).items():
            said[name] = max(said.get(name, -1), int(version))

    def report(path: str, tree: Any) -> None:
        note(report_of(path, tree))
        said["hold"] = max(said.get("hold", 0), tree.get("number", 0))

    def summary(path: str, tree: Any) -> None:
        nights.append(night_of(path, tree))
        note(tree)
        files[path] = as_object(tree.get("files", {}))

    files: dict[str, dict[str, str]] = {}
    readers: dict[str, Callable[[str, Any], Any]] = {
        "run.json": report, "summary.json": summary, "canary.json": lambda _, tree: canary_of(tree),
    }  # fmt: skip
    for path in paths:
        run_id, _, name = path.removeprefix(f"{RUNS}/").partition("/")
        read: Read = partial(readers[name], path) if name in readers else _anything
        read = partial(state_of, run_id) if name == "state.json" else read
        if path.endswith(DAMAGED):
            yield f"{path} was found damaged and set aside"
        elif path.endswith(".json") and (problem := problem_of(out, path, read)):
            yield problem
    for path, checksums in files.items():
        folder = path.rpartition("/")[0]
        yield from _as_written(out, {f"{folder}/{name}": digest for name, digest in checksums.items()})
    if (number := said.pop("hold", 0)) > last_hold(out):
        yield f"{hold_file(number)} is missing"


def _as_written(out: Folder, digests: dict[str, str]) -> Iterator[str]:
    for path, digest in digests.items():
        if not out.exists(path):
            yield f"{path} is missing"
        elif checksum(out.read(path)) != digest:
            yield f"{path} is not as it was written"


def _missing_runs(
    out: Folder, table: Table, paths: Sequence[str], nights: list[Night], new: Since | None
) -> Iterator[str]:
    """Name what is not there though a commit, or another file, speaks of it."""
    runs = [*table.runs(), *Table(out, SCORES).runs()] if new is None else new.runs
    due = {run_file(run_id, "run.json") for run_id in runs}
    due |= {run_file(night.run_id, "state.json") for night in nights}
    due |= {run_file(night.previous, "summary.json") for night in nights if night.previous}
    due |= {run_file(night.run_id, "canary.json") for night in nights if night.canary}
    due |= {canary_file(night.explainer) for night in nights if night.canary}
    due |= {path.replace("/state.json", "/summary.json") for path in paths if path.endswith("/state.json")}
    for entry in out.entries(PANELS):
        if entry.path.endswith(".json"):
            due.add(costs_file(_id_of(entry.path)))
            try:
                due.add(sample_file(read_side(out, f"{PANELS}/{entry.path}", lambda tree: tree["sample"])))
            except DamagedError:
                continue  # told already
    set_aside = {path.removesuffix(DAMAGED) for path in paths if path.endswith(f"/summary.json{DAMAGED}")}
    yield from (f"{path} is missing" for path in sorted(due - set_aside) if not out.exists(path))


def _logs(out: Folder, said: dict[str, int]) -> Iterator[str]:
    """Compare the entries of each log with their numbers, with its checkpoints, and with what was said."""
    for folder in sorted({*log.TABLES, *said} & set(log.TABLES)):
        place = log_folder(folder)
        there = set(out.names(place))
        numbers = {int(name[:20]) for name in there if name.endswith(".json") and name[:20].isdecimal()}
        points = {name for name in there if name.endswith(".checkpoint.parquet")}
        last = max([*numbers, *(int(name[:20]) for name in points), said.get(folder, -1)], default=-1)
        first = min(numbers, default=0)
        first = first if first and points and not _is_kept(out, folder) else 0
        missing = sorted(set(range(first, last + 1)) - numbers)
        yield from (f"{log.entry(folder, version)} is missing" for version in missing[:20])
        if points and "_last_checkpoint" not in there:
            yield f"{place}/_last_checkpoint is missing"
        if "_last_checkpoint" in there and (why := _bad_checkpoint(out, place, there)):
            yield why


def _is_kept(out: Folder, folder: str) -> bool:
    """Tell whether nobody may have cleaned a log: verdicts of an earlier camray had no word on that."""
    try:
        return log.KEPT.items() <= log.opened(out, folder).metadata().configuration.items()
    except (UsageError, *STORE_ERRORS):
        return True


def _bad_checkpoint(out: Folder, place: str, there: set[str]) -> str | None:
    path = f"{place}/_last_checkpoint"
    try:
        name = f"{int(json.loads(out.read(path))['version']):020d}.checkpoint.parquet"
    except (ValueError, LookupError, TypeError):
        return f"{path} is damaged"
    if name not in there:
        return f"{place}/{name} is missing"
    try:
        with out.open(f"{place}/{name}") as file:
            pq.ParquetFile(file).read(use_threads=False)
    except Exception as error:  # noqa: BLE001 - damage makes readers raise whatever they like
        return f"{place}/{name}: {printable(str(error), 160)}"
    return None


def _table(out: Folder, folder: str, new: Since | None) -> Iterator[str]:
    """Read every file of a table that has no checksums; its sizes must be those of the log."""
    if not log.exists(out, folder):
        return
    try:
        table = log.opened(out, folder)
    except UsageError as error:
        yield error.problem
        return
    added = None if new is None else new.added(folder)
    for path, size in log.sizes(table).items():
        if added is not None and path not in added:
            continue
        try:
            data = out.read(f"{folder}/{path}")
            if len(data) != size:
                raise ValueError(f"{len(data)} bytes, committed with {size}")
            with out.open(f"{folder}/{path}") as file:
                pq.ParquetFile(file).read(use_threads=False)
        except Exception as error:  # noqa: BLE001 - as above
            yield f"{folder}/{path}: {printable(str(error), 160)}"


def _report(out: Folder, nights: list[Night]) -> Iterator[str]:
    path = f"{REPORT}/pages.json"
    if not out.exists(path):
        if any(night.audit_version is not None for night in nights):  # since then each report has one
            yield f"{path} is missing. Fix: camray report OUT"
        return
    try:
        pages = read_side(out, path, lambda tree: dict(tree["pages"]))
    except DamagedError as damage:
        yield damage.problem
        return
    for problem in _as_written(out, {f"{REPORT}/{name}": digest for name, digest in pages.items()}):
        yield f"{problem}. Fix: camray report OUT"


def find_nothing_said(out: Folder, shards: int) -> Iterator[str]:
    """Name what lies in OUT where its log accounts for nothing: an empty log is no proof."""
    if shards:
        return
    files = sum(entry.path.endswith(".parquet") for entry in out.entries(TABLE))
    entries = log.versions(out).get(TABLE, 0)
    runs = len(files_of_runs(out, "run.json"))
    if files or entries or runs:
        yield (
            f"the log of {TABLE} accounts for no shard, while there are {files:,} record files, "
            f"{entries:,} log entries and {runs:,} runs"
        )
