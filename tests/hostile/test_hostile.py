"""The archive of somebody who means harm, through every command; what came out, through every checker."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from deltalake import DeltaTable

from camray.cli.main import main
from demo import hans64
from tests.hostile import checkers
from tests.hostile.pack import FORGED, INJECTIONS, MARK, write_pack

MODEL = Path(hans64.__file__).parent / "models" / "hans64-poisoned"
CLASSES = (INJECTIONS[0], INJECTIONS[3], INJECTIONS[10], INJECTIONS[22], INJECTIONS[25], INJECTIONS[28])
EXPORTS = ("csv", "imagefolder", "label-studio", "duckdb")


class World:
    """An OUT, and what every command said while it was made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "it's; drop table canary; --" / "out"
        self.said: dict[str, tuple[str, str]] = {}

    def run(self, name: str, *options: object) -> int:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([*map(str, options)])
        self.said[name] = (out.getvalue(), err.getvalue())
        return code


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("hostile"))
    archive = write_pack(made.folder / "archive")
    names = made.folder / "names.json"
    names.write_text(json.dumps(CLASSES))
    job = (archive, made.out, "--model", MODEL, "--class-names", names, "--max-failed", "100%")
    drawn = ("--overlays", "all", "--caption", "--engine", "here")
    assert made.run("plan", "plan", *job) == 0
    assert made.run("explain", "explain", *job, *drawn) == 3  # two shards are damaged
    made.run("audit", "audit", *job, *drawn, "--json")
    assert made.run("status", "status", made.out) == 0
    made.run("verify", "verify", made.out)
    assert made.run("report", "report", made.out) == 0
    for kind in EXPORTS:
        to = made.folder / "exports" / kind
        assert made.run(kind, "report", made.out, "--export", kind, "--to", to) == 0
    made.run("refused", "explain", archive / f"a\n{FORGED}", made.out, "--model", f"\x1b[31m{MARK}\n{FORGED}")
    return made


def told(files: list[Path], check: Callable[[str], list[str]]) -> dict[str, list[str]]:
    """Give what a checker finds in files, by file; there must be some."""
    assert files
    found = {path.name: check(path.read_bytes().decode("utf-8", "surrogateescape")) for path in files}
    return {name: findings for name, findings in found.items() if findings}


def test_every_member_is_accounted_for_with_the_words_it_came_with(world: World) -> None:
    """Records keep names and labels as they are: it is not by losing them that nothing happens."""
    rows = DeltaTable(str(world.out / "records")).to_pyarrow_table()
    members = [m for m in rows.column("member").to_pylist() if m]
    assert len(members) > 3 * len(INJECTIONS)
    labels = {label for label in rows.column("label").to_pylist() if label}
    spoken = [text for text in INJECTIONS if "\ud800" not in text and text == text.strip()]
    assert [text for text in spoken if not any(text in label for label in labels)] == []
    assert rows.column("error_code").to_pylist().count("not_an_image") >= 2
    assert all(m is None or m.isprintable() for m in rows.column("error_message").to_pylist())


def test_no_log_obeys_and_no_line_is_forged(world: World) -> None:
    found = {name: [*map(checkers.terminal, said)] for name, said in world.said.items()}
    assert {name: lines for name, lines in found.items() if any(lines)} == {}
    assert any(MARK in err for _, err in world.said.values())
    assert "Traceback" not in "".join(err for _, err in world.said.values())


def test_lines_of_json_are_that(world: World) -> None:
    assert checkers.json_lines(world.said["audit"][0]) == []


def test_pages_run_nothing_of_it(world: World) -> None:
    assert told([*world.out.rglob("*.html")], checkers.page) == {}
    assert told([*world.out.glob("report/data/*.js")], checkers.script) == {}
    whole = "".join(p.read_text("utf-8") for p in world.out.glob("report/data/*.js"))
    assert whole.count(MARK) > len(INJECTIONS)


def test_the_table_is_no_formula(world: World) -> None:
    table = world.folder / "exports" / "csv" / "queue.csv"
    assert told([table], checkers.spreadsheet) == {}
    assert told([table], checkers.terminal) == {}
    assert table.read_text("utf-8").count(MARK) > len(INJECTIONS)


def test_the_views_do_nothing_but_view(world: World) -> None:
    assert told([world.folder / "exports" / "duckdb" / "views.sql"], checkers.sql) == {}


