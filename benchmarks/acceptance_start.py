"""Items of the start: the two commands from fresh clones, rules that do not refuse what we make ourselves, manifests, and all
benchmarks at tiny size.

The commands take more than an hour in all; they are run with --slow, one of them with ITEM=1a to 1e.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.items import IS_TINY, Row, chosen, run, sized, tests_pass
from benchmarks.kinds import all_kinds, measure
from voiceflow.adapters.home import shared
from voiceflow.config import load_params

REPO = Path(__file__).parent.parent
MAX_MINUTES = {"run": 10.0, "test": 12.0}
"""On a quiet machine; beside other work the commands have no bound."""
MAX_SKIPS, MAX_SMOKE_MINUTES = 5, 10.0
SEEDS = sized(20, tiny=1)
CLONES: dict[str, tuple[str, dict[str, Any]]] = {
    "1a make run, empty package cache": ("run", {"cache": False}),
    "1b make run": ("run", {}),
    "1c make test": ("test", {}),
    "1d make run, shared recordings, two busy processes": ("run", {"recordings": True, "busy": 2}),
    "1e make test, shared recordings, two busy processes": ("test", {"recordings": True, "busy": 2}),
}
SLOW = tuple(CLONES)
NOT_OURS = (
    "VOICEFLOW_SHARED",
    "VOICEFLOW_HOME",
    "MLFLOW_TRACKING_URI",
    "MAKEFLAGS",
    "MAKELEVEL",
    "MFLAGS",
    "VIRTUAL_ENV",
)
"""Variables that a new user has not set, or that an outer make has."""


def items(*, slow: bool, item: str = "") -> Iterator[tuple[str, Row]]:
    """Each item's name and row."""
    numbers: dict[str, Callable[[], Iterator[tuple[str, Row]]]] = {"2": rules, "3": manifests, "4": smoke}
    if slow:
        if not any(name.startswith(item) for name in CLONES):
            raise SystemExit(f"--item {item}: with --slow expected 1a to 1e; all others without")
        for name, (target, options) in CLONES.items():
            if name.startswith(item):
                yield name, clone(target, **options)
    else:
        yield from chosen(numbers, item)


def clone(target: str, *, cache: bool = True, recordings: bool = False, busy: int = 0) -> Row:
    """One of the two commands in a fresh clone and a new environment.

    Args:
        target: run or test.
        cache: Whether pip's cache may be used.
        recordings: Whether shared recordings lie beside the clone.
        busy: So many processes compute nothing meanwhile.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "voiceflow"
        run("git", "clone", "-q", str(REPO), str(folder))
        found = shared()
        if recordings and found is None:
            return {"passed": None, "figures": "skipped: no $VOICEFLOW_SHARED"}
        if recordings and found is not None:
            (Path(scratch) / "shared").symlink_to(found)
        env = {name: value for name, value in os.environ.items() if name not in NOT_OURS}
        env |= {} if cache else {"PIP_NO_CACHE_DIR": "1"}
        others = [subprocess.Popen(["yes"], stdout=subprocess.DEVNULL) for _ in range(busy)]
        began_s = time.monotonic()
        try:
            done = subprocess.run(
                ["make", target, "PORT=18090"], cwd=folder, env=env, capture_output=True, text=True, check=False
            )
        finally:
            for other in others:
                other.kill()
                other.wait()
        minutes = round((time.monotonic() - began_s) / 60, 1)
    lines = done.stdout.splitlines()
    figures: dict[str, Any] = {"minutes": minutes, "exit": done.returncode, "last_lines": lines[-12:]}
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if "WARNING" not in line]
        figures["errors"] = told[-12:]
    passed = done.returncode == 0 and (busy > 0 or minutes <= MAX_MINUTES[target])
    if target == "run":
        figures["live"] = any(line.startswith("serving voiceflow-diarizer") for line in lines)
        passed = passed and figures["live"]
    else:
        figures["skips"] = sum(int(line.split("[")[1].split("]")[0]) for line in lines if line.startswith("SKIPPED ["))
        passed = passed and figures["skips"] <= MAX_SKIPS
    return {"passed": passed, "figures": figures}


def rules() -> Iterator[tuple[str, Row]]:
    """Item 2."""
    params = load_params(Path("params.yaml"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        all_kinds(folder / "corpus")
        found = measure(params, range(1, SEEDS + 1), corpus=folder / "corpus", folder=folder)
    yield f"2 no critical row, {SEEDS} seeds", {"passed": not found["critical"], "figures": found}
    yield "2 planted faults by name", tests_pass("tests/unit/stages/test_validate.py", "tests/unit/checks")


def manifests() -> Iterator[tuple[str, Row]]:
    """Item 3."""
    if IS_TINY:
        yield "3 make manifests", {"passed": None, "figures": "`make test` runs it"}
        return
    env = {name: value for name, value in os.environ.items() if name != "VOICEFLOW_SHARED"}
    command = [sys.executable, "-m", "manifests.check"]
    with tempfile.TemporaryDirectory() as elsewhere:  # no shared folder beside it
        done = subprocess.run(
            [*command, str(REPO / "manifests")],
            cwd=elsewhere,
            env=env | {"PYTHONPATH": str(REPO)},
            capture_output=True,
            text=True,
            check=False,
        )
    last = done.stdout.strip().splitlines()[-1:]
    yield "3 make manifests without shared recordings", {"passed": not done.returncode, "figures": last}
    yield "3 overlays, planted faults, unknown fields", tests_pass("tests/integration/test_manifests.py")


def smoke() -> Iterator[tuple[str, Row]]:
    """Item 4."""
    if IS_TINY:
        return
    began_s = time.monotonic()
    done = run(sys.executable, "-m", "benchmarks.smoke")
    minutes = round((time.monotonic() - began_s) / 60, 1)
    passed = not done.returncode and minutes <= MAX_SMOKE_MINUTES
    yield "4 make smoke", {"passed": passed, "figures": {"minutes": minutes, "lines": done.stdout.splitlines()}}
