import json
import os
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from manifests import check
from manifests.schemas import KINDS, kserve_schemas
from serving.deletion_cost import ANNOTATION, PodAnnotator, count_streams

REPO = Path(__file__).parents[2]
GOLDEN = REPO / "tests" / "golden" / "manifests-production.yaml"


@pytest.fixture
def manifests(tmp_path):
    """A copy of the manifests, to plant faults in."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is missing: apt-get install prometheus")
    target = tmp_path / "manifests"
    shutil.copytree(REPO / "manifests", target)
    return target


def test_every_overlay_and_component_is_sound(manifests):
    assert list(check.check(manifests)) == []
    used = {
        Path(component).name
        for path in manifests.glob("overlays/*/kustomization.yaml")
        for component in yaml.safe_load(path.read_text()).get("components", [])
    } | {component for components in check.COMBINATIONS.values() for component in components}
    assert {path.name for path in (manifests / "components").iterdir()} == used


FAULTS = {
    "a misspelt field of KServe's": ("base/stream.yaml", "minReplicas:", "minReplica:", "'minReplica' was unexpected"),
    "a misspelt field of Kubernetes'": ("components/redis/redis.yaml", "replicas:", "replica:", "replica"),
    "a canary by percent in Standard mode": (
        "base/stream.yaml", "    timeout: 0\n", "    timeout: 0\n    canaryTrafficPercent: 10\n",
        "canaryTrafficPercent does nothing",
    ),
    "a timeout that cuts streams": ("base/stream.yaml", "    timeout: 0\n", "", "timeout is None: expected 0"),
    "root": ("base/stream.yaml", "runAsNonRoot: true\n      runAsUser: 10001", "runAsUser: 0", "may run as root"),
    "an image without a tag": (
        "components/redis/redis.yaml", "redis:7.4.2-alpine", "redis:latest", "'redis:latest' has no fixed tag",
    ),
    "no probe": (
        "components/mlflow/mlflow.yaml", "          livenessProbe", "          startupProbe", "has no livenessProbe",
    ),
    "no limits": ("components/redis/redis.yaml", ', limits: {cpu: "1", memory: 768Mi}', "", "no limits of cpu, memory"),
    "a payload logger": (
        "base/stream.yaml", "    minReplicas: 2\n", "    logger: {mode: all}\n    minReplicas: 2\n", "payload logger",
    ),
    "no preStop": ("base/stream.yaml", "lifecycle: {preStop: {sleep: {seconds: 10}}}", "", "has no preStop sleep"),
    "a kind that nobody knows": (
        "components/pdb/pdb.yaml", "kind: PodDisruptionBudget", "kind: PodDisruptionBudge", "no schema for this kind",
    ),
    "a mode that is left to the cluster": (
        "base/stream.yaml", "    serving.kserve.io/deploymentMode: Standard\n", "    note: none\n",
        "deploymentMode is not set",
    ),
    "a route with a timeout": (
        "components/ab/route.yaml", "request: 0s", "request: 60s", "cuts streams at the gateway",
    ),
    "an alert that is no PromQL": (
        "components/monitoring/rules.yaml", "sum(voiceflow_headroom_streams) <=",
        "sum(voiceflow_headroom_streams <=", "parse error",
    ),
    "an alert that says something else": (
        "components/monitoring/rules.yaml", "summary: answers come late", "summary: all is well", "all is well",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(manifests, name):
    path, before, after, says = FAULTS[name]
    text = (manifests / path).read_text()
    assert before in text
    (manifests / path).write_text(text.replace(before, after))
    assert any(says in fault for fault in check.check(manifests)), name


def test_a_field_that_the_kserve_package_does_not_know_is_refused():
    good = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "x"},
        "spec": {"predictor": {"minReplicas": 1, "model": {"modelFormat": {"name": "onnx"}}}},
    }

    def faults(**predictor):
        spec = {"predictor": good["spec"]["predictor"] | predictor}
        return list(check.validate(good | {"spec": spec}, kserve_schemas(), {}))

    assert faults() == []
    assert faults(timeout=0, containers=[{"name": "c", "resources": {"limits": {"cpu": 1, "memory": "1Gi"}}}]) == []
    assert "'minReplica' was unexpected" in faults(minReplica=1)[0]
    assert "'one' is not of type 'integer'" in faults(minReplicas="one")[0]
    assert "'name' is a required property" in faults(containers=[{"image": "x"}])[0]
    assert "'mountPaths' was unexpected" in faults(containers=[{"name": "c", "volumeMounts": [
        {"name": "v", "mountPath": "/v", "mountPaths": "/v"}]}])[0]  # fmt: skip
    assert (
        "8080 is not of type 'string'" in faults(containers=[{"name": "c", "env": [{"name": "A", "value": 8080}]}])[0]
    )


def paths_of(schema, root, path=(), seen=()):
    """Every field that a schema knows, as names from the top."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        if name not in seen:
            yield from paths_of(root["$defs"][name], root, path, (*seen, name))
        return
    for name, inner in schema.get("properties", {}).items():
        yield (*path, name)
        yield from paths_of(inner, root, (*path, name), seen)
    for key, inner in (("items", schema.get("items")), ("*", schema.get("additionalProperties"))):
        if isinstance(inner, dict):
            yield from paths_of(inner, root, (*path, key), seen)


