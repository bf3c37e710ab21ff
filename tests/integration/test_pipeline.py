import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from components.drift import drift
from pipelines.__main__ import PIPELINES, compile_to
from voiceflow.adapters.stream_log import FolderLog
from voiceflow.cli.explain import read_steps
from voiceflow.cli.pipeline import _last_words
from voiceflow.errors import DataRefusedError
from voiceflow.streaming.statistics import NAMES

REPO = Path(__file__).parents[2]
COMPILED = REPO / "pipelines"
TRAINING = COMPILED / "training.yaml"


def test_the_committed_pipeline_is_current(tmp_path):
    compile_to(tmp_path)
    for name in PIPELINES:
        text = (tmp_path / f"{name}.yaml").read_text()
        assert text == (COMPILED / f"{name}.yaml").read_text(), "run `make compile` and commit the result"


def test_t4_nodes_are_for_train_and_latency_only():
    pipeline, platform = yaml.safe_load_all(TRAINING.read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(executors) == {"exec-train", "exec-latency"}
    for executor in executors.values():
        assert executor["nodeSelector"]["labels"] == {"cloud.google.com/gke-accelerator": "nvidia-tesla-t4"}
        assert executor["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    with_gpu = {
        name
        for name, executor in pipeline["deploymentSpec"]["executors"].items()
        if "accelerator" in executor["container"].get("resources", {})
    }
    assert with_gpu == set(executors)


def test_every_step_but_promote_is_cached():
    cached = {name for name, step in read_steps().items() if step.is_cached}
    assert cached == {"prepare", "join", "validate", "train", "evaluate", "export", "latency"}


@pytest.mark.parametrize("word", ["file://", "localhost", "127.0.0.1", "sqlite", ".voiceflow"])
def test_the_compiled_pipeline_knows_nothing_of_this_machine(word):
    assert all(word not in (COMPILED / f"{name}.yaml").read_text() for name in PIPELINES)


def test_the_compiled_pipeline_has_no_absolute_path():
    found = re.findall(r"(?<![\w.}/:])/(?:root|home|work|tmp|usr|opt|Users)\b[^\s'\"]*", TRAINING.read_text())
    assert found == []


def test_the_drift_step_tells_drifted_from_calm_and_writes_its_report(tmp_path, params):
    rng = np.random.default_rng(0)

    def rows(count, move=0.0):
        return [
            {"audio_s": 60.0, "at": 0, "model": "1"} | {n: float(rng.normal(move)) for n in NAMES} for _ in range(count)
        ]

    reference = tmp_path / "reference.jsonl"
    reference.write_text("".join(json.dumps(row) + "\n" for row in rows(200)))
    told = []
    for name, move in (("calm", 0.0), ("moved", 2.0)):
        FolderLog(tmp_path / name).add(rows(60, move))
        report, verdict = (SimpleNamespace(path=str(tmp_path / f"{name}-{kind}"), metadata={}) for kind in "rv")
        arguments = (params.drift.model_dump_json(), str(tmp_path / name), str(reference))
        told.append(drift.python_func(*arguments, report=report, verdict=verdict))
        assert "<html" in (tmp_path / f"{name}-r").read_text()[:500].lower()
    assert told == ["calm", "drifted"]


def test_a_refusal_in_a_log_is_told_whole_with_what_to_do(tmp_path):
    error = DataRefusedError(["narrow_band: the spectrum ends like a wall: train-00001"], "report.html")
    log = tmp_path / "run.log"
    log.write_text(f"[kfp] starting\nvoiceflow.errors.DataRefusedError: {error}\n[kfp] the task failed\n")
    told = _last_words(log)
    assert told.startswith("the data was refused for 1 fault(s):")
    assert "narrow_band" in told
    assert "full report: report.html" in told
    assert "what to do: look at the report" in told
    assert "[kfp]" not in told
