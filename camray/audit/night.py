"""One night: judge the records, compare with the nights before, decide the gate, say it in a few files.

runs/<run>/summary.json   counts, classes, drift, gate, settings: what the report and machines read
runs/<run>/metrics.prom   the same numbers for Prometheus' textfile collector
runs/<run>/message.txt    one paragraph for a chat
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from camray.audit.drift import as_rows, compare_nights, level_of
from camray.audit.gate import DRIFT_LEVELS, parse_gate
from camray.audit.judge import Audit
from camray.audit.night_state import NightState
from camray.audit.reviewed import decisions, take_in
from camray.audit.update import compare_models
from camray.config import AuditConfig
from camray.errors import ExitCode, UsageError, printable
from camray.ledger.out import open_out
from camray.ledger.runs import RUNS
from camray.storage import Folder

CONFIDENCE_DISTANCE, HEAT_COSINE = 0.01, 0.99  # a GPU in place of a CPU stays within both


def audit_night(
    place: str, explainer: str, run_id: str, settings: AuditConfig, reviewed: Sequence[str] = ()
) -> dict[str, Any]:
    """Audit the records of one explainer and write the files of the night; give the summary.

    `reviewed` names files of decisions that the report saved.

    Raises:
        UsageError: no records, or a gate that cannot be read.
    """
    conditions = parse_gate(settings.fail_on)
    out, table = open_out(place)
    nights = read_summaries(out)
    before = [s for s in nights if s["explainer"] == explainer]
    seen = {run for s in before for run in s["covers"]}
    taken = take_in(out, reviewed)
    audit = Audit(out, table, explainer, settings)
    audit.reviewed = decisions(out, explainer)
    audit.run(seen, run_id)
    night = audit.night
    rates = night.rates()
    summary: dict[str, Any] = {
        "run_id": run_id,
        "explainer": explainer,
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "previous": before[-1]["run_id"] if before else None,
        "covers": sorted(audit.covered - seen),
        "records_version": table.delta.version() if table.delta else None,
        "settings": dataclasses.asdict(settings),
        "images": {"archive": audit.all.ok, "night": night.ok, "rows": night.rows, "failed": night.failed},
        "rates": rates,
        "verdicts": dict(audit.verdicts),
        "archive_verdicts": dict(audit.all_verdicts),
        "archive_rates": audit.all.rates(),
        "errors": dict(audit.errors),
        "classes": night.ranked(audit.class_names)[:1000],
        "archive_classes": audit.all.ranked(audit.class_names)[:1000],
        "drift": _drift(out, audit.state, before, settings.baseline),
        "canary": _canary(out, run_id),
        "decisions_taken_in": taken,
        "model_update": None,
    }
    if nights and not before:  # a new model or setting: what did it change?
        summary["model_update"] = compare_models(table, nights[-1]["explainer"], explainer, audit.class_names)
    fired = [c.text for c in conditions if night.rows and c.fires(rates, summary["drift"]["level"])]
    summary["gate"] = {"conditions": [c.text for c in conditions], "fired": fired}
    summary["message"] = message(summary)
    out.write(f"{RUNS}/{run_id}/state.json", json.dumps(audit.state.to_json()).encode())
    _write(out, run_id, summary)
    return summary


def read_state(out: Folder, run_id: str) -> dict[str, Any] | None:
    """Read the sums of a night: histograms and mean maps. None where there are none."""
    path = f"{RUNS}/{run_id}/state.json"
    return json.loads(out.read(path)) if out.exists(path) else None


def _canary(out: Folder, run_id: str) -> dict[str, Any] | None:
    """Read how the same images fared tonight; None where they were not looked at."""
    path = f"{RUNS}/{run_id}/canary.json"
    return json.loads(out.read(path)) if out.exists(path) else None


def stack_changed(canary: dict[str, Any] | None) -> bool:
    """Tell whether the same images fare differently: more than rounding on another device explains."""
    if not canary or not canary["images"]:
        return False
    far = canary["confidence_distance"] > CONFIDENCE_DISTANCE or canary["heat_cosine"] < HEAT_COSINE
    return bool(canary["changed"] or far)


def _drift(
    out: Folder, tonight: NightState, before: Sequence[dict[str, Any]], baseline: str | None
) -> dict[str, Any]:
    """Compare with the last night that had new images, and with the pinned one."""
    nights = [s["run_id"] for s in before if s["images"]["night"]]
    asked = {"last night": nights[-1] if nights else None, "the baseline": baseline}
    comparisons = []
    for against, run_id in asked.items():
        state = read_state(out, run_id) if run_id else None
        if state is None and against == "the baseline" and run_id:
            raise UsageError(
                "audit.baseline", f"{printable(run_id)} is no audited run", "see `camray status OUT`"
            )
        if state is not None:
            found = compare_nights(NightState.from_json(state), tonight)
            comparisons.append(
                {"against": against, "run_id": run_id, "level": level_of(found), "rows": as_rows(found)}
            )
    worst = max((c["level"] for c in comparisons), key=DRIFT_LEVELS.index, default="none")
    return {"level": worst, "comparisons": comparisons}


def exit_code(summary: dict[str, Any]) -> ExitCode:
    """Give 5 where the gate fired."""
    return ExitCode.GATE if summary["gate"]["fired"] else ExitCode.DONE


def read_summaries(out: Folder) -> list[dict[str, Any]]:
    """Read the summary of every night, oldest first."""
    names = [e.path for e in out.entries(RUNS) if e.path.endswith("/summary.json")]
    return [json.loads(out.read(f"{RUNS}/{name}")) for name in names]


def message(summary: dict[str, Any]) -> str:
    """Say the night in one paragraph."""
    images, rates, verdicts = summary["images"], summary["rates"], summary["verdicts"]
    if not images["rows"]:
        return f"camray: nothing new; {images['archive']:,} images in the archive."
    said = f"camray: {images['night']:,} new images explained, {images['failed']:,} failed."
    confirmed = verdicts.get("right_wrong_reason", 0)
    said += (
        f" Right for the wrong reason: {confirmed:,} confirmed ({rates['confirmed_rate']:.2%} of all answers,"
        f" right or wrong, hang on the border),"
    )
    said += f" {verdicts.get('right_wrong_reason_suspected', 0):,} suspected."
    first = summary["classes"][0] if summary["classes"] else None
    if first and first["confirmed"]:
        name = printable(first["label"] or f"class {first['class_id']}", 60)
        said += f" Most of all in {name}: {first['confirmed']:,} of {first['images']:,}."
    said += f" Wrong: {verdicts.get('wrong', 0):,}; label suspects: {verdicts.get('label_suspect', 0):,}."
    said += f" Drift: {summary['drift']['level']}."
    if stack_changed(canary := summary["canary"]):
        said += (
            f" The stack is another one: of {canary['images']} images explained before, {canary['changed']}"
            f" get another answer, and confidence moves by up to {canary['confidence_distance']:.3f}."
        )
    if update := summary["model_update"]:
        said += (
            f" The model changed: {update['agreement']:.1%} of {update['images']:,} answers are as before,"
        )
        said += f" {update['repaired']:,} are right now that were wrong, {update['broken']:,} the other way."
    if summary["gate"]["fired"]:
        said += f" Gate: {', '.join(summary['gate']['fired'])}."
    return said


def _write(out: Folder, run_id: str, summary: dict[str, Any]) -> None:
    folder = f"{RUNS}/{run_id}"
    out.write(f"{folder}/metrics.prom", _metrics(summary).encode())
    out.write(f"{folder}/message.txt", (summary["message"] + "\n").encode())
    out.write(
        f"{folder}/summary.json", json.dumps(summary, indent=1).encode()
    )  # last: it says the night is done


def _metrics(summary: dict[str, Any]) -> str:
    """Write the numbers as gauges of Prometheus."""
    label = f'{{explainer="{summary["explainer"]}"}}'
    gauges = {f"camray_audit_{name}": value for name, value in summary["rates"].items()}
    gauges |= {f"camray_audit_images_{name}": value for name, value in summary["images"].items()}
    gauges["camray_audit_gate_fired"] = len(summary["gate"]["fired"])
    return "".join(f"# TYPE {name} gauge\n{name}{label} {value}\n" for name, value in gauges.items())
