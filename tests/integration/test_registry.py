import json
import shutil

import pytest

from voiceflow.adapters.registry import MlflowRegistry, resolve_model
from voiceflow.audio import file_digest
from voiceflow.errors import ModelError
from voiceflow.export import set_metadata
from voiceflow.runtime import pretrained_path
from voiceflow.stages.promote import promote


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A real MLflow store on SQLite, empty."""
    monkeypatch.setenv("VOICEFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return MlflowRegistry()


def reports(folder, model, *, latency_passes=True):
    folder.mkdir(exist_ok=True)

    def gate(name, passed=True):
        return {"gate": name, "passed": passed, "reasons": [] if passed else ["p99 is above its bound"], "figures": {}}

    contents = {
        "evaluate": {"gate": gate("der")},
        "export": {
            "files": {"int8": {"digest": file_digest(model)}},
            "gates": [gate("parity"), gate("int8"), gate("size")],
        },
        "latency": {"gates": [gate("latency", latency_passes)]},
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return {name: folder / f"{name}.json" for name in contents}


def test_promotion_on_a_real_registry(registry, params, dataset, tmp_path):
    """An empty registry gets the shipped weights; an equal model is challenger, or champion if told to accept it."""
    model = tmp_path / "model.onnx"
    shutil.copyfile(pretrained_path(), model)
    set_metadata(model, version="0.2.0")

    def run(path, *, latency_passes=True, accept_equal=False):
        given = reports(tmp_path / "reports", path, latency_passes=latency_passes)
        output = tmp_path / "out"
        return promote(
            params.promote, params.evaluate, path, dataset, given, output, registry, accept_equal=accept_equal
        )

    refused = run(model, latency_passes=False)
    assert refused["becomes"] == "nothing"
    assert "gate latency: p99 is above its bound" in refused["reasons"]
    assert registry.version_of("champion") == refused["champion_before"] == "1"
    assert registry.version_of("challenger") is None

    equal = run(model)
    assert equal["becomes"] == "challenger"
    assert registry.version_of("challenger") == equal["version"] == "2"

    accepted = run(model, accept_equal=True)
    assert accepted["becomes"] == "champion"
    assert (registry.version_of("champion"), registry.version_of("previous")) == ("2", "1")
    assert file_digest(resolve_model("models:/voiceflow-diarizer@champion")) == file_digest(model)
    tags = registry.history()[0]["tags"]
    assert tags["digest"] == file_digest(model)
    assert tags["model_version"] == "0.2.0"
    assert registry.storage_uri("2").startswith("file://")

    with pytest.raises(ModelError, match="other files"):
        promote(
            params.promote,
            params.evaluate,
            pretrained_path(),
            dataset,
            reports(tmp_path / "r", model),
            tmp_path,
            registry,
        )


def test_a_model_that_is_not_there_is_told(registry, tmp_path):
    with pytest.raises(ModelError, match="no such version"):
        resolve_model("models:/voiceflow-diarizer@champion")
    with pytest.raises(ModelError, match="no such model"):
        resolve_model(str(tmp_path / "none"))
