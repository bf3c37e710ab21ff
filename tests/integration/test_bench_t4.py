"""Without a cloud: the commands that would be run, and what happens with programs that answer like theirs."""

import json
import os
import stat
import subprocess
import sys

import kubernetes_validate
import pytest

from voiceflow.cli.t4 import NODE_POOL, manifest

FIGURES = {"device": "Tesla T4", "batches": {"1": {"p50_ms": 0.9, "p99_ms": 1.2}}}
ANSWERS = """#!/bin/sh
echo "$(basename "$0") $*" >> "$LOG"
case "$*" in
  *"FAILING"*) echo "quota exceeded" >&2; exit 1 ;;
  *" logs "*) echo 'noise'; echo "$FIGURES" ;;
esac
"""


def run(tmp_path, *arguments, failing="nothing"):
    for name in ("gcloud", "kubectl"):
        program = tmp_path / name
        program.write_text(ANSWERS.replace("FAILING", failing))
        program.chmod(program.stat().st_mode | stat.S_IEXEC)
    env = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "FIGURES": json.dumps(FIGURES),
    }
    command = [sys.executable, "-m", "voiceflow.cli", "bench", "t4", "--cluster", "c", "--zone", "z", *arguments]
    command += ["--output", str(tmp_path / "t4.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    log = tmp_path / "log"
    return done, log.read_text().splitlines() if log.is_file() else []


def test_a_dry_run_prints_every_command_and_runs_none(tmp_path):
    done, log = run(tmp_path, "--dry-run")
    assert done.returncode == 0
    assert log == []
    for words in (
        "node-pools create",
        "type=nvidia-tesla-t4,count=1",
        "apply -f -",
        "wait",
        "logs",
        "node-pools delete",
    ):
        assert words in done.stdout


def test_the_node_is_deleted_after_the_figures_are_fetched(tmp_path):
    done, log = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "t4.json").read_text()) == FIGURES
    assert "node-pools create" in log[1]
    assert log[-1].startswith(f"gcloud container node-pools delete {NODE_POOL}")


@pytest.mark.parametrize("failing", ["node-pools create", " apply ", " wait ", " logs "])
def test_the_node_is_deleted_whatever_fails(tmp_path, failing):
    done, log = run(tmp_path, failing=failing)
    assert done.returncode == 1
    assert "quota exceeded" in done.stderr
    assert log[-1].startswith(f"gcloud container node-pools delete {NODE_POOL}")


def test_a_node_that_cannot_be_deleted_is_told(tmp_path):
    done, _ = run(tmp_path, failing="node-pools delete")
    assert done.returncode == 1
    assert "may still be there and cost money; run: gcloud container node-pools delete" in " ".join(done.stderr.split())


def test_the_job_is_what_kubernetes_takes():
    kubernetes_validate.validate(manifest("image:1.0.0", "cuda"), "1.32", strict=True)
