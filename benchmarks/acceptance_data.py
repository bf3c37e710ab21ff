"""Items of the data: faults that are found, corpora by name, drift that is seen, the loop back to training, and what goes
wrong on the way."""

import json
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.bad_data import FAULTS, plant_all
from benchmarks.drift_loop import Broken, go_round
from benchmarks.drifts import measure
from benchmarks.items import IS_TINY, Row, chosen, run, sized, tests_pass
from benchmarks.reruns import measure as rerun
from benchmarks.simulation import measure as simulation_speed
from benchmarks.voices import recall
from voiceflow.config import load_params
from voiceflow.corpora.description import Corpus, read_descriptions
from voiceflow.corpora.recipes import read_parts
from voiceflow.corpora.store import store_corpus
from voiceflow.stages.data_report import compare_rhythms, mean_ks, write_report
from voiceflow.stages.prepare import prepare
from voiceflow.stages.validate import validate

HOME = Path(".voiceflow/acceptance")
DATASET = Path("data/prepared")
DESCRIBED = Path(__file__).parent.parent / "data" / "corpora"
MANY, MANY_S = sized(10_000, tiny=40), 12.0
HELD = sized(100, tiny=4)
"""Recordings, and how long each is."""
MAX_CHECK_S, MAX_CHECK_GB = 300.0, 2.0
MAX_FALSE_ALARMS = 5
MIN_TIMES_REAL_TIME, MAX_GROWTH_MB = 500, 50.0


def items(*, slow: bool, item: str = "") -> Iterator[tuple[str, Row]]:
    """Each item's name and row."""
    numbers: dict[str, Callable[[], Iterator[tuple[str, Row]]]] = {
        "1": faults,
        "2": corpora,
        "3": drifts,
        "4": loop,
        "5": versions,
        "6": mishaps,
        "7": conversations,
    }
    if not slow:
        yield from chosen(numbers, item)
    if slow and item in ("", "1"):
        yield from many()


SLOW = ("1 check of 10,000 recordings",)


def faults() -> Iterator[tuple[str, Row]]:
    """Twelve faults in conversations of real voices, each found by name; none in the same without them."""
    config = load_params().validate_
    with tempfile.TemporaryDirectory() as folder:
        clean = validate(config, DATASET, Path(folder) / "clean")
        planted = plant_all(DATASET, Path(folder) / "bad")
        found = validate(config, Path(folder) / "bad", Path(folder) / "report")
    findings = {finding["check"]: finding["rows"] for finding in [*found["faults"], *found["warnings"]]}
    named = {
        check: all(any(name.startswith(row) for name in findings.get(check, [])) for row in rows)
        for check, rows in planted.items()
    }
    false = sorted({finding["check"] for finding in [*clean["faults"], *clean["warnings"]]} & set(FAULTS))
    yield (
        "1 twelve planted faults",
        {
            "passed": all(named.values()) and not false and len(named) == 12,
            "figures": {"named": named, "on_clean_data": false, "recordings": clean["checked"]["recordings"]},
        },
    )
    yield "1 one voice under two names", {"passed": None, "figures": recall(DATASET)}


def many() -> Iterator[tuple[str, Row]]:
    """`voiceflow data check` of ten thousand recordings: time, and memory of all its processes."""
    config = load_params().prepare
    counts = config.conversations.model_copy(update={"train": MANY - 2 * HELD, "dev": HELD, "test": HELD})
    config = config.model_copy(update={"conversations": counts, "conversation_s": MANY_S, "recorded": None})
    dataset = HOME / "ten-thousand"
    made = dataset / "prepare.json"
    if not made.is_file() or json.loads(made.read_text())["config"] != config.model_dump(mode="json"):
        prepare(config, dataset, corpus=Path(config.corpus), revision="ten thousand")
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        done = run(sys.executable, "-m", "voiceflow.cli", "data", "check", str(dataset), "--report", folder, "--json")
    seconds = time.monotonic() - started_s
    peak_gb = max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1e6
    verdict = json.loads(done.stdout) if done.returncode in (0, 1) and done.stdout else {"checked": {}, "hours": 0}
    # The largest of its processes, for each of them: two workers and the one that asks.
    yield (
        SLOW[0],
        {
            "passed": seconds < MAX_CHECK_S and 3 * peak_gb < MAX_CHECK_GB and verdict["checked"]["recordings"] == MANY,
            "figures": {
                "seconds": round(seconds, 1),
                "largest_process_gb": round(peak_gb, 3),
                "hours": verdict["hours"],
                "findings": [
                    [finding["check"], finding["severity"], len(finding["rows"])]
                    for finding in [*verdict.get("faults", []), *verdict.get("warnings", [])]
                ],
            },
        },
    )


