"""What a night costs beside explaining: CPU seconds of each part, memory, and what the log holds.

    python bench/nights.py --rows 20000 --new 20                 one night on so many rows
    python bench/nights.py --rows 0 --new 20 --nights 500        so many nights in one OUT

Records and looks are generated, no model is asked. Each night that is shown is a process of its own, so that
its memory is.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import jinja2  # noqa: F401 - imports are no part of a night
import numpy as np
import pyarrow as pa
import pydantic  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from camray.audit.looks import BATTERY, choose, earlier_crops, write_looks  # noqa: E402
from camray.audit.night import audit_night  # noqa: E402
from camray.audit.report import write_report  # noqa: E402
from camray.config import ArchiveConfig, AuditConfig, Config  # noqa: E402
from camray.errors import ExitCode  # noqa: E402
from camray.job.prepare import listed_for  # noqa: E402
from camray.ledger import log  # noqa: E402
from camray.ledger.plan import make_plan  # noqa: E402
from camray.ledger.runs import first_report, working_reports, write_explainer  # noqa: E402
from camray.ledger.sink import write_records  # noqa: E402
from camray.ledger.table import ShardCommit, Table  # noqa: E402
from camray.records import Accounting, Shard, account  # noqa: E402
from camray.storage import open_folder  # noqa: E402
from camray.upkeep.prune import print_prune  # noqa: E402
from camray.upkeep.verify import print_verify  # noqa: E402
from tests.audit.report_world import explainer, records  # noqa: E402

NAME = "s3://archive"  # of the archive
TEMPLATE, ROWS_A_FILE, FILES_A_COMMIT = 5000, 20_000, 50
LOOKED = 64  # images of a night that get looks


def generated(start: int, count: int, run_id: str, shard: str) -> pa.Table:
    """Rows of images `start` to `start + count`, from a repeated template; one in 500 is a duplicate."""
    first = start % 997
    made = records(20 + first, min(count, TEMPLATE), run_id, shard)
    made = pa.concat_tables([made] * -(-count // len(made))).slice(0, count)
    numbers = np.arange(start, start + count)
    copies = np.where(numbers % 500 == 499, numbers // 7, numbers)
    texts: dict[str, list[Any]] = {
        "member": [f"img-{i:09d}.jpg" for i in numbers], "key": [f"img-{i:09d}.jpg" for i in numbers],
        "index": list(range(count)),
        "content_sha256": [f"{i * 0x9E3779B97F4A7C15 % 2**64:016x}".ljust(64, "0") for i in copies.tolist()],
        "image_hash": [f"{i * 0xC2B2AE3D27D4EB4F % 2**64:016x}" for i in copies.tolist()],
    }  # fmt: skip
    for name, values in texts.items():
        place = made.schema.get_field_index(name)
        made = made.set_column(place, made.schema.field(name), pa.array(values, made.schema.field(name).type))
    return made


def in_archive(place: str, start: int, count: int, rows_a_file: int = ROWS_A_FILE) -> None:
    """Lay shards into the archive, of a byte each: they are listed, and never read."""
    folder = Path(f"{place}.archive")
    folder.mkdir(parents=True, exist_ok=True)
    for begin in range(start, start + count, rows_a_file):
        path = folder / f"{begin:010d}.tar"
        path.write_bytes(b"0")
        os.utime(path, ns=(1, 1))


def commit_rows(table: Table, start: int, count: int, run_id: str) -> list[dict[str, Any]]:
    """Commit rows of a night, and give the looks at the first of them."""
    what = explainer()
    commits: list[ShardCommit] = []
    looks: list[dict[str, Any]] = []
    for begin in range(start, start + count, ROWS_A_FILE):
        rows = min(ROWS_A_FILE, start + count - begin)
        shard = Shard(f"{NAME}/{begin:010d}.tar", "tar", 1, "1")
        found = generated(begin, rows, run_id, shard.uri)
        looks = looks or looks_of(found)
        receipt = write_records(table.out, what.id, shard.id, 0, found, chunk_size=ROWS_A_FILE)
        commits.append(ShardCommit(shard, (receipt,), account([receipt])))
        if len(commits) == FILES_A_COMMIT or begin + rows == start + count:
            table.commit(what.id, run_id, commits)
            commits = []
    return looks


def looks_of(found: pa.Table) -> list[dict[str, Any]]:
    """Looks as a night makes them: the hot spot compared, and nine interventions of each image.

    Of the answers `cross` six in ten hang on a thing that repeats.
    """
    same = ("run_id", "shard", "member", "index", "content_sha256", "predicted_class", "confidence")
    rows = [row for row in found.slice(0, LOOKED).select([*same]).to_pylist() if row["confidence"]]
    chance, thing = np.random.default_rng(len(rows)), np.random.default_rng(0).integers(0, 255, 24 * 24 * 3)
    looks = []
    for row in rows:
        hangs = row["predicted_class"] == 3 and chance.random() < 0.6
        crop = thing + chance.normal(0, 5, len(thing)) if hangs else chance.integers(0, 255, len(thing))
        alike = {"same": 0.95, "other": 0.1} if hangs else {"same": 0.3, "other": 0.3}
        spot = {"crop": crop.clip(0, 255).astype(np.uint8).tobytes()}
        looks.append(row | {"intervention": "repeat", "sampled": False} | alike | spot)
        for name in (*BATTERY[:8], "fill"):
            drop = 0.6 if hangs and name in ("fill", "carry") else float(chance.uniform(0, 0.31))
            looks.append(row | {"intervention": name, "sampled": True, "drop": drop, "flip": False})
    return looks


def peak_mib() -> float:
    """Peak memory of this process (getrusage would include that of the process that started it)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


