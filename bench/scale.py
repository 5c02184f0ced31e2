"""Planning at scale: a million shards listed and compared with a table of a hundred million rows.

    python bench/scale.py                     1,000,000 shards, of which 1,000 are new

The table is real (a Delta log with an entry per record file); the record files are not there, because no
plan may open them. Printed: seconds and peak memory of opening the table, of planning, and of one commit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from deltalake import DeltaTable

from camray.ledger.commit import CommitDesk
from camray.ledger.committed import PARTITION, file_name
from camray.ledger.plan import make_plan
from camray.ledger.table import Table
from camray.records import Chunk, Shard, ShardEnd
from camray.storage import open_folder

EXPLAINER, ROWS = "0123456789abcdef", 100
BATCH = 50_000  # files a commit


def shard(i: int) -> Shard:
    """Shard i of the archive."""
    return Shard(uri=f"s3://archive/2026/{i:08d}.tar", format="tar", size_bytes=10**7, version=f"etag-{i}")


def fill(out: str, count: int) -> None:
    """Commit one record file for each of the first `count` shards: the log alone, written by hand."""
    Table(open_folder(out, "OUT")).create()
    add: dict[str, object] = {"partitionValues": {PARTITION: EXPLAINER}, "size": 10**5}
    add |= {"modificationTime": 0, "dataChange": True, "stats": json.dumps({"numRecords": ROWS})}
    for version, start in enumerate(range(0, count, BATCH), 1):
        with (Path(out) / f"records/_delta_log/{version:020d}.json").open("w") as log:
            for i in range(start, min(start + BATCH, count)):
                path = file_name(EXPLAINER, shard(i).id, 0, "0" * 8)
                log.write(json.dumps({"add": {"path": path, **add}}) + "\n")
    DeltaTable(f"{out}/records").create_checkpoint()


def peak_gib() -> float:
    """Peak memory of this process (getrusage would include that of the process that started it)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20


def plan(out: str, count: int, new: int) -> None:
    """What the driver does before and around the work."""
    began = time.perf_counter()

    def tell(step: str, note: str = "") -> None:
        seconds = time.perf_counter() - began
        print(f"    {step:<24} after {seconds:6.1f} s, peak {peak_gib():5.2f} GiB   {note}", flush=True)

    tell("imports")
    shards = [shard(i) for i in range(new, count + new)]  # the archive: the oldest are gone, as many came
    tell("archive listed", "(objects only)")
    folder = open_folder(out, "OUT")
    table = Table(folder)
    tell("table opened")
    committed = table.shards(EXPLAINER)
    tell("committed files read", f"{count * ROWS:,} rows, none of them read")
    made = make_plan(folder, EXPLAINER, shards, committed, 256)
    tell("planned", f"{len(made.tasks):,} of {count:,} to do")
    assert len(made.tasks) == new
    assert made.gone == new
    desk = CommitDesk(table, EXPLAINER, "run", made.tasks)
    ends = [Chunk(t.shard.id, 0, ShardEnd(0, 0)) for t in made.tasks]
    done = desk.take(ends)
    tell("committed", f"{len(done):,} shards; goals 60 s, 2 GiB")


def main() -> None:
    """Build the table, then plan in a process of its own, so that its memory is its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--new", type=int, default=1000)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.out:
        plan(args.out, args.shards, args.new)
        return
    with tempfile.TemporaryDirectory() as place:
        out = str(Path(place) / "out")
        began = time.perf_counter()
        fill(out, args.shards)
        print(f"{args.shards:,} shards; the table took {time.perf_counter() - began:.0f} s to make")
        command = [sys.executable, __file__, "--out", out]
        command += ["--shards", str(args.shards), "--new", str(args.new)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
