"""What `kubectl apply -k` would send: valid against the schemas, confined, and reachable by whom it should be alone."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from deploy.kubernetes.make_prometheus_rule import TARGET, text
from student_worker.recipe.sources import load_recipe

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
WHOLE = ("base", "train", "capture")
COMPONENTS = ("gpu", "monitoring", "keda", "hpa")
VERSIONS = ("1.31", "1.37")
"""The oldest that has all that is used, and the newest that is known."""

KUSTOMIZE = (
    ["kustomize", "build"]
    if shutil.which("kustomize")
    else ["kubectl", "kustomize"]
    if shutil.which("kubectl")
    else None
)

Resource = dict[str, Any]

pytestmark = pytest.mark.skipif(KUSTOMIZE is None, reason="NOT TESTED: neither kustomize nor kubectl is installed")


@cache
def _build(folder: Path) -> str:
    assert KUSTOMIZE is not None
    argv = [*KUSTOMIZE, str(folder)]
    if KUSTOMIZE[0] == "kubectl":
        argv.append("--load-restrictor=LoadRestrictionsNone")
    else:
        argv.insert(2, "--load-restrictor=LoadRestrictionsNone")
    told = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    return told.stdout


def built(folder: Path) -> list[Resource]:
    return [resource for resource in yaml.safe_load_all(_build(folder)) if resource]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> list[Resource]:
    """All folders and all components at once, as an overlay of a user's own could have them."""
    overlay = tmp_path_factory.mktemp("overlay")
    up = "../" * len(overlay.parts)
    lines = [f"- {up}{(FOLDER / name).relative_to('/')}" for name in WHOLE]
    parts = [f"- {up}{(FOLDER / 'components' / name).relative_to('/')}" for name in COMPONENTS]
    content = ["namespace: distil", "resources:", *lines, "components:", *parts]
    (overlay / "kustomization.yaml").write_text("\n".join(content) + "\n", encoding="utf-8")
    return built(overlay)


def pods(resources: list[Resource]) -> Iterator[tuple[str, Resource]]:
    for resource in resources:
        template = resource.get("spec", {}).get("template")
        if template:
            yield f"{resource['kind']}/{resource['metadata']['name']}", template


def named(resources: list[Resource], kind: str, name: str) -> Resource:
    return next(one for one in resources if (one["kind"], one["metadata"]["name"]) == (kind, name))


