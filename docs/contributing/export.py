# file: camray/audit/jsonl.py
# line: camray/audit/__init__.py: "jsonl": "camray.audit.jsonl:jsonl",
# after: "duckdb": "camray.audit.export:duckdb_views",
"""The queue as JSON Lines: `camray report OUT --export jsonl --to FOLDER`.

Flows in: the rows of the queue. Flows out: queue.jsonl, one image a line, without its heatmap.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from camray.audit.export import Files, Row
from camray.storage import Folder


def jsonl(_out: Folder, rows: Sequence[Row], _prefix: str) -> Files:
    """Give one file: what the report shows of each image, the most suspicious first."""
    lines = [json.dumps({name: value for name, value in row.items() if name != "heat"}) for row in rows]
    yield "queue.jsonl", "".join(f"{line}\n" for line in lines).encode()
