"""Whoever watches: the alert of a missing night, the timers of one machine, and how the figures get there."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml

from camray.cli.main import main
from camray.storage import open_folder
from camray.upkeep.status import write_metrics
from demo import hans64
from tests.flow.test_metrics import RUN

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
MODEL = ROOT / "demo" / "models" / "hans64-poisoned"
HOUR = 3600.0
PROGRAMS = ("prometheus", "prometheus-node-exporter")


def rule(name: str) -> str:
    rules = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"][0]["rules"]
    (found,) = [r for r in rules if r.get("alert") == name]
    assert "for" not in found  # told at the first look
    return str(found["expr"])


def fires(now_s: float, success_s: float | None) -> bool:
    """Evaluate the expression as Prometheus does: a comparison with what is not there is empty."""
    shape = re.fullmatch(r"time\(\) - (\w+) > (\d+) \* 3600 or absent\((\w+)\)", rule("CamrayNoGoodNight"))
    assert shape is not None
    assert shape[1] == shape[3] == "camray_last_success_timestamp_seconds"
    return success_s is None or now_s - success_s > float(shape[2]) * HOUR


def test_a_night_that_did_not_run_is_told_within_a_scrape() -> None:
    assert fires(30 * HOUR, None)  # the file never was
    assert not fires(30 * HOUR, 5 * HOUR)
    assert fires(30 * HOUR, 3 * HOUR)


GOOD = {'camray_last_success_timestamp_seconds{out="o"}': "0+60x1700"}  # every minute a good night
IMAGES = 'ray_camray_images_total{explainer="e",status="ok"}'
FAILURES = 'ray_camray_failures_total{explainer="e",code="truncated"}'
LEFT = 'ray_camray_shards_left{explainer="e"}'
ALERTS = [  # series, a value a minute; when is it looked at; which alerts fire
    ({"up": "1x1700"}, "1m", ["CamrayNoGoodNight"]),
    ({'camray_last_success_timestamp_seconds{out="o"}': "0x1700"}, "25h", []),
    ({'camray_last_success_timestamp_seconds{out="o"}': "0x1700"}, "27h", ["CamrayNoGoodNight"]),
    (GOOD | {'camray_last_run_exit_code{out="o"}': "0x60"}, "1h", []),
    (GOOD | {'camray_last_run_exit_code{out="o"}': "0x30 4x30"}, "1h", ["CamrayRunFailed"]),
    (GOOD | {'camray_audit_gate_fired{explainer="e"}': "1x60"}, "1h", ["CamrayGateFired"]),
    (GOOD | {'camray_audit_confirmed_rate{explainer="e"}': "0.004x60"}, "1h", []),
    (GOOD | {'camray_audit_confirmed_rate{explainer="e"}': "0.006x60"}, "1h", ["CamrayShortcuts"]),
    (GOOD | {'camray_audit_failed_rate{explainer="e"}': "0.02x60"}, "1h", ["CamrayFailures"]),
    (GOOD | {IMAGES: "0+100x60", FAILURES: "0+4x60"}, "30m", []),
    (GOOD | {IMAGES: "0+100x60", FAILURES: "0+10x60"}, "8m", []),
    (GOOD | {IMAGES: "0+100x60", FAILURES: "0+10x60"}, "30m", ["CamrayFailuresNow"]),
    (GOOD | {LEFT: "5x120", IMAGES: "0+100x120"}, "2h", []),
    (GOOD | {LEFT: "5x120", IMAGES: "0+100x10 1000x110"}, "40m", []),
    (GOOD | {LEFT: "5x120", IMAGES: "0+100x10 1000x110"}, "1h", ["CamrayStandsStill"]),
    (GOOD | {LEFT: "5x120"}, "20m", []),
    (GOOD | {LEFT: "5x120"}, "1h", ["CamrayStandsStill"]),  # not one image yet: there is no series of them
    (GOOD | {LEFT: "5x10 0x110", IMAGES: "0+100x10 1000x110"}, "1h", []),
]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
def test_prometheus_fires_each_alert_when_it_should_and_not_before(tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "alerts.yaml", tmp_path)
    asked = 'count by (alertname) (ALERTS{alertstate="firing"})'
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in given.items()],
            "promql_expr_test": [
                {"expr": asked, "eval_time": at,
                 "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in fired]}
            ],
        }
        for given, at, fired in ALERTS
    ]  # fmt: skip
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["alerts.yaml"], "tests": tests}))
    for words in (["check", "rules", "alerts.yaml"], ["test", "rules", "test.yaml"]):
        done = subprocess.run(["promtool", *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    rules = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"][0]["rules"]
    assert {name for *_, fired in ALERTS for name in fired} == {rule["alert"] for rule in rules}


def test_the_file_has_what_the_rules_and_panels_of_a_night_ask_for(tmp_path: Path) -> None:
    """One audit with `--metrics-file`: each series of a night is in it, as the collector reads it."""
    file = tmp_path / "camray.prom"
    words = ["audit", str(archive_in(tmp_path)), str(tmp_path / "out"), "--model", str(MODEL)]
    assert main([*words, "--engine", "here", "--metrics-file", str(file)]) == 0
    asked = (DEPLOY / "alerts.yaml").read_text() + (DEPLOY / "grafana-dashboard.json").read_text()
    names = set(re.findall(r"(?<!ray_)\bcamray_(?:last|audit)_\w+", asked))
    lines = file.read_text().splitlines()
    assert len(names) >= 8
    assert names <= {line.partition("{")[0] for line in lines}
    sample = r'\w+\{\w+="[^"]*"(,\w+="[^"]*")*\} [0-9.e+-]+'
    assert [ln for ln in lines if not re.fullmatch(rf"# (HELP|TYPE) \w+ .+|{sample}", ln)] == []
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


def test_status_tells_of_an_out_that_is_filled_elsewhere(tmp_path: Path) -> None:
    """For clusters: a machine beside Prometheus looks at OUT. It says what the run itself would have said."""
    own, afar = tmp_path / "own.prom", tmp_path / "afar.prom"
    out = str(tmp_path / "out")
    words = ["audit", str(archive_in(tmp_path)), out, "--model", str(MODEL), "--engine", "here"]
    assert main([*words, "--metrics-file", str(own)]) == 0
    assert main(["status", out, "--metrics-file", str(afar)]) == 0

    def untimed(path: Path) -> list[str]:
        return [line for line in path.read_text().splitlines() if "timestamp_seconds{" not in line]

    assert untimed(afar) == untimed(own)
    stamps = [
        float(re.search(r"^camray_last_success_timestamp_seconds{.*} (\d+)$", f.read_text(), re.M)[1])  # type: ignore[index]
        for f in (own, afar)
    ]
    assert abs(stamps[0] - stamps[1]) < HOUR  # the audit's own time is not in run.json


def test_a_clock_that_was_ahead_for_one_night_silences_nothing(tmp_path: Path) -> None:
    """Of the runs as they held OUT, the last that went well; a time that is still to come is none."""
    told, names = tmp_path / "camray.prom", ("29991231T000000Z-1", "20261127T000000Z-2")
    for name in names:
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "metrics.prom").write_text(f'camray_audit_dark_rate{{out="{name}"}} 0\n')
    runs = [
        {"run_id": name, "exit": 0, "explainer": "e", "accounting": {}, "duration_s": 1, "started_at": began}
        for name, began in zip(names, ("2999-12-31T00:00:00+00:00", "2026-01-01T00:00:00+00:00"), strict=True)
    ]  # fmt: skip
    write_metrics(open_folder(str(tmp_path), "OUT"), runs, str(told))
    assert re.search(r"^camray_last_success_timestamp_seconds{.*} 1767225601$", told.read_text(), re.M)
    assert f'camray_audit_dark_rate{{out="{names[1]}"}}' in told.read_text()
    write_metrics(open_folder(str(tmp_path), "OUT"), runs[:1], str(told))
    assert "camray_last_success_timestamp_seconds{" not in told.read_text()


# ── a real Prometheus ────────────────────────────────────────────────────────────────────────────


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def panels() -> set[str]:
    """Every query of the dashboard, and the one that fills its list of explainers."""
    board = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    choices = board["templating"]["list"][1]["query"]["query"]
    named = choices.removeprefix("label_values(").rpartition(",")[0]
    return {target["expr"] for panel in board["panels"] for target in panel["targets"]} | {named}


@contextmanager
def started(*commands: list[str], folder: Path) -> Iterator[None]:
    with ExitStack() as running:
        for command in commands:
            environment = os.environ | {"RAY_metrics_report_interval_ms": "2000"}
            run = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
            running.callback(run.wait)
            running.callback(run.kill)
        yield


def answered(folder: Path, scraped: int, expressions: set[str], *commands: list[str]) -> None:
    """Let a Prometheus look at a port each second until it has answered every expression with data."""
    port, waiting, end = free_port(), set(expressions), time.monotonic() + 600
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(DEPLOY / "alerts.yaml")],
        "scrape_configs": [{"job_name": "x", "static_configs": [{"targets": [f"127.0.0.1:{scraped}"]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    server = [PROGRAMS[0], f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
    with started([*server, f"--web.listen-address=127.0.0.1:{port}"], *commands, folder=folder):
        while waiting and time.monotonic() < end:
            time.sleep(1)
            waiting -= {expression for expression in waiting if data_of(port, expression)}
    assert waiting == set()


needs_prometheus = pytest.mark.skipif(
    None in map(shutil.which, PROGRAMS), reason="needs " + " and ".join(PROGRAMS)
)


@pytest.mark.slow
@needs_prometheus
def test_the_panels_show_finished_nights_and_their_alerts_fire(tmp_path: Path) -> None:
    """A good night, then one in which all that is new is broken; their file, through node_exporter."""
    archive, metrics, port = archive_in(tmp_path), tmp_path / "metrics", free_port()
    metrics.mkdir()
    words = ["audit", str(archive), str(tmp_path / "out"), "--model", str(MODEL), "--engine", "here"]
    words += ["--metrics-file", str(metrics / "camray.prom")]
    assert main(words) == 0
    (archive / "broken.jpg").write_bytes(b"")
    assert main(words) == 3
    alerts = {f'ALERTS{{alertname="Camray{n}",alertstate="firing"}}' for n in ("RunFailed", "Failures")}
    exporter = [PROGRAMS[1], "--collector.disable-defaults", "--collector.textfile"]
    exporter += [f"--collector.textfile.directory={metrics}", f"--web.listen-address=127.0.0.1:{port}"]
    of_nights = {text for text in panels() if "ray_camray" not in text or "camray_audit" in text}
    answered(tmp_path, port, of_nights | alerts, exporter)


@pytest.mark.slow
@needs_prometheus
def test_the_panels_show_a_run_at_work(tmp_path: Path, demo: Path) -> None:
    archive, port = tmp_path / "archive", free_port()
    archive.mkdir()
    (archive / "a.tar").symlink_to(demo / "archive" / "hans64-00000.tar")
    (archive / "broken.jpg").write_bytes(b"")
    night = [sys.executable, "-c", RUN, str(port), str(archive), str(tmp_path / "out"), str(MODEL), "60"]
    answered(tmp_path, port, {text for text in panels() if "ray_camray" in text}, night)


def data_of(port: int, expression: str) -> list[object]:
    """What Prometheus answers now, with every explainer chosen; nothing before it is up."""
    asked = urllib.parse.urlencode({"query": expression.replace("$explainer", ".*")})
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{asked}", timeout=10) as answer:
            found: list[object] = json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read().decode()) from None
    except OSError:
        return []
    return found


# ── timers ───────────────────────────────────────────────────────────────────────────────────────


def archive_in(folder: Path) -> Path:
    hans64.write_tar_shards([hans64.render(0, "audit", i) for i in range(6)], folder / "archive", 6)
    return folder / "archive"


def cron_lines() -> list[tuple[list[str], str]]:
    """The times and the command of each line."""
    lines = [ln for ln in (DEPLOY / "crontab").read_text().splitlines() if ln and not ln.startswith("#")]
    return [(line.split(None, 5)[:5], line.split(None, 5)[5]) for line in lines]


def test_cron_reads_the_lines_and_the_commands_run(tmp_path: Path) -> None:
    """As cron does it: /bin/sh, next to no environment, and % would end the command."""
    settings = tmp_path / "nightly.toml"
    settings.write_text(
        f'out = "{tmp_path}/out"\n[archive]\npath = "{archive_in(tmp_path)}"\n[model]\nname = "{MODEL}"\n'
        '[audit]\nfail_on = "wrong_rate>100%"\n[run]\nengine = "here"\n'
    )
    (tmp_path / "metrics").mkdir()
    (nightly, often) = cron_lines()
    assert nightly[0] == ["30", "1", "*", "*", "*"]
    assert often[0] == ["*/5", "*", "*", "*", "*"]
    for _, command in (nightly, often):
        assert "%" not in command
        placed = command.replace("/opt/camray/bin/camray", f"{shlex.quote(sys.executable)} -m camray.cli")
        placed = placed.replace("/etc/camray/nightly.toml", str(settings))
        placed = placed.replace("/var/lib/camray", str(tmp_path)).replace("/srv/camray", str(tmp_path))
        environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            ["/bin/sh", "-c", placed], env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "camray: exit 0: done" in (tmp_path / "nightly.log").read_text()
    files = [(tmp_path / "metrics" / name).read_text() for name in ("camray.prom", "elsewhere.prom")]
    assert all("camray_last_success_timestamp_seconds{" in text for text in files)


def unit(name: str) -> configparser.ConfigParser:
    read = configparser.ConfigParser(interpolation=None)
    read.optionxform = str  # type: ignore[assignment,method-assign]
    read.read(DEPLOY / name)
    return read


def test_systemd_runs_the_same_command_and_leaves_verdicts_alone() -> None:
    service = unit("camray.service")["Service"]
    assert service["ExecStart"] == cron_lines()[0][1].partition(" 2>>")[0]
    assert service["RestartPreventExitStatus"].split() == ["2", "3", "5", "6", "7"]
    assert unit("camray.timer")["Timer"]["OnCalendar"] == "*-*-* 01:30:00"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for name in ("camray.service", "camray.timer"):
        text = (DEPLOY / name).read_text().replace("/opt/camray/bin/camray", "/bin/true")
        (tmp_path / name).write_text(text.replace("User=camray", "User=root"))
    units = [str(tmp_path / name) for name in ("camray.service", "camray.timer")]
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
