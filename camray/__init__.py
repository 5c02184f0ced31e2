"""camray explains every image of an archive: which class a classifier gave it and where it looked.

archive ──> plan ──> read ──> decode ──> explain ──> sink ──> commit ──> review
(shards)  (driver)  (CPU)     (CPU)     (actors)    (CPU)   (driver)   (readers)
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from camray.config import Config
from camray.errors import CamrayError, ErrorCode, ExitCode, UsageError
from camray.machine import on_this_machine as _on_this_machine

if TYPE_CHECKING:
    from camray.audit.job import AuditOutcome
    from camray.compare.job import CompareOutcome
    from camray.job.run import Outcome
    from camray.serve.opened import Records

try:
    __version__ = version("camray")
except PackageNotFoundError:  # run from a bare checkout, as `ray job submit --working-dir` does
    __version__ = "0.1.0"

__all__ = [
    "CamrayError",
    "Config",
    "ErrorCode",
    "ExitCode",
    "UsageError",
    "__version__",
    "audit_archive",
    "compare_methods",
    "explain_archive",
    "open_records",
]


@_on_this_machine()
def explain_archive(archive: str, out: str, model: str, **settings: Any) -> Outcome:
    """Explain an archive from Python, as `camray explain ARCHIVE OUT --model MODEL` does.

    Further settings go by their dotted names: ``**{"method.target": "label", "run.batch_size": 32}``.
    Returns a `camray.job.run.Outcome`: exit code, run id, accounting, OUT, explainer id.

    Raises:
        UsageError: a bad setting; nothing was written.
        CamrayError: with `exit_code`, for everything else camray stops at.
    """
    from camray.audit.gallery import show_gallery
    from camray.flow.progress import Reporter
    from camray.job import run

    reporter = Reporter()
    outcome = run.explain(_config("explain", archive, out, model, settings), reporter)
    show_gallery(outcome, reporter)
    return outcome


@_on_this_machine()
def audit_archive(archive: str, out: str, model: str, **settings: Any) -> AuditOutcome:
    """Explain what is new in an archive and audit it from Python, as `camray audit` does.

    Further settings go by their dotted names: ``**{"audit.fail_on": "confirmed_rate>0.5%"}``.
    Returns a `camray.audit.job.AuditOutcome`: exit code, run id, OUT, explainer, summary, page.

    Raises:
        UsageError: a bad setting; nothing was written.
        CamrayError: with `exit_code`, for everything else camray stops at.
    """
    from camray.audit import job as audit
    from camray.flow.progress import Reporter

    return audit.audit(_config("audit", archive, out, model, settings), Reporter())


@_on_this_machine()
def compare_methods(
    archive: str, out: str, model: str, methods: Sequence[str], **settings: Any
) -> CompareOutcome:
    """Measure methods on a sample of an archive from Python, as `camray compare` does.

    Further settings go by their dotted names: ``**{"archive.sample": 500, "compare.baseline": "zero"}``.
    Returns a `camray.compare.job.CompareOutcome`: exit code, OUT, the sample's id, the place of the page.

    Raises:
        UsageError: a bad setting; nothing was written.
        CamrayError: with `exit_code`, for everything else camray stops at.
    """
    from camray.compare import job as compare
    from camray.flow.progress import Reporter

    given = {"compare.methods": list(methods), **settings}
    return compare.compare(_config("compare", archive, out, model, given), Reporter())


def _config(verb: str, archive: str, out: str, model: str, settings: dict[str, Any]) -> Config:
    from camray.options import check_use, load

    check_use(settings, verb)
    return load(None, {"archive.path": archive, "out": out, "model.name": model, **settings}, verb)


def open_records(out: str, explainer: str = "latest") -> Records:
    """Open the committed records of OUT as a `pyarrow.dataset.Dataset` that can do more; no row is read yet.

    An image has rows of each explainer (model, method, setting) that was ever used. `explainer` is an id,
    ``"latest"``: the one that was committed last, or ``"all"``, told apart by the column of that name.
    Beside a dataset's own methods: ``.to_pandas()``, ``.to_polars()``, ``.to_arrow()``, ``.sql(query)`` of
    the table ``records``, ``.overlay(row)``, ``.mean_map(class)``, ``.compare(other)``.

    Raises:
        UsageError: OUT holds no camray records, or none of that explainer.
    """
    from camray.serve.opened import Records

    return Records(out, explainer)