NEWER_IN_KUBERNETES = {
    "request", "fileKeyRef", "stopSignal", "restartPolicyRules", "resourceClaimName", "resourceClaimTemplateName",
    "image", "podCertificate", "action", "exitCodes", "seLinuxChangePolicy", "supplementalGroupsPolicy", "tolerance",
}  # fmt: skip
"""Fields that CRDs of August 2026 have and the pinned client's models have not yet: they are refused here."""
UNLIKE_THE_CRDS = {"source", "tracing", "schedulingGroup", "ephemeralContainers"}
"""Fields of the package that those CRDs have not."""


def first_unknown(these, those):
    """Of fields that only one side has, those whose parents both have."""
    unknown = these - those
    return {path for path in unknown if not any(path[:length] in unknown for length in range(1, len(path)))}


def test_schemas_know_what_the_crds_know(shared):
    for kind in KINDS:
        [path] = (shared / "kserve-schemas").glob(f"{kind.lower()}_*.json")
        derived, crd = kserve_schemas()[kind], json.loads(path.read_text(encoding="utf-8"))
        ours, theirs = ({found for found in paths_of(one, one) if found[0] == "spec"} for one in (derived, crd))
        # A worker's pod is let through whole: the package lacks its model.
        missing = {path for path in first_unknown(theirs, ours) if "workerSpec" not in path}
        more = {path for path in first_unknown(ours, theirs) if "metadata" not in path}
        assert {path[-1] for path in missing} <= NEWER_IN_KUBERNETES, kind
        assert {path[-1] for path in more} <= UNLIKE_THE_CRDS, kind
        assert len(ours & theirs) > 100, kind


def test_the_rendering_is_the_reviewed_one(manifests):
    command = [check.kubectl(), "kustomize", str(REPO / "manifests" / "overlays" / "production")]
    documents = yaml.safe_load_all(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    # Dashboards have a test of their own.
    kept = [one for one in documents if one["metadata"]["name"] != "voiceflow-dashboards"]
    text = yaml.safe_dump_all(kept, sort_keys=True)
    if os.environ.get("VOICEFLOW_UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text(), "review the change, then VOICEFLOW_UPDATE_GOLDEN=1 make test"


def test_scaling_down_takes_the_pod_with_the_fewest_streams(server, tmp_path):
    """The annotation is written as Kubernetes takes it: to something that answers as its API would."""
    asked = []

    class Api(BaseHTTPRequestHandler):
        def do_PATCH(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked.append((self.path, self.headers["authorization"], self.headers["content-type"], body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Api) as api:
        threading.Thread(target=api.serve_forever, daemon=True).start()
        (tmp_path / "token").write_text("secret\n")
        annotator = PodAnnotator(f"http://127.0.0.1:{api.server_port}", "voiceflow", "pod-1", account=tmp_path)
        annotator.tell(count_streams(f"http://127.0.0.1:{server}/metrics"))
        annotator.tell(0)  # as before: not told again
        annotator.tell(17)
        api.shutdown()
    path, *_ = asked[0]
    assert path == "/api/v1/namespaces/voiceflow/pods/pod-1"
    assert [body["metadata"]["annotations"][ANNOTATION] for *_, body in asked] == ["0", "17"]
    assert asked[0][1:3] == ("Bearer secret", "application/merge-patch+json")
