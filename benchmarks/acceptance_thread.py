"""Items of the thread: real excerpts, the reference client, faults, bad input, pipeline, predictor."""

import json
import sys
import tempfile
from collections.abc import Iterator
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


def items(*, slow: bool) -> Iterator[tuple[str, Row]]:
    """Each item's name and row; the two commands, items 1 and 2, are in acceptance_start."""
    yield "3 diarize and score on real excerpts", excerpts()
    for name, selection in TESTS.items():
        yield name, tests_pass(*selection)
    bench = run(sys.executable, "-m", "voiceflow.cli", "bench", "model", "--json")
    yield "figures: one step", {"passed": None, "figures": json.loads(bench.stdout)}
