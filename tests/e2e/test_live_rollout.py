"""`voiceflow rollout` between real servers, Prometheus and MLflow, with people who call and hang up."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from benchmarks.rollouts import Stage, faults_of, faults_of_good
from tests.conftest import PATIENCE_S
from voiceflow.adapters.splits import notes_at
from voiceflow.adapters.traffic import NotesJournal
from voiceflow.stages.dataset import read_recordings, read_samples

pytestmark = pytest.mark.e2e
STEPS = [0.2, 1.0]
CALLS, SLOTS = 16, 2
"""Packets of all come in two turns: steps of many streams take this machine less."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory, params, dataset):
    if shutil.which("prometheus") is None:
        pytest.skip("Prometheus is missing: apt-get install prometheus")
    quick = {"steps": STEPS, "look_s": 1.0, "min_looks": 4, "shadow": 0.5, "min_streams": 1, "false_advance": 0.3}
    # Short calls tell little of flips and of how far models differ: here it is about who does what when.
    quick |= {"max_flips_per_minute": 20.0, "max_cross_der": 0.5, "max_late": 0.3, "max_errors": 0.2}
    quick |= {"late_ms": 5000.0}  # on a busy machine answers come late, whoever gives them
    config = params.model_copy(update={"rollout": params.rollout.model_copy(update=quick)})
    recordings = [read_samples(dataset, row) for row in read_recordings(dataset, "test")]
    folder = tmp_path_factory.mktemp("stage")
    with Stage(folder, recordings, config, streams=CALLS, scrape="250ms", length_s=(4.0, 9.0), slots=SLOTS) as stage:
        yield stage


def rollout(stage, *arguments):
    command = [sys.executable, "-m", "voiceflow.cli", "rollout", "--split", str(stage.split), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | stage.env)


def test_what_is_missing_is_told(stage):
    done = rollout(stage)
    assert done.returncode == 2
    assert "no challenger to roll out" in done.stderr
    missing = rollout(stage, "17")
    assert missing.returncode == 1
    assert "has no version 17" in missing.stderr


def test_a_failing_challenger_is_taken_back_though_the_controller_is_killed(stage):
    outcome = stage.roll_out("failing", kill_when=lambda look, kills: kills < 1)
    assert faults_of(outcome, version_before="1", max_seconds=PATIENCE_S, max_share=0.5) == []
    assert outcome.kills == 1
    assert outcome.told["streams_that_changed_models"] >= 1


def test_a_good_one_becomes_champion_though_the_controller_is_killed_at_each_step(stage):
    def at_each_step(look, kills):
        return (look["step"] == kills and look["looks"] >= 2) or (look["status"] == "promoted" and kills == len(STEPS))

    outcome = stage.roll_out("good", kill_when=at_each_step)
    assert faults_of_good(outcome, STEPS) == []
    assert outcome.kills >= len(STEPS)
    told = json.loads(rollout(stage, "--status", "--json").stdout)
    assert told["status"] == "promoted"
    assert told["is_settled"]
    again = rollout(stage, told["challenger"], "--prometheus", stage.prometheus)
    assert again.returncode == 2
    assert "champion already" in again.stderr


def test_one_controller_at_a_time_and_what_it_does_is_undone_by_hand(stage):
    version = stage.challenger("failing")
    journal = NotesJournal(notes_at(str(stage.split)), stale_s=60.0)
    journal.claim()
    refused = rollout(stage, version, "--prometheus", stage.prometheus)
    assert refused.returncode == 1
    assert "one at a time" in refused.stderr
    journal.release()
    process = stage.controller()
    assert process.stdout is not None
    process.stdout.readline()
    done = rollout(stage, "--abort")  # it lives, and is told
    assert process.wait(timeout=PATIENCE_S) == 1
    assert done.returncode == 0, done.stderr
    told = json.loads(rollout(stage, "--status", "--json").stdout)
    assert told["status"] == "rolled_back"
    assert "aborted by" in told["why"] or told["why"] == "the challenger is down"
