import json
import shutil

import pytest

from voiceflow.adapters.registry import ALIASES, MlflowRegistry, resolve_model
from voiceflow.audio import file_digest
from voiceflow.errors import DataError, ModelError
from voiceflow.export import set_metadata
from voiceflow.runtime import pretrained_path
from voiceflow.stages.judging import Candidate, read_gates
from voiceflow.stages.promote import promote


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A real MLflow store on SQLite, empty."""
    monkeypatch.setenv("VOICEFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return MlflowRegistry()


def candidate(folder, *, latency_passes=True, **metadata):
    """The shipped model, with reports as its stages would leave them."""
    path = folder / "model.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(pretrained_path(), path)
    set_metadata(path, data_revision="test", **metadata)

    def gate(name, passed=True):
        return {"gate": name, "passed": passed, "reasons": [] if passed else ["p99 is above its bound"], "figures": {}}

    digest = file_digest(path)
    contents = {
        "export": {"files": {"int8": {"digest": digest}}, "gates": [gate("parity"), gate("int8"), gate("size")]},
        "latency": {"device": "cpu", "digest": digest, "gates": [gate("latency", latency_passes)]},
    }
    contents["latency"] |= {
        "device_name": "a CPU",
        "batches": {"1": {"p50_ms": 1.0, "p99_ms": 2.0, "us_per_stream": 1e3}},
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return Candidate(path, {name: folder / f"{name}.json" for name in contents}, digest=digest)


def test_promotion_on_a_real_registry(registry, params, dataset, tmp_path):
    """An empty registry gets the shipped weights; an equal model is challenger, or champion if told to accept it."""
    config = params.promote.model_copy(update={"long_stream_s": 24.0, "long_from_s": 12.0, "max_slowdown": 1000.0})
    easy = {"max_der": 0.9, "max_der_per_slice": 1.0, "max_flips_per_minute": 60.0}
    evaluation = params.evaluate.model_copy(update=easy)

    def run(given, *, accept_equal=False):
        return promote(
            config, evaluation, given, dataset, tmp_path / "out", registry, by="a test", accept_equal=accept_equal
        )

    refused = run(candidate(tmp_path / "1", latency_passes=False, version="0.2.0"))
    assert refused["becomes"] == "nothing"
    assert "gate latency: p99 is above its bound" in refused["reasons"]
    assert registry.version_of("champion") == refused["champion_before"] == "1"
    assert registry.version_of("challenger") is None
    assert registry.num_versions() == 1

    good = candidate(tmp_path / "2", version="0.2.0")
    equal = run(good)
    assert equal["becomes"] == "challenger", equal["reasons"]
    assert registry.version_of("challenger") == equal["version"] == "2"

    accepted = run(good, accept_equal=True)
    assert accepted["becomes"] == "champion"
    assert [registry.version_of(alias) for alias in ALIASES] == ["2", None, "1"]
    assert file_digest(resolve_model("models:/voiceflow-diarizer@champion")) == file_digest(good.model)
    tags = registry.history()[0]["tags"]
    assert tags["digest"] == file_digest(good.model)
    assert tags["model_version"] == "0.2.0"
    assert registry.storage_uri("2").startswith("file://")
    assert [entry["action"] for entry in registry.audit_log()] == ["begin", "refuse", "promote", "promote"]

    again = run(good, accept_equal=True)
    assert again["reasons"] == ["this very file is the champion already"]


def test_a_gpu_is_another_device(params, tmp_path):
    given = candidate(tmp_path)
    on_t4 = params.promote.model_copy(update={"target_device": "t4"})
    verdict = next(gate for gate in read_gates(given.reports, given.digest, on_t4) if gate.gate == "device")
    assert not verdict.passed
    assert "measured on 'cpu', but models run on 't4'" in verdict.reasons[0]


def test_a_report_that_is_missing_counts_as_refused(params, tmp_path):
    given = candidate(tmp_path)
    verdicts = read_gates({"export": given.reports["export"]}, given.digest, params.promote)
    assert [verdict.gate for verdict in verdicts if not verdict.passed] == ["latency"]
    given.reports["latency"].write_text("hello")
    with pytest.raises(DataError, match="not a report of latency"):
        read_gates(given.reports, given.digest, params.promote)


def test_a_model_that_is_not_there_is_told(registry, tmp_path):
    with pytest.raises(ModelError, match="no such version"):
        resolve_model("models:/voiceflow-diarizer@champion")
    with pytest.raises(ModelError, match="no such model"):
        resolve_model(str(tmp_path / "none"))
