"""One audited night, from config to exit code: explain what is new, judge it, write the report.

Config ──camray.job.run──> records in OUT ──camray.audit──> verdicts, summary, pages, exit code
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from camray.audit.gate import parse_gate
from camray.audit.looks import look_again
from camray.audit.night import audit_night
from camray.audit.report import write_report
from camray.audit.reviewed import check_reviews
from camray.config import Config
from camray.errors import ExitCode, html_list
from camray.flow.progress import Reporter
from camray.job.end import told
from camray.job.run import COMPLETE, explain_new


@dataclass(frozen=True, slots=True)
class AuditOutcome:
    """How the night ended. `summary` is that of runs/<run_id>/summary.json, empty where the run stopped."""

    code: ExitCode
    run_id: str
    out: str
    explainer: str
    summary: dict[str, Any] = field(repr=False)
    page: str

    def _repr_html_(self) -> str:
        lines = [f"run {self.run_id} of explainer {self.explainer}: {self.code.meaning}"]
        return html_list([*lines, self.summary.get("message", ""), f"report: {self.page}"])


def audit(config: Config, reporter: Reporter, reviewed: Sequence[str] = ()) -> AuditOutcome:
    """Explain what is new, audit it, and write the report; `reviewed` names files of decisions.

    Raises:
        CamrayError: with the exit code of its class.
    """
    parse_gate(config.audit.fail_on)
    check_reviews(reviewed)
    with told(config, reporter) as ending:
        ran = explain_new(config, reporter, ending, look_again if config.audit.looks else None)
        if ran.code not in COMPLETE:
            ending.code = ran.code
            return AuditOutcome(ran.code, ran.run_id, ran.out, ran.explainer, {}, "")
        night = audit_night(ran.out, ran.explainer, ran.run_id, config.audit, reviewed)
        ending.said, ending.summary = night.message.removeprefix("camray: "), night.to_json()
        reporter.say(ending.said, **night.rates)
        page = write_report(ran.out)
        reporter.say(f"report: {page}")
        ending.code = night.exit_code or ran.code
    return AuditOutcome(ending.code, ran.run_id, ran.out, ran.explainer, ending.summary, page)
