"""What `import camray` promises: few names, all there, all said, and nothing heavy loaded."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import camray
import camray.cam
from camray.compare.panel import SCORES
from camray.ledger.table import RECORDS, Kind
from camray.records import SCHEMA_VERSION
from camray.storage import open_folder
from tests.ledger.ledger_world import E1, E2, committed, rows, shard


def test_few_names_sorted_and_all_there() -> None:
    assert list(camray.__all__) == sorted(set(camray.__all__))
    assert 0 < len(camray.__all__) <= 12
    for name in camray.__all__:
        assert getattr(camray, name) is not None


def test_no_public_name_is_left_out() -> None:
    def is_own(value: object) -> bool:
        return callable(value) and getattr(value, "__module__", "").startswith("camray")

    public = {name for name, value in vars(camray).items() if not name.startswith("_") and is_own(value)}
    assert public <= set(camray.__all__)


def test_every_name_says_what_it_is() -> None:
    for name in camray.__all__:
        value = getattr(camray, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name
    assert "archive" in (camray.__doc__ or "")


def test_import_is_light() -> None:
    code = "import sys, camray; from camray import *; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "timm", "cv2", "deltalake"} & set(done.stdout.split())


def test_version_is_a_version() -> None:
    assert [part.isdigit() for part in camray.__version__.split(".")[:2]] == [True, True]


SETTINGS, PLACES = "**settings: Any", "archive: str, out: str, model: str"
SIGNATURES = {
    "audit_archive": f"({PLACES}, {SETTINGS}) -> AuditOutcome",
    "compare_methods": f"({PLACES}, methods: Sequence[str], {SETTINGS}) -> CompareOutcome",
    "explain_archive": f"({PLACES}, {SETTINGS}) -> Outcome",
    "open_records": "(out: str, explainer: str = latest) -> Records",
}


def test_the_api_is_what_was_promised() -> None:
    """A change here is a change for users: a new version, and a line in the changelog."""
    assert camray.__all__ == [
        "CamrayError", "Config", "ErrorCode", "ExitCode", "UsageError", "__version__", "audit_archive",
        "compare_methods", "explain_archive", "open_records",
    ]  # fmt: skip
    functions = {n: getattr(camray, n) for n in camray.__all__ if inspect.isfunction(getattr(camray, n))}
    assert {n: str(inspect.signature(f)).replace("'", "") for n, f in functions.items()} == SIGNATURES
    assert camray.cam.__all__ == [
        "METHODS", "Explanation", "LayerInfo", "TargetLayer", "TargetRule", "blend", "colour", "compiled",
        "explain", "find_target_layer", "find_target_layers", "finish", "fuse", "list_layers", "normalise",
        "parse_method", "plot", "resize",
    ]  # fmt: skip


def test_exit_codes_stay_what_they_are() -> None:
    assert {code.name: int(code) for code in camray.ExitCode} == {
        "DONE": 0, "CRASH": 1, "USAGE": 2, "FAILURES_OVER_BUDGET": 3, "INCOMPLETE": 4, "GATE": 5, "EMPTY": 6,
        "LOCKED": 7, "INTERRUPTED": 130, "TERMINATED": 143,
    }  # fmt: skip


@pytest.mark.parametrize("kind", [RECORDS, SCORES], ids=lambda kind: kind.folder)
def test_columns_are_only_added_with_a_promise(kind: Kind) -> None:
    """The columns of the tables as of this schema version, one a line, in order; docs/format.md says more."""
    page = Path(__file__).parent / "schemas" / f"{kind.folder}-{SCHEMA_VERSION}.txt"
    columns = iter(f"{f.name}: {f.type}" for f in kind.whole)
    assert [line for line in page.read_text().splitlines() if line not in columns] == []  # all, in order


@pytest.mark.parametrize(
    ("function", "name", "value"),
    [("explain_archive", "audit.fail_on", "nonsense"), ("explain_archive", "compare.baseline", "zero"),
     ("audit_archive", "compare.budget", {"forwards": 1}), ("compare_methods", "overlay.alpha", 0.1)],
)  # fmt: skip
def test_a_setting_that_would_do_nothing_is_refused(
    tmp_path: Path, function: str, name: str, value: object
) -> None:
    methods = [["gradcam"]] * (function == "compare_methods")
    with pytest.raises(camray.UsageError, match=f"{name}: is no setting of .*Fix: leave it out"):
        getattr(camray, function)("a", str(tmp_path / "o"), "m", *methods, **{name: value})
    assert not (tmp_path / "o").exists()


def test_rows_of_one_explainer_unless_all_are_asked_for(tmp_path: Path) -> None:
    """An average over two models' rows would be of neither."""
    out = open_folder(str(tmp_path / "out"), "OUT")
    committed(out, shard("a"), [rows(0, 3)])
    committed(out, shard("a"), [rows(0, 2)], explainer=E2)

    def count(*explainer: str) -> dict[str, int]:
        names = camray.open_records(out.uri, *explainer).to_table()["explainer"].to_pylist()
        return {name: names.count(name) for name in names}

    assert count() == count("latest") == count(E2) == {E2: 2}
    assert count(E1) == {E1: 3}
    assert count("all") == {E1: 3, E2: 2}
    with pytest.raises(camray.UsageError, match=r"explainer: OUT holds no records of 'nobody'.*Fix: "):
        count("nobody")
    committed(out, shard("b"), [rows(0, 1)])  # the first one again
    assert count() == {E1: 4}
