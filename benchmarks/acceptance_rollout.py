"""Items of the rollout: bad models refused, comparisons that can be trusted, promotion and rollback."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.acceptance_model import test_set
from benchmarks.bad_models import BAD
from benchmarks.items import IS_TINY, Row, chosen, sized, tests_pass
from benchmarks.promotions import AROUND, Workplace, refusal
from benchmarks.rollouts import STUCK_S, Stage, faults_of, faults_of_good
from voiceflow.config import load_params
from voiceflow.gates import compare
from voiceflow.runtime import StepModel, pretrained_path
from voiceflow.stages.dataset import read_recordings, read_samples
from voiceflow.stages.prepare import prepare
from voiceflow.stages.scoring import SplitScores, errors_s

HOME = Path(".voiceflow/acceptance")
DRAWS, CONVERSATIONS = sized((100, 100), tiny=(2, 12))
STREAMS, CALLED = sized((300, 40), tiny=(8, 4))
"""Calls at a time, and recordings that they are of."""
MAX_ROLLBACK_S = 120.0


def items(*, slow: bool, item: str = "") -> Iterator[tuple[str, Row]]:
    """Each item's name and row."""
    numbers: dict[str, Callable[[], Iterator[tuple[str, Row]]]] = {
        "1": bad_models,
        "2": comparisons,
        "3": live,
        "4": killed,
        "5": manifests,
        "6": on_postgres,
    }
    if not slow:
        yield from chosen(numbers, item)


def conversations() -> Path:
    """Half of two speakers, half of four: a slice of each that is large enough to judge by."""
    params = load_params(Path("params.yaml"))
    dataset = HOME / "promotions"
    counts = params.prepare.conversations.model_copy(update={"train": 1, "dev": 1, "test": sized(48, tiny=12)})
    changes = {
        "conversations": counts,
        "conversation_s": sized(30.0, tiny=12.0),
        "num_speakers_weights": [0.0, 0.5, 0.0, 0.5],
    }
    config = params.prepare.model_copy(update=changes | {"recorded": None})
    made = dataset / "prepare.json"
    if not made.is_file() or json.loads(made.read_text())["config"] != config.model_dump(mode="json"):
        shutil.rmtree(dataset, ignore_errors=True)
        prepare(config, dataset, corpus=Path(config.corpus), revision="promotions")
    return dataset.resolve()


def bad_models() -> Iterator[tuple[str, Row]]:
    """Item 1: twenty that must not become champion; each is a real file put through the real command."""
    folder = (HOME / "workplace").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    place = Workplace(folder, conversations(), load_params(Path("params.yaml")))
    try:
        place.set_up()
        code, told = place.run("promote", "--accept-equal", files=place.candidate(version="0.3.0"))
        yield "1 a good model becomes champion", {"passed": code == 0, "figures": tidy(told).strip().splitlines()[-3:]}
        for bad in BAD[: sized(len(BAD), tiny=1)]:
            files = place.candidate(bad.change)
            before = place.state()
            code, told = place.run("promote", "--accept-equal", files=files)
            faults = refusal(place, bad.says, code, told, before)
            yield f"1 {bad.name}", {"passed": not faults, "figures": faults or reason(told)}
        for name, (act, says) in list(AROUND.items())[: sized(len(AROUND), tiny=1)]:
            code, told, before = act(place)
            faults = refusal(place, says, code, told, before)
            yield f"1 {name}", {"passed": not faults, "figures": faults or reason(told)}
            if name == "a champion deleted meanwhile":
                code, told = place.run("rollback", "--to", "1", "--why", "the champion was deleted")
                yield "1 a champion named again", {"passed": code == 0, "figures": told.strip()}
    finally:
        place.close()


def tidy(told: str) -> str:
    """What was printed, without where this checkout lies."""
    return told.replace(f"{HOME.resolve().parents[1]}/", "")


def reason(told: str) -> str:
    """The reasons at the end of what was printed."""
    lines = [line.strip() for line in tidy(told).splitlines()]
    begin = next((n for n, line in enumerate(lines) if "becomes nothing" in line), None)
    found = [line for line in lines if line.startswith("error:")] if begin is None else lines[begin + 1 :]
    return " | ".join(line for line in found if line and "━" not in line and not line.startswith("card:"))


