"""What a night costs beside explaining: seconds and memory of each part of the audit.

    python bench/nights.py --rows 20000 --new 20                 one night on so many rows
    python bench/nights.py --rows 0 --new 20 --nights 500        so many nights in one OUT

Records and looks are generated, no model is asked. Each night is a process of its own, so that its memory is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import reduce, wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from camray.audit import night, report  # noqa: E402
from camray.audit.looks import BATTERY, write_looks  # noqa: E402
from camray.config import AuditConfig  # noqa: E402
from camray.ledger.runs import write_explainer  # noqa: E402
from camray.ledger.sink import write_records  # noqa: E402
from camray.ledger.table import ShardCommit, Table  # noqa: E402
from camray.records import Shard, account  # noqa: E402
from camray.storage import open_folder  # noqa: E402
from tests.audit.report_world import explainer, records  # noqa: E402

TEMPLATE, ROWS_A_FILE, FILES_A_COMMIT = 5000, 20_000, 50
LOOKED = 64  # images of a night that get looks
PARTS = {  # what is timed: module -> functions
    "camray.audit.night": ("audit_night", "read_nights", "_nights", "judge_archive", "_drift", "_write"),
    "camray.audit.judge": ("read_carried", "write_carried", "put_rows", "write_whole"),
    "camray.audit.cause_book": ("CauseBook.__init__", "CauseBook.close"),
    "camray.audit.report": (
        "write_report", "latest_nights", "audit_rows", "written_rows", "clusters_of_classes", "cause_cards"
    ),
}  # fmt: skip


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


def add_rows(place: str, start: int, count: int, run_id: str, rows_a_file: int = ROWS_A_FILE) -> None:
    """Commit rows of a night, and looks at the first of them."""
    out, what = open_folder(place, "OUT"), explainer()
    write_explainer(out, what)
    table = Table(out)
    table.create()
    commits: list[ShardCommit] = []
    for begin in range(start, start + count, rows_a_file):
        rows = min(rows_a_file, start + count - begin)
        shard = Shard(f"s3://archive/{begin:010d}.tar", "tar", 1, "1")
        found = generated(begin, rows, run_id, shard.uri)
        if begin == start:
            write_looks(out, what.id, looks_of(found))
        receipt = write_records(out, what.id, shard.id, 0, found, chunk_size=rows_a_file)
        commits.append(ShardCommit(shard, (receipt,), account([receipt])))
        if len(commits) == FILES_A_COMMIT or begin + rows == start + count:
            table.commit(what.id, run_id, commits)
            commits = []


def looks_of(found: pa.Table) -> list[dict[str, Any]]:
    """Looks as a night makes them: the hot spot compared, and eight interventions of each image."""
    same = ("run_id", "shard", "member", "index", "content_sha256", "predicted_class", "confidence")
    rows = [row for row in found.slice(0, LOOKED).select([*same]).to_pylist() if row["confidence"]]
    chance = np.random.default_rng(rows[0]["index"])
    looks = []
    for row in rows:
        crop = chance.integers(0, 255, 24 * 24 * 3, np.uint8).tobytes()
        alike = {"same": 0.3, "other": 0.3, "crop": crop}
        looks.append(row | {"intervention": "repeat", "sampled": False} | alike)
        for name in BATTERY[:8]:
            drop = float(chance.uniform(0, 0.35))
            looks.append(row | {"intervention": name, "sampled": True, "drop": drop, "flip": False})
    return looks


def peak_mib() -> float:
    """Peak memory of this process (getrusage would include that of the process that started it)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


def timed(seconds: dict[str, float], name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """Add up the CPU seconds of a function."""

    @wraps(work)
    def run(*args: Any, **named: Any) -> Any:
        began = time.process_time()
        try:
            return work(*args, **named)
        finally:
            seconds[name] += time.process_time() - began

    return run


def one_night(place: str, run_id: str, full: bool) -> None:
    """Audit and report; print CPU seconds of each part."""
    seconds: dict[str, float] = defaultdict(float)
    for module, names in PARTS.items():
        for name in names:
            *path, last = name.split(".")
            owner = reduce(getattr, path, import_module(module))
            setattr(owner, last, timed(seconds, name, getattr(owner, last)))
    before, wall = peak_mib(), time.perf_counter()
    night.audit_night(place, explainer().id, run_id, AuditConfig(full=full))
    report.write_report(place)
    wall = time.perf_counter() - wall
    memory = {"MiB": round(peak_mib() - before), "MiB_before": round(before)}
    parts = {name: round(took, 2) for name, took in seconds.items()}
    print(json.dumps({"night": run_id, "wall": round(wall, 2), **parts, **memory}), flush=True)


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
    parser.add_argument("--out", help="keep it here")
    parser.add_argument("--audit", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.audit:
        one_night(args.out, args.audit, args.full)
        return
    shown = set(args.show)
    with tempfile.TemporaryDirectory() as scratch:
        place = args.out or f"{scratch}/out"
        counts = [args.rows] * bool(args.rows) + [args.new] * args.nights
        start = 0
        for number, count in enumerate(counts):
            add_rows(place, start, count, run_of(number))
            start += count
            if number + 1 in shown or number + 1 == len(counts):
                said = [sys.executable, __file__, "--out", place, "--audit", run_of(number)]
                subprocess.run([*said, *["--full"] * args.full], check=True)
            else:
                night.audit_night(place, explainer().id, run_of(number), AuditConfig())
                if number + 2 in shown or number + 2 == len(counts):
                    report.write_report(place)  # of which the next takes over what is as it was


if __name__ == "__main__":
    main()