@pytest.mark.parametrize("folder", [*WHOLE, "overlays/gpu", "overlays/cpu"])
def test_every_folder_is_valid_by_itself(folder: str) -> None:
    resources = built(FOLDER / folder)
    assert resources
    for resource in resources:
        kubernetes_validate.validate(resource, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_all_components_together_are_valid(everything: list[Resource], version: str) -> None:
    ours = {"PodMonitor", "PrometheusRule", "ScaledObject"}
    kinds = set()
    for resource in everything:
        kinds.add(resource["kind"])
        if resource["kind"] not in ours:  # custom ones have no schema among Kubernetes' own
            kubernetes_validate.validate(resource, version, strict=True)
    assert ours | {"HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy", "Job", "StatefulSet"} <= kinds


def test_the_validator_finds_what_is_wrong() -> None:
    resource = named(built(FOLDER / "base"), "Deployment", "teacher")
    resource["spec"]["template"]["spec"]["containers"][0]["redinessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(resource, VERSIONS[-1], strict=True)


def test_every_pod_is_confined_bounded_and_without_an_account(everything: list[Resource]) -> None:
    seen = []
    for name, template in pods(everything):
        seen.append(name)
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["enableServiceLinks"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, name
            assert "memory" in container["resources"]["limits"], name
    assert len(seen) == 5


def test_secrets_that_are_named_are_secrets_that_are_made(everything: list[Resource]) -> None:
    made = set(re.findall(r'"([\w-]+)"', (ROOT / "deploy/docker/make_keys.py").read_text(encoding="utf-8")))
    text = yaml.safe_dump_all(everything)
    assert set(re.findall(r"secretName: (\S+)", text)) == {"stillhouse-keys"}
    asked: set[str] = set()
    for _, template in pods(everything):
        for container in template["spec"]["containers"]:
            sources = [variable.get("valueFrom", {}).get("secretKeyRef") for variable in container.get("env", [])]
            asked |= {source["key"] for source in sources if source}
        volumes = [volume["secret"] for volume in template["spec"].get("volumes", []) if "secret" in volume]
        asked |= {item["key"] for volume in volumes for item in volume["items"]}
    assert asked == {"run-token", "teacher-token", "tokens"}
    assert asked <= made


def decision(job: Resource, code: int) -> str:
    """What the Job's controller does about an exit code: the first rule that fits."""
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if codes and (code in codes["values"]) == (codes["operator"] == "In"):
            return str(rule["action"])
    return "Count"


@pytest.mark.parametrize("name", ["student-worker", "capture"])
@pytest.mark.parametrize(
    ("code", "action"), [(143, "Ignore"), (2, "FailJob"), (3, "FailJob"), (1, "Count"), (137, "Count"), (139, "Count")]
)
def test_what_was_interrupted_begins_again_and_what_is_wrong_never(
    everything: list[Resource], name: str, code: int, action: str
) -> None:
    job = named(everything, "Job", name)
    assert decision(job, code) == action
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    containers = {container["name"] for container in job["spec"]["template"]["spec"]["containers"]}
    rules = [rule["onExitCodes"] for rule in job["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert {rule["containerName"] for rule in rules} <= containers


def fits(selector: Resource, labels: dict[str, str]) -> bool:
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] == "In"
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return True


def may_reach(resources: list[Resource], caller: Resource, labels: dict[str, str], port: str) -> bool:
    """Whether the policies let a caller in; one of another namespace is told by the namespace's labels."""
    policies = [one["spec"] for one in resources if one["kind"] == "NetworkPolicy"]
    policies = [policy for policy in policies if fits(policy["podSelector"], labels)]
    for policy in policies:
        for rule in policy.get("ingress", []):
            by_port = "ports" not in rule or any(str(one["port"]) == port for one in rule["ports"])
            for source in rule.get("from", []):
                selector = source.get("podSelector") or source.get("namespaceSelector")
                ours = "podSelector" in source
                if by_port and ours == ("namespace" not in caller) and fits(selector, caller["labels"]):
                    return True
    return not policies


REACH = {
    ("student-worker", "student-worker", "40123"): True,
    ("student-worker", "student-lighthouse", "lighthouse"): True,
    ("student-worker", "teacher", "grpc"): True,
    ("capture", "teacher", "grpc"): True,
    ("teacher", "redis", "redis"): True,
    ("teacher", "student-worker", "http"): False,
    ("capture", "student-worker", "40123"): False,
    ("stranger", "student-worker", "40123"): False,
    ("stranger", "student-lighthouse", "lighthouse"): False,
    ("stranger", "teacher", "grpc"): False,
    ("student-worker", "redis", "redis"): False,
    ("stranger", "capture", "40123"): False,
}


@pytest.mark.parametrize(("caller", "called", "port"), REACH)
def test_each_is_reached_by_whom_it_should_be_alone(
    everything: list[Resource], caller: str, called: str, port: str
) -> None:
    labels = {name.partition("/")[2]: template["metadata"]["labels"] for name, template in pods(everything)}
    source = {"labels": labels.get(caller, {"app.kubernetes.io/name": caller})}
    assert may_reach(everything, source, labels[called], port) == REACH[caller, called, port]


def test_monitoring_reaches_metrics_and_no_other_port(everything: list[Resource]) -> None:
    labels = {name.partition("/")[2]: template["metadata"]["labels"] for name, template in pods(everything)}
    scraper = {"namespace": "monitoring", "labels": {"kubernetes.io/metadata.name": "monitoring"}}
    other = {"namespace": "other", "labels": {"kubernetes.io/metadata.name": "other"}}
    for called in ("teacher", "student-worker"):
        assert may_reach(everything, scraper, labels[called], "http")
        assert not may_reach(everything, scraper, labels[called], "grpc")
        assert not may_reach(everything, other, labels[called], "http")


def test_services_monitors_and_scalers_point_at_what_there_is(everything: list[Resource]) -> None:
    templates = [template for _, template in pods(everything)]

    def ports(selector: Resource) -> set[str]:
        chosen = [one for one in templates if fits(selector, one["metadata"]["labels"])]
        assert len(chosen) == 1, selector
        return {port["name"] for container in chosen[0]["spec"]["containers"] for port in container.get("ports", [])}

    for resource in everything:
        spec = resource.get("spec", {})
        if resource["kind"] == "Service":
            assert {port["targetPort"] for port in spec["ports"]} <= ports({"matchLabels": spec["selector"]})
        elif resource["kind"] == "PodMonitor":
            assert {endpoint["port"] for endpoint in spec["podMetricsEndpoints"]} <= ports(spec["selector"])
        elif resource["kind"] == "PodDisruptionBudget":
            assert ports(spec["selector"])
        elif resource["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
            assert named(everything, "Deployment", spec["scaleTargetRef"]["name"])
    assert named(everything, "Service", "teacher")["spec"]["clusterIP"] == "None"
    rule = yaml.safe_load((FOLDER / "components/hpa/adapter-rule.yaml").read_text(encoding="utf-8"))["rules"][0]
    metric = named(everything, "HorizontalPodAutoscaler", "teacher")["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert rule["name"]["as"] == metric


def test_every_teacher_and_every_worker_has_a_gpu_of_its_own() -> None:
    for name, template in pods(built(FOLDER / "overlays" / "gpu")):
        limits = template["spec"]["containers"][0]["resources"]["limits"]
        assert limits.get("nvidia.com/gpu") == ("1" if name.endswith(("/teacher", "/student-worker")) else None)


def test_a_worker_takes_what_the_job_gives_it(everything: list[Resource]) -> None:
    job = named(everything, "Job", "student-worker")
    variables = job["spec"]["template"]["spec"]["containers"][0]["env"]
    given = {one["name"]: one.get("value", "0123456789abcdef") for one in variables} | {"STUDENT_WORKER_INDEX": "1"}
    recipe = load_recipe(FOLDER / "train" / "recipe.yaml", {}, given)
    assert recipe.micro_shards >= job["spec"]["completions"] == job["spec"]["parallelism"]
    capture = named(everything, "Job", "capture")["spec"]
    assert f"$(INDEX)/{capture['completions']}" in capture["template"]["spec"]["containers"][0]["args"]


def test_the_operators_rules_are_those_of_prometheus() -> None:
    assert TARGET.read_text(encoding="utf-8") == text(), "stale: run `python deploy/kubernetes/make_prometheus_rule.py`"
