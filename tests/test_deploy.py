"""What is under deploy/: it parses, keeps to the policy, and names commands and settings that exist."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from camray.cli.main import build_parser
from camray.errors import ExitCode
from camray.ledger.watch import GAUGES as GAUGES_OF_A_RUN
from camray.options import load

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted(DEPLOY.glob("*.yaml"))
SCHEMAS = json.loads((ROOT / "tests" / "schemas" / "kuberay-1.6.json").read_text())


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def pod_specs(node: Any) -> Iterator[dict[str, Any]]:
    """Every pod spec of a document, however deep."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        for value in node.values():
            yield from pod_specs(value)
    elif isinstance(node, list):
        for value in node:
            yield from pod_specs(value)


PODS = [(path.name, pod) for path in MANIFESTS for document in documents(path) for pod in pod_specs(document)]


def test_there_are_pods_to_check() -> None:
    assert len(PODS) == 9  # twice head, two groups of workers and submitter; the nightly starter


@pytest.mark.parametrize("pod", [pod for _, pod in PODS], ids=[name for name, _ in PODS])
def test_pods_may_do_nothing_they_need_not(pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
        limits = container["resources"]["limits"]
        assert {"cpu", "memory"} <= set(limits)
        assert container["resources"]["requests"] == limits
        assert ":" in container["image"]
        assert not container["image"].endswith(":latest")
        assert not any("value" in variable for variable in container.get("env", []))  # secrets by reference
        places = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= places


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.name)
def test_no_secret_is_written_down(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"(?i)(password|secret|access_key|token)\s*:\s*[\"']?[A-Za-z0-9/+]{16,}", text)
    assert all(document["kind"] != "Secret" for document in documents(path) if "kind" in document)


OBJECTS = [(path.name, d) for path in MANIFESTS for d in documents(path) if "kind" in d]


def problems(document: dict[str, Any]) -> list[str]:
    """What the schema of its kind has against a document."""
    schema = {"$ref": f"#/$defs/{document['kind']}", "$defs": SCHEMAS["$defs"]}
    return [e.json_path + ": " + e.message for e in Draft202012Validator(schema).iter_errors(document)]


@pytest.mark.parametrize("document", [d for _, d in OBJECTS], ids=[f"{n}-{d['kind']}" for n, d in OBJECTS])
def test_manifests_are_what_their_api_takes(document: dict[str, Any]) -> None:
    assert problems(document) == []


def test_the_schema_notices_mistakes() -> None:
    """Each is one that an API server, or KubeRay, refuses."""
    (job,) = documents(DEPLOY / "rayjob.yaml")
    for path, value in (
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "shutdownAfterJobFinishes"), False),
        (("spec", "ttlSecondsAfterFinish"), 1),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplicas"), "1"),
        (("spec", "submissionMode"), "K8s"),
        (("spec", "clusterSelector"), {"ray.io/cluster": "standing"}),
        (("metadata", "name"), "Camray_Job"),
    ):
        wrong: Any = copy.deepcopy(job)
        place = wrong
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        assert problems(wrong), path


def test_the_nightly_ray_cron_job_is_the_ray_job() -> None:
    (cron,), (starter,) = documents(DEPLOY / "raycronjob.yaml"), documents(DEPLOY / "cronjob.yaml")
    assert cron["spec"]["jobTemplate"] == ray_job()
    for name in ("schedule", "timeZone"):
        assert cron["spec"][name] == starter["spec"][name]


def test_ray_accepts_the_cluster_launcher_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    (config,) = documents(DEPLOY / "cluster.yaml")
    validate_config(prepare_config(copy.deepcopy(config)))
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    assert types["head"]["resources"]["CPU"] == 0
    assert types["gpu"]["max_workers"] <= config["max_workers"]
    assert all(t["node_config"]["MetadataOptions"]["HttpTokens"] == "required" for t in types.values())
    assert "~/.ray/auth_token" in config["file_mounts"]  # the image asks for tokens: RAY_AUTH_MODE
    assert not any("0.0.0.0" in command for command in config["head_start_ray_commands"])


