"""`make smoke`: every benchmark and every part of the acceptance list at tiny size, to see that each runs; figures say nothing.

All of it happens in a small repository of its own with espeak-ng voices: no shared recordings, and no report of ours changes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.workplace import REPO, small_repository

AT_ONCE = 2
LAST_LINES = 25
COMMANDS: dict[str, list[str]] = {
    # What takes longest comes first.
    "drift_loop": ["-m", "benchmarks.drift_loop"],
    "acceptance rollout": ["-m", "benchmarks.acceptance", "rollout"],
    "acceptance streams": ["-m", "benchmarks.acceptance", "streams"],
    "acceptance model": ["-m", "benchmarks.acceptance", "model"],
    "acceptance data": ["-m", "benchmarks.acceptance", "data"],
    "reruns": ["-m", "benchmarks.reruns"],
    "curve": ["-m", "benchmarks.curve", "--steps", "6"],
    "acceptance data, slow": ["-m", "benchmarks.acceptance", "data", "--slow"],
    "acceptance streams, slow": ["-m", "benchmarks.acceptance", "streams", "--slow"],
    "acceptance servers": ["-m", "benchmarks.acceptance", "servers"],
    "acceptance start": ["-m", "benchmarks.acceptance", "start"],
    "acceptance thread": ["-m", "benchmarks.acceptance", "thread"],
    "kinds": ["-m", "benchmarks.kinds", "--seeds", "1", "--conversations", "6"],
    "drifts": ["-m", "benchmarks.drifts"],
    "simulation": ["-m", "benchmarks.simulation", "--conversations", "4"],
    "streams": ["-m", "benchmarks.streams", "--workers", "1", "--seconds", "3", "--streams", "2"],
    "churn": ["-m", "benchmarks.churn", "--streams", "60", "--at-once", "6", "--workers", "1"],
    "hostile": ["-m", "benchmarks.hostile", "--streams", "4", "--seconds", "2", "pings"],
    "rounds": ["-m", "benchmarks.rounds", "--rounds", "1", "--streams", "4", "--seconds", "4"],
    "handover": ["-m", "benchmarks.handover", "--recordings", "2", "--replay-s", "4"],
    "voices": ["-m", "benchmarks.voices"],
    "parts": ["-m", "benchmarks.parts", "--streams", "8"],
    "bench model": ["-m", "voiceflow.cli", "bench", "model", "--repeats", "10"],
    "the card": ["-c", "from benchmarks.release import card; print(card())"],
}
"""By name; each is given to Python."""
NEEDS_RECORDINGS = {"frozen": ["-m", "benchmarks.frozen"]}
"""What cannot run without real speech, and must say so."""
IN_THE_CHECKOUT = ("the card",)
"""Read files of this repository, and write none."""


def main() -> None:
    """Run all, or those named; exits 1 if one does not come to its end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join([*COMMANDS, *NEEDS_RECORDINGS])}")
    names = parser.parse_args().names or [*COMMANDS, *NEEDS_RECORDINGS]
    if unknown := set(names) - {*COMMANDS, *NEEDS_RECORDINGS}:
        parser.error(f"expected names of {', '.join([*COMMANDS, *NEEDS_RECORDINGS])}, got {', '.join(unknown)}")
    with tempfile.TemporaryDirectory(prefix="voiceflow-smoke-") as folder:
        failed = list(smoke(Path(folder), names))
    for name, told in failed:
        print(f"\n{name} did not come to its end:\n{told}")
    print(f"{len(names) - len(failed)} of {len(names)} run")
    sys.exit(bool(failed))


def smoke(folder: Path, names: list[str]) -> Iterator[tuple[str, str]]:
    """Those that fail, with their last words."""
    env = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"} | {
        "VOICEFLOW_TINY": "1",
        "VOICEFLOW_SHARED": str(folder / "none"),
        "VOICEFLOW_HOME": str(folder / "home"),
        "PYTHONPATH": str(REPO),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
    }
    repo = folder / "repo"
    began_s = time.monotonic()
    small_repository(repo, env=env)
    prepared = _run(["-m", "voiceflow.cli", "stage", "prepare", "--profile", "loop"], repo, env)
    print(f"{'a small repository':28} {time.monotonic() - began_s:6.1f} s", flush=True)
    if prepared.returncode:
        yield "a small repository", _last_words(prepared)
        return

    def one(name: str) -> tuple[str, float, str]:
        started_s = time.monotonic()
        command, place = COMMANDS.get(name) or NEEDS_RECORDINGS[name], REPO if name in IN_THE_CHECKOUT else repo
        done = _run(command, place, env | {"VOICEFLOW_HOME": str(folder / name)})
        failure = "" if not done.returncode else _last_words(done)
        if name in NEEDS_RECORDINGS:
            says = "error: " in done.stderr and "Traceback" not in done.stderr
            failure = "" if done.returncode == 1 and says else f"expected it to say what it needs:\n{_last_words(done)}"
        return name, time.monotonic() - started_s, failure

    with ThreadPoolExecutor(AT_ONCE) as executor:
        for name, took_s, failure in executor.map(one, names):
            print(f"{name:28} {took_s:6.1f} s  {'FAILS' if failure else 'runs'}", flush=True)
            if failure:
                yield name, failure


def _run(command: list[str], cwd: Path, env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, *command]
    return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def _last_words(done: "subprocess.CompletedProcess[str]") -> str:
    return "\n".join((done.stdout + done.stderr).strip().splitlines()[-LAST_LINES:])


if __name__ == "__main__":
    main()
