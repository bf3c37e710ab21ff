"""`voiceflow bench t4`: a T4 node for as long as the benchmark takes, on Google Kubernetes Engine."""

import json
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from voiceflow.cli.console import emit_json, err, out
from voiceflow.errors import ConfigError, PlatformError

NODE_POOL = "voiceflow-bench-t4"
IMAGE = "ghcr.io/voiceflow/voiceflow-serving-gpu:0.1.0"
TIMEOUT_S = 1800
PROGRAMS = ("gcloud", "kubectl")


def bench_t4(
    cluster: Annotated[str, typer.Option(help="Name of the GKE cluster; kubectl's context is set to it.")],
    zone: Annotated[str, typer.Option(help="Its zone, one that has T4s: us-central1-a, ...")],
    project: Annotated[str | None, typer.Option(help="Google Cloud project; else gcloud's.")] = None,
    image: Annotated[str, typer.Option(help="The GPU image.")] = IMAGE,
    provider: Annotated[str, typer.Option(help="cuda or tensorrt.")] = "cuda",
    namespace: Annotated[str, typer.Option(help="Where the job runs.")] = "voiceflow",
    output: Annotated[Path, typer.Option(help="The figures, as JSON.")] = Path("reports/latency/t4.json"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands, run none.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Create a T4 node, time a step on it, fetch the figures, delete the node, whatever happens."""
    if provider not in ("cuda", "tensorrt"):
        raise ConfigError(f"--provider {provider}: expected cuda or tensorrt")
    where = ["--cluster", cluster, "--zone", zone, *(["--project", project] if project else [])]
    create = ["gcloud", "container", "node-pools", "create", NODE_POOL, *where, "--num-nodes", "1", "--quiet"]
    create += ["--machine-type", "n1-standard-4", "--node-taints", "nvidia.com/gpu=present:NoSchedule"]
    create += ["--accelerator", "type=nvidia-tesla-t4,count=1,gpu-driver-version=latest"]
    delete = ["gcloud", "container", "node-pools", "delete", NODE_POOL, *where, "--quiet"]
    kubectl = ["kubectl", "--namespace", namespace]
    job = json.dumps(manifest(image, provider))
    context = ["gcloud", "container", "clusters", "get-credentials", cluster, *where[2:]]
    steps: list[tuple[list[str], str]] = [
        (context, ""),
        (create, ""),
        ([*kubectl, "apply", "-f", "-"], job),
        ([*kubectl, "wait", "--for=condition=complete", f"job/{NODE_POOL}", f"--timeout={TIMEOUT_S}s"], ""),
        ([*kubectl, "logs", f"job/{NODE_POOL}"], ""),
    ]
    cleaning = [[*kubectl, "delete", "job", NODE_POOL, "--ignore-not-found"], delete]
    if dry_run:
        for command, given in steps:
            out.print(
                shlex.join(command) + (f" <<< {shlex.quote(given)}" if given else ""), markup=False, soft_wrap=True
            )
        for command in cleaning:
            out.print(shlex.join(command), markup=False, soft_wrap=True)
        return
    said = ""
    try:
        for command, given in steps:
            err.print(shlex.join(command), markup=False, soft_wrap=True)
            said = _run(command, given)
    finally:
        left = [command for command in cleaning if not _cleaned(command)]
        if left:
            raise PlatformError(f"the T4 node may still be there and cost money; run: {shlex.join(left[-1])}")
    try:
        figures: dict[str, Any] = json.loads(said[said.index("{") :])
    except ValueError as error:
        raise PlatformError(f"the job printed no figures: {said[-500:]}") from error
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if json_:
        emit_json(figures)
        return
    for batch, row in figures["batches"].items():
        out.print(f"batch {batch}: p50 {row['p50_ms']} ms, p99 {row['p99_ms']} ms on {figures['device']}")
    out.print(f"written to {output}; put bounds into params.yaml, latency.max_p99_ms.t4")


def manifest(image: str, provider: str) -> dict[str, Any]:
    """The job that times a step, on a T4 node and nowhere else."""
    container = {
        "name": "bench",
        "image": image,
        "command": ["voiceflow", "bench", "model", "--provider", provider, "--json"],
        "resources": {
            "requests": {"cpu": "2", "memory": "4Gi"},
            "limits": {"cpu": "2", "memory": "4Gi", "nvidia.com/gpu": "1"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        "nodeSelector": {"cloud.google.com/gke-nodepool": NODE_POOL},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    spec = {"backoffLimit": 0, "activeDeadlineSeconds": TIMEOUT_S, "template": {"spec": pod}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": NODE_POOL}, "spec": spec}


def _run(command: Sequence[str], given: str) -> str:
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise PlatformError(
            f"{command[0]} is not installed; `voiceflow bench t4` needs {' and '.join(PROGRAMS)}"
        ) from error
    except subprocess.CalledProcessError as error:
        raise PlatformError(f"`{shlex.join(command[:4])} ...` failed: {(error.stderr or '').strip()[-500:]}") from error
    return done.stdout


def _cleaned(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return True  # what could create nothing has nothing to delete