def comparisons() -> Iterator[tuple[str, Row]]:
    """Item 2: real scores of conversations, and a model that is better by what is planted.

    A better model is the shipped one with a share of each conversation's errors taken away, unevenly, so that the
    whole has the DER that is wanted; an equal one errs as much on average, but elsewhere.
    """
    params = load_params(Path("params.yaml"))
    dataset = test_set()
    recordings = read_recordings(dataset, "test")
    scored = SplitScores(dataset, recordings, StepModel(pretrained_path()), latency_s=1.04).scores
    other = SplitScores(dataset, recordings, StepModel(pretrained_path()), latency_s=0.64).scores
    names = list(scored)
    errors, speech = np.array(errors_s(scored, names)), np.array([scored[name].reference_s for name in names])
    # How differently two models err on one conversation, less what one is worse by on the whole.
    apart = np.array(errors_s(other, names)) - errors
    apart -= speech * apart.sum() / speech.sum()
    better = equal = itself = 0
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(names), CONVERSATIONS, replace=False)
        champion, reference = errors[chosen], speech[chosen]
        signs = rng.choice([-1.0, 1.0], CONVERSATIONS)
        noise = apart[chosen] * signs
        noise -= reference * noise.sum() / reference.sum()
        better += compare(champion, champion + noise - 0.03 * reference, reference, params.promote).verdict == "better"
        fresh = apart[chosen] * rng.choice([-1.0, 1.0], CONVERSATIONS)
        equal += compare(champion, champion + fresh, reference, params.promote).verdict == "better"
        itself += compare(champion, champion, reference, params.promote).verdict == "better"
    spread = round(float(100 * apart.std() / speech.mean()), 2)
    told: dict[str, Any] = {"draws": DRAWS, "conversations": CONVERSATIONS, "spread_of_differences_points": spread}
    yield "2 a champion against itself is never better", {"passed": itself == 0, "figures": told | {"better": itself}}
    yield "2 3 points better is found", {"passed": better >= 95, "figures": told | {"better": better}}
    yield "2 an equal one is not", {"passed": equal <= 5, "figures": told | {"better": equal}}


def on_stage() -> Stage:
    """300 people who call and hang up, on servers with a controller; with the released parameters."""
    params = load_params(Path("params.yaml"))
    dataset = Path("data/prepared")
    recordings = [read_samples(dataset, row) for row in read_recordings(dataset, "test")[:CALLED]]
    folder = (HOME / "rollouts").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    quick = {"look_s": 1.0, "min_looks": 2, "min_streams": 1} if IS_TINY else {}
    params = params.model_copy(update={"rollout": params.rollout.model_copy(update=quick)})
    length_s = sized((15.0, 40.0), tiny=(4.0, 9.0))
    return Stage(folder, recordings, params, streams=STREAMS, scrape=sized("1s", tiny="250ms"), length_s=length_s)


def live() -> Iterator[tuple[str, Row]]:
    """Item 3: challengers made slow, failing and flipping at 5 % are taken back; a good one goes to all."""
    with on_stage() as stage:
        steps = stage.params.rollout.steps
        stage.set_steps(sized([0.05, *(step for step in steps if step > 0.05)], tiny=[0.5, 1.0]))
        for kind in sized(("slow", "failing", "flipping"), tiny=("failing",)):
            outcome = stage.roll_out(kind)
            wrong = faults_of(outcome, version_before="1", max_seconds=MAX_ROLLBACK_S, max_share=0.05)
            yield f"3 {kind}", {"passed": not wrong, "figures": outcome.figures() | {"wrong": wrong}}
        if IS_TINY:
            return
        stage.set_steps(steps)
        outcome = stage.roll_out("good")
        wrong = faults_of_good(outcome, steps)
        yield "3 good", {"passed": not wrong, "figures": outcome.figures() | {"wrong": wrong}}


def killed() -> Iterator[tuple[str, Row]]:
    """Item 4: the controller is killed at each step, and at its end, and started again."""

    def at_each_step(look: dict[str, Any], kills: int) -> bool:
        is_over = look["status"] != "running"
        return (look["step"] == kills and look["looks"] >= 3) or (is_over and kills == len(steps))

    if IS_TINY:
        return  # as item 3, with kills, for many minutes; tests/e2e/test_live_rollout.py
    with on_stage() as stage:
        steps = stage.params.rollout.steps
        for kind in ("flipping", "failing"):
            outcome = stage.roll_out(kind, kill_when=lambda look, kills: kills < 2)
            wrong = faults_of(outcome, version_before="1", max_seconds=STUCK_S, max_share=1.0)
            yield f"4 {kind}", {"passed": not wrong, "figures": outcome.figures() | {"wrong": wrong}}
        outcome = stage.roll_out("good", kill_when=at_each_step)
        wrong = faults_of_good(outcome, steps)
        if outcome.kills < len(steps):
            wrong.append(f"killed {outcome.kills} times only")
        yield "4 good", {"passed": not wrong, "figures": outcome.figures() | {"wrong": wrong}}


def manifests() -> Iterator[tuple[str, Row]]:
    """Item 5: overlays, planted faults, and the serving image's scripts in a clean environment."""
    yield "5 every overlay, each planted fault", tests_pass("tests/integration/test_manifests.py")
    yield "5 workflows, compose, Dockerfiles", tests_pass("tests/integration/test_workflows.py")
    if IS_TINY:
        return  # an installation of 2 minutes
    with tempfile.TemporaryDirectory() as scratch:
        clean = {"HOME": scratch, "PATH": os.pathsep.join([str(Path(sys.base_prefix) / "bin"), "/usr/bin", "/bin"])}
        target = str(Path(scratch) / "venv")
        for script in ("install.sh", "smoke.sh"):
            command = ["bash", f"images/{script}", "serving", target]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean)
            told = (done.stdout + done.stderr).strip().splitlines()[-2:]
            yield f"5 images/{script} serving, clean environment", {"passed": not done.returncode, "figures": told}


def on_postgres() -> Iterator[tuple[str, Row]]:
    """Item 6: promotion and rollback on a fresh MLflow server with PostgreSQL."""
    yield "6 promote and rollback on PostgreSQL", tests_pass("tests/e2e/test_promote.py", "-k", "postgres")
