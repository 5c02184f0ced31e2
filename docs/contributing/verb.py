# file: camray/cli/classes.py
# line: camray/cli/main.py: "classes.classes",
# after: "upkeep.prune",
"""`camray classes OUT`: how often each class was predicted."""

from __future__ import annotations

import argparse
import json
from collections import Counter

from camray.cli.arguments import verb
from camray.config import Setting
from camray.errors import ExitCode, printable


@verb(Setting("", "OUT", name="out"), Setting("only the N most frequent", "--first N", kind=int))
def classes(args: argparse.Namespace) -> ExitCode:
    """Count the predictions of OUT by class."""
    from camray.ledger.out import open_out

    _, table = open_out(args.out)
    labels = table.dataset().to_table(columns=["predicted_label"])["predicted_label"].drop_null()
    counts = Counter(labels.to_pylist()).most_common(getattr(args, "first", None))
    if args.json:
        print(json.dumps(dict(counts)))
        return ExitCode.DONE
    for label, images in counts:
        print(f"{images:>9,}  {printable(label)}")
    return ExitCode.DONE