def test_tasks_are_json_with_texts_in_it(world: World) -> None:
    tasks = json.loads((world.folder / "exports" / "label-studio" / "tasks.json").read_bytes())
    assert tasks
    assert all(MARK not in key for task in tasks for key in json.loads(json.dumps(task["data"])))


def test_metrics_are_metrics(world: World) -> None:
    assert told([*world.out.rglob("*.prom")], checkers.metrics) == {}


def test_reports_of_runs_are_json(world: World) -> None:
    assert told([*world.out.glob("runs/*/*.json")], checkers.terminal) == {}


def test_names_of_files_are_our_own(world: World) -> None:
    made = [*world.out.rglob("*"), *(world.folder / "exports").rglob("*")]
    below = [str(p).removeprefix(str(world.out)).removeprefix(str(world.folder)).lstrip("/") for p in made]
    assert [finding for path in below for finding in checkers.name(path)] == []
    assert not (Path.cwd() / MARK).exists()


def test_pictures_carry_no_words(world: World) -> None:
    pictures = [*world.out.glob("overlays/**/*.jpg")]
    assert len(pictures) > 100
    assert [p for p in pictures if MARK.encode() in p.read_bytes()] == []


# ── the checkers themselves ──────────────────────────────────────────────────────────────────────

NOTICED = {
    "terminal": [f"a\x1b[31m{MARK}", f"ok\n{FORGED}", f"a\r{FORGED}", f"\u202e{MARK}", f"a\x85b {MARK}"],
    "page": [
        f"<p><script>{MARK}()</script>", f'<a href="javascript:{MARK}()">', f"<img src=x onerror={MARK}()>",
        f"<script>var x = '{MARK}'; {MARK}()</script>",
        f'<script>var x = "</script><script>{MARK}()//"</script>',
        f'<p title=""><svg onload={MARK}()>', f"<{MARK}>", f"<p {MARK}=1>",
    ],
    "script": [f'rows(0, ["a", {MARK}()]);', f'rows(0, ["a"{MARK}"]);', 'rows("a\u2028b");'],
    "spreadsheet": [
        f"a,b\n={MARK},1\n", f'a,b\n"=1+{MARK}",1\n', f"a\n+{MARK}\n", f"a\nx\r={MARK}\n",
        f'a\n"x;=1{MARK}"\n', f"a\n@{MARK}\n", f"a\n\uff1d{MARK}\n", f"a\n -{MARK}\n", f"a\nx\t={MARK}\n",
    ],
    "sql": [
        f"drop table canary; -- {MARK}", f"create view records as select 1; create table {MARK} (x int)",
        f"create view records as select '{MARK}' '; drop table canary; --'", "create view records as sel",
    ],
    "metrics": [f"camray_x 1\n{FORGED}", f'camray_x{{a="b",{MARK}="1}} 1', f"<script>{MARK}</script>"],
    "json_lines": [f'{{"a": 1}}\n{FORGED}', f'{{"a": "\x1b[31m{MARK}"}}'],
    "name": [f"overlays/<{MARK}>.jpg", f"overlays/a\n{MARK}", f"overlays/{MARK} .jpg"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("checker", "planted"), [(c, text) for c, texts in NOTICED.items() for text in texts]
)
def test_the_checker_notices_what_is_planted(checker: str, planted: str) -> None:
    assert getattr(checkers, checker)(planted) != []


HARMLESS = {
    "terminal": [f"member '{MARK}': ok\nnext\n"],
    "page": [f"<p>&lt;script&gt;{MARK}()</p>", f'<p title="&quot;onload={MARK}()">'],
    "script": [f'rows(0, ["{MARK}()", "\\u003c/script>"]);'],
    "spreadsheet": [f"a,b\n'={MARK},-0.5\n", f'"a,={MARK}",1\n', f"a;'={MARK}\n"],
    "sql": [f"create view records as select '{MARK}; drop table canary' as x;"],
    "metrics": [f'# HELP camray_x {MARK}\ncamray_x{{a="{MARK}\\""}} 1.5e-3\n'],
    "json_lines": [f'{{"a": "\\u001b{MARK}"}}\n'],
    "name": ["overlays/0a1b/000001-planted.jpg", "records/explainer=ab/x-000001-c.parquet"],
}  # fmt: skip


@pytest.mark.parametrize(("checker", "text"), [(c, text) for c, texts in HARMLESS.items() for text in texts])
def test_the_checker_lets_pass_what_does_nothing(checker: str, text: str) -> None:
    assert getattr(checkers, checker)(text) == []