def test_the_job_can_be_started_and_watched_through_the_network_policy() -> None:
    """KubeRay's submitter and operator reach the job server, Prometheus the metrics; nobody else enters."""
    (policy,) = documents(DEPLOY / "networkpolicy.yaml")
    ports = {tuple(p["port"] for p in rule.get("ports", [])) for rule in policy["spec"]["ingress"]}
    assert ports == {(), (8265,), (8080,)}
    assert all(rule["from"] for rule in policy["spec"]["ingress"])
    (free,) = [rule for rule in policy["spec"]["ingress"] if "ports" not in rule]
    assert free["from"] == [{"podSelector": policy["spec"]["podSelector"]}]


def ray_job() -> dict[str, Any]:
    (job,) = documents(DEPLOY / "rayjob.yaml")
    spec: dict[str, Any] = job["spec"]
    return spec


def test_the_ray_job_relies_on_what_the_design_relies_on() -> None:
    spec = ray_job()
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert spec["shutdownAfterJobFinishes"] is True
    assert (
        spec["backoffLimit"] == 0
    )  # or exits 2, 3, 5, 6 and 7, which are for a person, would be tried again
    assert spec["activeDeadlineSeconds"] < 24 * 3600
    environment = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) >= 30
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    gpu = groups["gpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert gpu["nvidia.com/gpu"] == "1"
    assert all(g["minReplicas"] <= g["replicas"] <= g["maxReplicas"] for g in groups.values())


def test_nights_do_not_overlap() -> None:
    (cron,) = documents(DEPLOY / "cronjob.yaml")
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    waits = cron["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"]
    assert ray_job()["activeDeadlineSeconds"] < waits < 24 * 3600


def test_the_entrypoint_is_a_command_with_a_readable_config() -> None:
    words = shlex.split(ray_job()["entrypoint"])
    assert words[0] == "python"
    assert (ROOT / words[1]).is_file()
    args = build_parser().parse_args([Path(words[1]).stem, *words[2:]])
    config = load(str(ROOT / args.config), {})
    assert config.archive.path.startswith("s3://")
    assert config.out.startswith("s3://")
    assert config.audit.fail_on


def test_the_image_copies_what_is_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    assert "USER 1000" in text


def test_the_runbook_knows_every_exit_code() -> None:
    text = (DEPLOY / "RUNBOOK.md").read_text()
    told = {
        int(n) for row in re.findall(r"^\| exit ([0-9, ]+) \|", text, re.MULTILINE) for n in row.split(",")
    }
    assert told == {int(code) for code in ExitCode}


def emitted() -> set[str]:
    """Every metric that the code writes, by the name under which Prometheus sees it."""
    from camray.audit.gate import RATES
    from camray.flow.metrics import COUNTERS, GAUGES

    audit = {"camray_audit_gate_fired"} | {f"camray_audit_{name}" for name in RATES}
    audit |= {f"camray_audit_images_{name}" for name in ("archive", "night", "rows", "failed")}
    audit |= set(GAUGES_OF_A_RUN)
    return audit | {f"ray_{name}_total" for name in COUNTERS} | {f"ray_{name}" for name in GAUGES}


def test_alerts_ask_for_metrics_that_are_written() -> None:
    (rules,) = documents(DEPLOY / "alerts.yaml")
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    asked = {name for text in expressions for name in re.findall(r"\b(?:ray_)?camray_\w+", text)}
    assert len(asked) >= 5
    assert asked <= emitted()


def test_the_dashboard_asks_for_metrics_that_are_written() -> None:
    board = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked = {name for text in expressions for name in re.findall(r"\b(?:ray_)?camray_\w+", text)}
    assert asked <= emitted()
    assert {name for name in emitted() if name.startswith("ray_")} <= asked, "a metric that nobody looks at"
    labels = {label for text in expressions for label in re.findall(r"by \((\w+)\)", text)}
    from camray.flow.metrics import COUNTERS, GAUGES, OWNER

    assert labels <= {label for _, label in (COUNTERS | GAUGES).values()} | {OWNER}
    places = [(p["gridPos"]["x"], p["gridPos"]["y"], p["gridPos"]["w"]) for p in board["panels"]]
    assert len(set(places)) == len(places)
    assert all(x + w <= 24 for x, _, w in places)