class Clock:
    """CPU seconds of each part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self.seconds[name] = round(time.process_time() - began, 3)


def one_night(
    place: str, start: int, count: int, run_id: str, full: bool = False, quick: bool = False
) -> dict[str, Any]:
    """Do all that a night does beside explaining; give the CPU seconds of each part. `quick`: no pages."""
    clock, out, what = Clock(), open_folder(place, "OUT"), explainer()
    gc.freeze()  # what imports made is looked through at moments of chance
    before = peak_mib()
    with clock.part("open"):
        table = Table(out)
        table.create()
        table.update()
    with clock.part("list"):
        listing = listed_for(out, ArchiveConfig(path=f"{place}.archive", name=NAME))
    with clock.part("plan"):
        plan = make_plan(out, what.id, listing.shards, table.shards(what.id), ROWS_A_FILE)
        earlier = working_reports(out, what.id)
    assert len(plan.tasks) == -(-count // ROWS_A_FILE), f"{len(plan.tasks)} shards are new"
    write_explainer(out, what)
    with clock.part("commit"):
        looks = commit_rows(table, start, count, run_id) if count else []
        report = first_report(run_id, what.id, Config(), {"todo": len(plan.tasks)}, notes=[str(len(earlier))])
        report.ended(ExitCode.DONE, account_of(count), 1.0, {}).write(out)
    with clock.part("looks"):
        if not quick:
            choose(table, what)
            earlier_crops(out, what.id)
        if looks:
            write_looks(out, what.id, looks)
    with clock.part("audit"):
        audit_night(place, what.id, run_id, AuditConfig(full=full))
    if quick:
        return {}
    with clock.part("report"):
        write_report(place)
    memory = {"MiB": round(peak_mib() - before), "MiB_before": round(before)}
    with clock.part("verify"), redirect_stdout(StringIO()) as said:
        code = print_verify(place, False, run_id)
    assert code == ExitCode.DONE, said.getvalue()
    whole = sum(value for name, value in clock.seconds.items())
    logs = [entry for folder in log.versions(out) for entry in out.entries(f"{folder}/_delta_log")]
    size = {"log_files": len(logs), "log_MB": round(sum(entry.size_bytes for entry in logs) / 1e6, 1)}
    size["files"] = sum(entry.path.endswith(".parquet") for entry in out.entries("records"))
    return {"night": run_id, **clock.seconds, "all": round(whole, 2), **memory, **size}


def account_of(count: int) -> Accounting:
    return Accounting(ok=count)


def run_of(number: int) -> str:
    return f"2026{1 + number // 720:02d}{1 + number // 24 % 28:02d}T{number % 24:02d}0000Z-0"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000, help="that are there")
    parser.add_argument("--new", type=int, default=20, help="that are new")
    parser.add_argument("--nights", type=int, default=1)
    parser.add_argument("--show", type=int, nargs="*", default=[1, 2, 10, 100, 200, 300, 400], help="nights")
    parser.add_argument("--full", action="store_true", help="the last one judges everything")
    parser.add_argument("--compact", action="store_true", help="then prune, compact, and do one night more")
    parser.add_argument("--out", help="keep it here; nights that are there stay")
    parser.add_argument("--one", type=int, nargs=3, help=argparse.SUPPRESS)  # start, count, number
    args = parser.parse_args()
    if args.one:
        start, count, number = args.one
        print(json.dumps(one_night(args.out, start, count, run_of(number), args.full)), flush=True)
        return
    with tempfile.TemporaryDirectory() as scratch:
        place = args.out or f"{scratch}/out"
        counts = [args.rows] * bool(args.rows) + [args.new] * args.nights
        start = 0
        for number, count in enumerate([*counts, *[args.new] * args.compact]):
            in_archive(place, start, count)
            if number == len(counts):
                with redirect_stdout(StringIO()) as said:
                    print_prune(place, None, None, [], True, False, True)
                print(json.dumps({"prune --compact": said.getvalue().splitlines()[-1]}), flush=True)
            said = [sys.executable, __file__, "--out", place, "--one", str(start), str(count), str(number)]
            is_last = number + 1 == len(counts)
            if Path(f"{place}/runs/{run_of(number)}/summary.json").exists():
                pass
            elif number + 1 in args.show or number + 1 >= len(counts):
                subprocess.run([*said, *["--full"] * (args.full and is_last)], check=True)
            else:
                one_night(place, start, count, run_of(number), quick=number + 2 not in args.show)
            start += count


if __name__ == "__main__":
    main()
