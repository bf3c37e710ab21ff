"""Items of the thread: two commands, real excerpts, the reference client, faults, bad input, pipeline, predictor.

The items that need a fresh clone (`make run`, `make test`) are run with --slow.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.items import Row, run, tests_pass
from voiceflow.adapters.home import shared

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


def clones() -> dict[str, Row]:
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


def items(*, slow: bool) -> Iterator[tuple[str, Row]]:
    """Each item's name and row."""
    if slow:
        yield from clones().items()
    yield "3 diarize and score on real excerpts", excerpts()
    for name, selection in TESTS.items():
        yield name, tests_pass(*selection)
    bench = run(sys.executable, "-m", "voiceflow.cli", "bench", "model", "--json")
    yield "figures: one step", {"passed": None, "figures": json.loads(bench.stdout)}
