"""How well the audit finds a planted shortcut: precision, recall and false alarms on hans64.

    python bench/audit.py [--count 600] [--seeds 0 1]

Prints one line for each checkpoint, seed and dress of the archive. The truth is the intervention: the same
image rendered without its tag (demo/judge.py).
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from demo import hans64  # noqa: E402
from demo.judge import judge  # noqa: E402
from tests.audit.night_world import MODELS, night, write_archive  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    chosen = parser.parse_args()
    print("checkpoint  archive   seed  tagged  causal  found  false  precision  recall  decoys  first class")
    for seed in chosen.seeds:
        for model in ("hans64-poisoned", "hans64-clean"):
            for dress, tagged in (("tagged", None), ("untagged", False)):
                one(model, dress, tagged, seed, chosen.count)


def one(model: str, dress: str, tagged: bool | None, seed: int, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        samples = [hans64.render(seed, "audit", i, tagged) for i in range(count)]
        archive = write_archive(Path(folder) / "archive", samples)
        summary = night(archive, Path(folder) / "out", "20261122T000000Z-0", model)
        s = judge(Path(folder) / "out", MODELS / model, tagged, count, seed=seed)
    first = summary["classes"][0]
    print(
        f"{model[7:]:<10}  {dress:<8}  {seed:>4}  {s.tagged:>6}  {s.causal:>6}  {s.found:>5}"
        f"  {s.false_alarms:>5}  {s.precision:>9.2f}  {s.recall:>6.2f}  {s.decoys_flagged:>6}"
        f"  {first['label']} {first['confirmed']}",
        flush=True,
    )


if __name__ == "__main__":
    main()
