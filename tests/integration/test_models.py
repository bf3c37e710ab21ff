import json

import numpy as np
import onnx
import pytest

from voiceflow.contract import METADATA_KEY, read_metadata
from voiceflow.errors import ContractError, ModelError
from voiceflow.export import export_fp32, make_metadata, parity_difference, quantise_int8
from voiceflow.features import step_features
from voiceflow.models.diarizer import Diarizer
from voiceflow.runtime import StepModel, pretrained_path
from voiceflow.stages.latency import latency
from voiceflow.stages.train import pretrained_weights


@pytest.fixture(scope="module")
def net(params):
    network = Diarizer(params.model)
    network.load_state_dict(pretrained_weights(params.model, seed=0))
    return network.eval()


@pytest.fixture(scope="module")
def exported(net, params, talk, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    metadata = make_metadata(
        net, version="9.9.9", decision=params.decision, data_revision="d", git_commit="c", run_id=""
    )
    export_fp32(net, folder / "fp32.onnx", metadata=metadata, opset=params.export.opset)
    quantise_int8(folder / "fp32.onnx", folder / "int8.onnx", [step_features(talk)])
    return folder


@pytest.mark.parametrize("lookahead", [3, 7, 12])
def test_torch_offline_and_onnx_streaming_agree_on_a_whole_stream(net, exported, talk, params, lookahead):
    difference = parity_difference(
        net, StepModel(exported / "fp32.onnx", served=False), [step_features(talk)], lookahead_steps=lookahead
    )
    assert difference <= params.export.max_parity_difference


def test_int8_is_the_same_in_any_batch_and_near_fp32(exported, talk):
    steps = step_features(talk)
    answers = {}
    for name in ("fp32", "int8"):
        model = StepModel(exported / f"{name}.onnx", served=name == "int8")
        alone, together = model.initial_state()[None], np.repeat(model.initial_state()[None], 5, axis=0)
        rows = []
        for step in range(len(steps)):
            noise = np.random.default_rng(step).normal(-8, 3, (4, 640)).astype(np.float32)
            batch = np.concatenate([steps[step : step + 1], noise])
            activity, together = model.step(batch, together, np.full(5, 7))
            single, alone = model.step(steps[step : step + 1], alone, np.array([7]))
            assert np.array_equal(activity[0], single[0])
            rows.append(single[0])
        answers[name] = np.stack(rows)
    assert np.abs(answers["fp32"] - answers["int8"]).mean() < 0.01


def test_the_shipped_model_meets_the_contract():
    metadata = read_metadata(pretrained_path())
    assert metadata.precision == "int8"
    assert metadata.state_dims * 4 <= 20 * 1024
    assert pretrained_path().stat().st_size < 10e6
    assert metadata.der["overall"] < 0.5


def test_each_broken_clause_is_named(exported, tmp_path):
    with pytest.raises(ModelError, match="no such model"):
        read_metadata(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ModelError, match="not an ONNX file"):
        read_metadata(tmp_path / "text.onnx")

    def broken(change):
        model = onnx.load(str(exported / "int8.onnx"))
        change(model)
        onnx.save(model, str(tmp_path / "broken.onnx"))
        with pytest.raises(ContractError) as caught:
            read_metadata(tmp_path / "broken.onnx")
        return caught.value.clause

    def metadata_with(**changes):
        def change(model):
            value = json.loads(model.metadata_props[0].value) | changes
            model.metadata_props[0].value = json.dumps(value)

        return change

    assert broken(lambda model: model.metadata_props.pop()) == "metadata"
    assert broken(metadata_with(contract_version=99)) == "contract_version"
    assert broken(metadata_with(sample_rate_hz=8000)) == "sample_rate_hz"
    assert broken(metadata_with(num_slots=3)) == "shape of activity"
    with pytest.raises(ContractError, match=r"at most 10\.0 MB"):  # it is judged by, not served
        read_metadata(exported / "fp32.onnx")
    assert METADATA_KEY == "voiceflow"


def test_latency_measures_the_device_and_refuses_one_that_was_not_measured(exported, params, tmp_path):
    quick = params.latency.model_copy(update={"repeats": 10, "warmup": 1, "batch_sizes": [1, 32]})
    summary = latency(quick, exported / "int8.onnx", tmp_path)
    assert summary["device"] == "cpu"
    assert summary["device_name"]
    row = summary["batches"]["32"]
    assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
    impossible = quick.model_copy(update={"max_p99_ms": {"cpu": {"1": 1e-6}}})
    assert not latency(impossible, exported / "int8.onnx", tmp_path)["gates"][0]["passed"]
    with pytest.raises(ModelError, match="not available"):
        latency(quick, exported / "int8.onnx", tmp_path, provider="cuda")


def test_onnxruntime_beside_its_gpu_build_is_refused_with_the_fix(tmp_path, monkeypatch):
    from voiceflow.runtime import check_onnxruntime

    for name in ("onnxruntime", "onnxruntime_gpu"):
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
    check_onnxruntime()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelError, match="pip uninstall"):
        check_onnxruntime()


def test_silence_and_a_constant_have_no_speakers(model):
    from voiceflow.streaming.batch import diarize

    for audio in (np.zeros(80_000, np.float32), np.full(80_000, 0.1, np.float32)):
        assert diarize([audio], model, latency_s=1.04) == [[]]
