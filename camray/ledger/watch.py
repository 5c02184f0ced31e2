"""What a monitor reads of the last run: a few gauges in one file, which each run replaces.

The file is of the form that node_exporter's textfile collector reads. It says when a run last went well, also
where tonight's was refused before it came to OUT: that time, and the figures of the last audit, are taken
over from the file of before. A night that was refused must not silence last night's alarm.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from camray.errors import UsageError, printable
from camray.records import Accounting
from camray.storage import open_folder

GAUGES = {  # name: what it is
    "camray_last_run_exit_code": "exit code of the last run",
    "camray_last_run_timestamp_seconds": "when the last run ended",
    "camray_last_success_timestamp_seconds": "when a run last ended with 0, with or without new images",
    "camray_last_run_images": "images of the last run, by what became of them",
}
_SUCCESS = "camray_last_success_timestamp_seconds"


def check_metrics_file(name: str) -> None:
    """Refuse a place that the collector would not read, or where nothing can be written.

    Raises:
        UsageError: no folder, no permission, or another ending than `.prom`.
    """
    path = Path(name).expanduser()
    if "://" in name or path.suffix != ".prom":
        said = f"{printable(name)} is not a local file with the ending .prom"
        raise UsageError("--metrics-file", said, "node_exporter reads *.prom of one folder")
    if not path.parent.is_dir() or path.is_dir():
        raise UsageError("--metrics-file", f"there is no folder for {printable(name)}", "make it first")
    folder = open_folder(str(path.parent), "--metrics-file")
    try:
        folder.write(f".{path.name}.try", b"")
        folder.delete(f".{path.name}.try")
    except OSError as error:
        why = printable(f"{name}: {error.strerror or error}")
        raise UsageError("--metrics-file", why, "let the job's user write there") from None


def gauges(
    out: str, code: int, ended_s: float, success_s: float | None, images: Accounting, more: str = ""
) -> str:
    """Write the gauges of a run into OUT; times in seconds since 1970, `more`: gauges of its audit.

    A success of the future, of a clock that was ahead, is left out: it would silence alarms until then.
    """
    label = 'out="' + "".join(_ESCAPES.get(c, c) for c in printable(out, 1000)) + '"'
    counts = {"ok": images.ok, "failed": images.n_failed, "skipped": images.skipped}
    lines = {
        "camray_last_run_exit_code": [f"{{{label}}} {code}"],
        "camray_last_run_timestamp_seconds": [f"{{{label}}} {ended_s:.0f}"],
        _SUCCESS: []
        if success_s is None or success_s > time.time() + 1
        else [f"{{{label}}} {success_s:.0f}"],
        "camray_last_run_images": [f'{{{label},status="{s}"}} {n}' for s, n in counts.items()],
    }
    said = ""
    for name, values in lines.items():
        if values:
            said += f"# HELP {name} {GAUGES[name]}\n# TYPE {name} gauge\n"
            said += "".join(f"{name}{value}\n" for value in values)
    return said + more


_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n"}


def write_gauges(name: str, text: str) -> None:
    """Replace the file, at once and whole."""
    path = Path(name).expanduser()
    open_folder(str(path.parent), "--metrics-file").write(path.name, text.encode())


def kept_from(name: str) -> tuple[float | None, str]:
    """Read from an earlier file when a run last went well (None: it does not say), and the audit's gauges."""
    try:
        text = Path(name).expanduser().read_text("utf-8")
    except (OSError, ValueError):
        return None, ""
    found = re.search(rf"^{_SUCCESS}\{{.*\}} ([0-9]+)$", text, re.M)
    audit = [line for line in text.splitlines(keepends=True) if "camray_audit_" in line]
    return float(found[1]) if found else None, "".join(audit)
