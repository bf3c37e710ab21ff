"""`python -m benchmarks.acceptance thread`: what must hold, run item by item, with figures in docs/results/.

The items of the thread that need a fresh clone (`make run`, `make test`) are run with --clones.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from voiceflow.adapters.data_versions import git_commit
from voiceflow.adapters.home import shared

RESULTS = Path("docs/results")
TESTS = {
    "4 the reference client": ["tests/e2e/test_streams.py", "-k", "reference"],
    "5 planted faults and missed gates": ["tests/unit/stages/test_validate.py", "tests/integration/test_registry.py"],
    "6 packets, neighbours, offline, ONNX": ["tests/unit/test_session.py", "tests/integration/test_models.py"],
    "7 bad input": [
        "tests/unit/test_audio.py",
        "tests/e2e/test_cli.py",
        "tests/e2e/test_streams.py",
        "-k",
        "bad or refuse or told or file",
    ],
    "8 the compiled pipeline": ["tests/integration/test_pipeline.py"],
    "9 predictor and transformer apart": ["tests/e2e/test_streams.py", "-k", "apart"],
}


def run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command and keep what it printed."""
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def excerpts() -> dict[str, Any]:
    """Item 3: every real excerpt through `voiceflow diarize` and `voiceflow score`."""
    folder = shared()
    if folder is None:
        return {"passed": None, "figures": "skipped: no $VOICEFLOW_SHARED"}
    audio = sorted((folder / "data" / "meeting-excerpts").glob("*.wav"))
    with tempfile.TemporaryDirectory() as answers:
        told = run(sys.executable, "-m", "voiceflow.cli", "diarize", *map(str, audio), "--rttm", answers)
        scored = run(sys.executable, "-m", "voiceflow.cli", "score", str(audio[0].parent), answers, "--json")
    if told.returncode or scored.returncode:
        return {"passed": False, "figures": told.stderr + scored.stderr}
    figures = json.loads(scored.stdout)
    return {
        "passed": True,
        "figures": {row["recording"]: row["der"] for row in figures["recordings"]} | {"all": figures["overall"]["der"]},
    }


def clones() -> dict[str, dict[str, Any]]:
    """Items 1 and 2: the two commands from fresh clones, with and without shared recordings."""
    rows = {}
    for name, target, with_shared in (
        ("1 make run", "run", True),
        ("1 make run without shared recordings", "run", False),
        ("2 make test", "test", True),
    ):
        with tempfile.TemporaryDirectory() as folder:
            clone = Path(folder) / "voiceflow"
            run("git", "clone", "-q", str(Path.cwd()), str(clone))
            found = shared()
            if with_shared and found is not None:
                (Path(folder) / "shared").symlink_to(found)
            started = time.monotonic()
            done = run("make", target, "PORT=18090", cwd=clone)
            minutes = round((time.monotonic() - started) / 60, 1)
            passed = done.returncode == 0 and (target == "test" or minutes <= 20)
            rows[name] = {
                "passed": passed,
                "figures": {"minutes": minutes, "last_lines": done.stdout.splitlines()[-12:]},
            }
    return rows


def main() -> None:
    """Run a part, print its table, write docs/results/<part>.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["thread"])
    parser.add_argument("--clones", action="store_true", help="also the items that need fresh clones (half an hour)")
    arguments = parser.parse_args()
    rows: dict[str, dict[str, Any]] = clones() if arguments.clones else {}
    rows["3 diarize and score on real excerpts"] = excerpts()
    for name, selection in TESTS.items():
        done = run(sys.executable, "-m", "pytest", *selection)
        last = next((line for line in reversed(done.stdout.splitlines()) if "passed" in line or "failed" in line), "")
        rows[name] = {"passed": done.returncode == 0, "figures": last}
    bench = run(sys.executable, "-m", "voiceflow.cli", "bench", "model", "--json")
    rows["figures: one step"] = {"passed": None, "figures": json.loads(bench.stdout)}
    RESULTS.mkdir(parents=True, exist_ok=True)
    report = {"commit": git_commit(), "cores": os.cpu_count(), "load_average": os.getloadavg()[0], "items": rows}
    (RESULTS / f"{arguments.part}.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    width = max(map(len, rows))
    for name, row in rows.items():
        state = {True: "holds", False: "FAILS", None: "-"}[row["passed"]]
        print(
            f"{name:{width}}  {state:6} {json.dumps(row['figures'])[: shutil.get_terminal_size((160, 20)).columns - width - 10]}"
        )
    sys.exit(any(row["passed"] is False for row in rows.values()))


if __name__ == "__main__":
    main()