def corpora() -> Iterator[tuple[str, Row]]:
    """Four layouts from a mirror to a model's DER; and how storing shards grows with cores."""
    yield "2 AMI, VoxConverse, LibriSpeech, AliMeeting", tests_pass("tests/integration/test_corpora.py")
    speech = load_params().prepare.corpus
    corpus = Corpus(
        name="speech",
        title="speech",
        kind="voices",
        source=speech,
        licence="see data/README.md",
        language="English",
        access="local",
        recipe="utterances",
    )
    seconds: dict[str, list[float]] = {"1": [], "2": []}
    parts: Any = read_parts("utterances", Path(speech), {})
    for _ in range(sized(3, tiny=1)):
        for workers, taken in seconds.items():
            with tempfile.TemporaryDirectory() as folder:
                started_s = time.monotonic()
                store_corpus(
                    corpus, parts, Path(folder) / "speech", revision="x", num_workers=int(workers), shard_s=1800.0
                )
                taken.append(time.monotonic() - started_s)
    medians = {workers: round(statistics.median(taken), 2) for workers, taken in seconds.items()}
    yield (
        "2 storing 9 h in shards, 1 and 2 processes",
        {"passed": None, "figures": {"seconds": medians, "ratio": round(medians["1"] / medians["2"], 2)}},
    )


def drifts() -> Iterator[tuple[str, Row]]:
    """Eight shifts and draws without one."""
    found = measure(Path(load_params().prepare.corpus))
    yield (
        "3 drift",
        {
            "passed": all(row["raised_at_streams"] for row in found["shifts"])
            and found["false_alarms"] <= MAX_FALSE_ALARMS,
            "figures": found,
        },
    )


def loop() -> Iterator[tuple[str, Row]]:
    """Shift, alert, training, gates, challenger: once, unattended."""
    if IS_TINY:
        return  # `make smoke` runs benchmarks.drift_loop by itself
    folder = Path(tempfile.mkdtemp(prefix="voiceflow-loop-"))
    try:
        steps = go_round(folder, say=lambda sentence: None)
        yield "4 the whole loop", {"passed": all(step["holds"] for step in steps), "figures": steps}
        shutil.rmtree(folder)
    except Broken as err:
        yield "4 the whole loop", {"passed": False, "figures": str(err)[-1500:]}


def versions() -> Iterator[tuple[str, Row]]:
    """dvc repro twice, one value changed, the same in the pipeline's cache; the same digests anywhere."""
    tests = ("tests/integration/test_repro.py", "tests/unit/test_explain.py", "tests/integration/test_s3_remote.py")
    yield "5 reproduced, in part and anywhere", tests_pass(*tests, "tests/unit/stages/test_prepare.py")
    with tempfile.TemporaryDirectory(prefix="voiceflow-reruns-") as folder:
        rows = [] if IS_TINY else rerun(Path(folder), say=lambda sentence: None)
    yield "5 one value changed, on kfp.local", {"passed": all(row["holds"] for row in rows), "figures": rows}


def mishaps() -> Iterator[tuple[str, Row]]:
    """Corrupted downloads, full disks, kills, missing remotes, moved files."""
    yield (
        "6 what goes wrong on the way",
        tests_pass(
            "tests/unit/corpora/test_download.py",
            "tests/unit/stages/test_prepare.py",
            "tests/integration/test_corpora.py",
            "tests/integration/test_data_versions.py",
            "tests/integration/test_s3_remote.py",
            "-k",
            "killed or disk or corrupted or moved or room or kept or fails or missing or told or again or unpacked or away",
        ),
    )


def conversations() -> Iterator[tuple[str, Row]]:
    """How fast training conversations are made, in what memory, and how like real ones they are."""
    speed = simulation_speed(Path(load_params().prepare.corpus), sized(100, tiny=4))
    yield (
        "7 conversations made on one core",
        {
            "passed": speed["times_real_time_per_core"] >= MIN_TIMES_REAL_TIME
            and max(speed["memory_growth_mb_by_round"]) < MAX_GROWTH_MB,
            "figures": speed,
        },
    )
    compared = compare_rhythms(DATASET, [])
    with tempfile.TemporaryDirectory() as folder:
        figures = write_report(compared, read_descriptions(DESCRIBED), Path(folder))
    near = {
        f"{name} to {real}": round(mean_ks(rows[real]), 3)
        for name, rows in compared.distances.items()
        for real in compared.real
    }
    yield "7 real, published and simulated", {"passed": None, "figures": {"mean_ks": near, **figures}}
