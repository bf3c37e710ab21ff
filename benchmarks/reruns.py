"""One value changed, and the pipeline run again: which steps run, on kfp.local and as `--explain-cache` foretells.

python -m benchmarks.reruns [FOLDER]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from benchmarks.items import sized
from benchmarks.workplace import PROFILE, REPO, small_repository

ALWAYS = {"promote"}
"""Depends on what is champion now."""
CHANGES: dict[str, tuple[tuple[str, str, Any] | None, set[str]]] = {"nothing": (None, set())} | sized({
    "latency.repeats": (("latency", "repeats", 21), {"latency"}),
    "evaluate.max_der": (("evaluate", "max_der", 0.81), {"evaluate", "export", "latency"}),
    "train.seed": (("train", "seed", 8), {"train", "evaluate", "export", "latency"}),
}, tiny={})  # fmt: skip
"""What is changed, and the steps that must run for it beside `ALWAYS`."""


def measure(folder: Path, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Run once, then once for each of `CHANGES`; what ran, what was foretold, what should have run.

    Raises:
        RuntimeError: A run failed.
    """
    repo = folder / "repo"
    env = {"VOICEFLOW_HOME": str(folder / "home"), "PYTHONPATH": str(REPO), "PYTHONWARNINGS": "ignore"}
    small_repository(repo, env=env)
    rows = []
    for name, (change, due) in {"first run": (None, None), **CHANGES}.items():
        if change is not None:
            section, key, value = change
            values = yaml.safe_load((repo / "params.yaml").read_text(encoding="utf-8"))
            values[section][key] = value
            (repo / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        told = _voiceflow(repo, env, "run", "--profile", PROFILE, "--explain-cache", "--json")
        foretold = {step for step, what in told.items() if what != "reused"}
        started_s = time.monotonic()
        summary = _voiceflow(repo, env, "run", "--profile", PROFILE, "--json")
        ran = set(told) - set(summary["reused"])
        expected = set(told) if due is None else due | ALWAYS
        rows.append(
            {
                "changed": name,
                "ran": sorted(ran),
                "holds": ran == expected == foretold,
                "seconds": round(time.monotonic() - started_s, 1),
            }
        )
        say(f"{name:18} {'holds' if rows[-1]['holds'] else 'FAILS':6} {rows[-1]['seconds']:6.1f} s  {sorted(ran)}")
    return rows


def _voiceflow(repo: Path, env: dict[str, str], *arguments: str) -> Any:
    command = [sys.executable, "-m", "voiceflow.cli", *arguments]
    done = subprocess.run(command, cwd=repo, env=os.environ | env, capture_output=True, text=True, check=False)
    # 1: the new model was not promoted.
    if done.returncode not in (0, 1) or not done.stdout.strip():
        raise RuntimeError(f"voiceflow {' '.join(arguments)}: {done.stdout[-1000:]}{done.stderr[-2000:]}")
    return json.loads(done.stdout)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parsed = parser.parse_args()
    rows = measure(parsed.folder or Path(tempfile.mkdtemp(prefix="voiceflow-reruns-")))
    sys.exit(not all(row["holds"] for row in rows))
