import re
from pathlib import Path

import pytest
import yaml

from pipelines.__main__ import compile_to

REPO = Path(__file__).parents[2]
COMPILED = REPO / "pipelines" / "training.yaml"


def test_the_committed_pipeline_is_current(tmp_path):
    compile_to(tmp_path / "training.yaml")
    assert (tmp_path / "training.yaml").read_text() == COMPILED.read_text(), "run `make compile` and commit the result"


def test_t4_nodes_are_for_train_and_latency_only():
    pipeline, platform = yaml.safe_load_all(COMPILED.read_text())
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
    pipeline = next(yaml.safe_load_all(COMPILED.read_text()))
    cached = {
        name for name, task in pipeline["root"]["dag"]["tasks"].items() if task["cachingOptions"].get("enableCache")
    }
    assert cached == {"prepare", "validate", "train", "evaluate", "export", "latency"}


@pytest.mark.parametrize("word", ["file://", "localhost", "127.0.0.1", "sqlite", ".voiceflow"])
def test_the_compiled_pipeline_knows_nothing_of_this_machine(word):
    assert word not in COMPILED.read_text()


def test_the_compiled_pipeline_has_no_absolute_path():
    found = re.findall(r"(?<![\w.}/:])/(?:root|home|work|tmp|usr|opt|Users)\b[^\s'\"]*", COMPILED.read_text())
    assert found == []
