"""torch to ONNX: fp32, int8 with fixed scales, fp16; and the parity of whole streams."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper

from voiceflow.config import DecisionConfig
from voiceflow.contract import CONTRACT_VERSION, INPUTS, METADATA_KEY, OUTPUTS, ModelMetadata, StatePart, check_model
from voiceflow.features import STEP_FEATURES
from voiceflow.models.diarizer import Diarizer
from voiceflow.runtime import StepModel, initial_state
from voiceflow.timebase import LOOKAHEAD_STEPS_BY_LATENCY_S, SAMPLE_RATE_HZ, STEP_SAMPLES

FloatArray = npt.NDArray[np.float32]

MODEL_NAME = "voiceflow-diarizer"
MIN_QUANTISED_VALUES = 40_000
"""Matrices smaller than this stay fp32: nothing is gained, and the slots' comparison is kept exact."""
LEAST_REACH = 0.01
"""Of the channel that reaches furthest: one that the sample left silent has a step all the same."""
FUSED_DOMAIN = "com.microsoft"
"""ONNX Runtime's own operators: an integer product that is scaled as it is written costs a pass less over its sums."""


def make_metadata(
    net: Diarizer, *, version: str, decision: DecisionConfig, data_revision: str, git_commit: str, run_id: str
) -> ModelMetadata:
    """What the files of this network will say of themselves (DER is added after it was measured)."""
    return ModelMetadata(
        contract_version=CONTRACT_VERSION,
        name=MODEL_NAME,
        version=version,
        precision="fp32",
        sample_rate_hz=SAMPLE_RATE_HZ,
        step_samples=STEP_SAMPLES,
        step_features=STEP_FEATURES,
        lookahead_steps=sorted(LOOKAHEAD_STEPS_BY_LATENCY_S.values()),
        num_slots=net.config.num_slots,
        state=[StatePart(name=name, size=size) for name, size in net.state_sizes.items()],
        data_revision=data_revision,
        git_commit=git_commit,
        run_id=run_id,
        der={},
        decision=decision,
    )


def export_fp32(net: Diarizer, path: Path, *, metadata: ModelMetadata, opset: int) -> None:
    """Write the network as one ONNX file with a dynamic batch and a single step a call."""
    net = net.eval()
    example = (torch.zeros(2, 1, STEP_FEATURES), net.initial_state(2), torch.full((2,), 12))
    program = torch.onnx.export(
        net,
        example,
        dynamo=True,
        opset_version=opset,
        input_names=list(INPUTS),
        output_names=list(OUTPUTS),
        dynamic_shapes=tuple({0: torch.export.Dim("batch", min=1, max=4096)} for _ in INPUTS),
        external_data=False,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    del model.graph.value_info[:]
    _save(model, path, metadata)


def quantise_int8(source: Path, path: Path, streams: Sequence[FloatArray]) -> None:
    """int8: each large matrix product runs on 8-bit integers.

    Each channel of an activation has a step of its own, a 127th of how far it reached in a sample of
    streams; the rows of the weights take it up. Weights get one scale a column. All scales are fixed, so
    that a stream's answer does not depend on who else is being served (ONNX Runtime's own dynamic
    quantisation takes one scale from the whole batch). Integer sums make a row's answer the same in any batch.

    With one step for all channels 8 bits are too few for a recurrent network with a memory of minutes:
    a few channels reach five times as far as the others (docs/experiments.md).

    Args:
        source: The fp32 file.
        path: Where the int8 file goes.
        streams: Features of each stream of the sample, shape (T, 640).
    """
    model = onnx.load(str(source))
    metadata = check_model(model, size_mb=0.0)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    products = {node.output[0]: matrix for node in graph.node if (matrix := _large_matrix(node, weights)) is not None}
    given_names = [node.input[0] for node in graph.node if node.output[0] in products]
    steps = {
        name: np.maximum(reach_C, LEAST_REACH * reach_C.max()) / 127.0
        for name, reach_C in _reaches(model, given_names, streams).items()
    }
    nodes: list[Any] = []
    added: dict[str, Any] = {}

    def add(name: str, value: Any) -> str:
        added[name] = numpy_helper.from_array(value, name)
        return name

    one, zero = add("q_1", np.array(1.0, np.float32)), add("q_128", np.array(128, np.uint8))
    for node in graph.node:
        matrix = products.get(node.output[0])
        if matrix is None:
            nodes.append(node)
            continue
        given, product = node.input[0], node.output[0]
        if f"{given}_gain" not in added:
            # As a factor of its own: with a scale a channel QuantizeLinear takes several times as long.
            gain = add(f"{given}_gain", (1.0 / steps[given]).astype(np.float32))
            nodes.append(helper.make_node("Mul", [given, gain], [f"{given}_even"]))
            nodes.append(helper.make_node("QuantizeLinear", [f"{given}_even", one, zero], [f"{given}_value"]))
        rows = matrix * steps[given][:, None]
        scale_C = np.maximum(np.abs(rows).max(axis=0), 1e-12) / 127.0
        weight = add(f"{product}_weight", np.round(rows / scale_C).astype(np.int8))
        scale = add(f"{product}_scale", scale_C.astype(np.float32))
        bias = list(node.input[2:]) if node.op_type == "Gemm" else []
        inputs = [f"{given}_value", weight, one, scale, zero, "", *bias]
        nodes.append(helper.make_node("MatMulIntegerToFloat", inputs, [product], domain=FUSED_DOMAIN))
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used] + list(added.values())
    del graph.initializer[:]
    graph.initializer.extend(kept)
    model.opset_import.append(helper.make_opsetid(FUSED_DOMAIN, 1))
    _save(model, path, metadata.model_copy(update={"precision": "int8"}))


def _reaches(model: Any, names: Sequence[str], streams: Sequence[FloatArray]) -> dict[str, FloatArray]:
    """How far from zero each channel of some tensors gets while streams are scored; each of shape (channels,)."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    names = list(dict.fromkeys(names))
    tapped.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(tapped.SerializeToString(), providers=["CPUExecutionProvider"])
    metadata = check_model(model, size_mb=0.0)
    state_BN = np.repeat(initial_state(metadata)[None], len(streams), axis=0)
    lookahead_B = np.full(len(streams), max(metadata.lookahead_steps))
    reaches: dict[str, FloatArray] = {}
    for step in range(max(map(len, streams))):
        features_BF = np.stack([features_TF[step % len(features_TF)] for features_TF in streams])
        given = dict(zip(INPUTS, (features_BF[:, None], state_BN, lookahead_B), strict=True))
        _, state_BN, *values = session.run([*OUTPUTS, *names], given)
        for name, value in zip(names, values, strict=True):
            reach_C = np.abs(value).reshape(-1, value.shape[-1]).max(axis=0)
            reaches[name] = np.maximum(reaches.get(name, reach_C), reach_C)
    return reaches


def _large_matrix(node: Any, weights: dict[str, Any]) -> FloatArray | None:
    """The constant matrix (inputs, outputs) of a product worth quantising, else None."""
    if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in weights:
        return None
    matrix = numpy_helper.to_array(weights[node.input[1]])
    if matrix.ndim != 2 or matrix.size < MIN_QUANTISED_VALUES:
        return None
    if node.op_type == "Gemm":
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0 or attributes.get("transA", 0):
            return None
        matrix = matrix.T if attributes.get("transB", 0) else matrix
    constant: FloatArray = matrix.astype(np.float32)
    return constant


def convert_fp16(source: Path, path: Path) -> None:
    """fp16 inside, float32 at the edges: for CUDA and TensorRT."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(str(source))
    metadata = check_model(model, size_mb=0.0)
    # 1e-4 masks and the decoder's small sums do not survive half precision.
    model = convert_float_to_float16(
        model, keep_io_types=True, op_block_list=["ReduceSum", "Softmax", "Div", "Sqrt", "Log", "Where", "ReduceMax"]
    )
    _save(model, path, metadata.model_copy(update={"precision": "fp16"}))


def set_metadata(path: Path, **changes: Any) -> None:
    """Write changed metadata into a file, its DER table after evaluation for one."""
    model = onnx.load(str(path))
    metadata = check_model(model, size_mb=0.0)
    _save(model, path, metadata.model_copy(update=changes))


def _save(model: Any, path: Path, metadata: ModelMetadata) -> None:
    del model.metadata_props[:]
    # The exporter notes source lines of this machine; they are nobody's business.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    helper.set_model_props(model, {METADATA_KEY: metadata.model_dump_json()})
    model.producer_name = "voiceflow"
    _sort_nodes(model.graph)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))


def _sort_nodes(graph: Any) -> None:
    """Put nodes in an order in which inputs come first; the fp16 converter appends its casts at the end."""
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | {""}
    waiting, ordered = list(graph.node), []
    while waiting:
        ready = [node for node in waiting if known.issuperset(node.input)]
        assert ready, "the graph has a cycle"
        known.update(name for node in ready for name in node.output)
        ordered += ready
        waiting = [node for node in waiting if not known.issuperset(node.output)]
    del graph.node[:]
    graph.node.extend(ordered)


def stream_activities(model: StepModel, features_TF: FloatArray, *, lookahead_steps: int) -> FloatArray:
    """Activities of every step of one stream through ONNX, one step a call, shape (T, S)."""
    state_BN = model.initial_state()[None]
    lookahead_B = np.array([lookahead_steps], np.int64)
    rows = []
    for features_F in features_TF:
        activity_BS, state_BN = model.step(features_F[None], state_BN, lookahead_B)
        rows.append(activity_BS[0])
    return np.stack(rows)


@torch.no_grad()
def parity_difference(net: Diarizer, model: StepModel, streams: Sequence[FloatArray], *, lookahead_steps: int) -> float:
    """Largest difference of activity between torch (a whole stream at once) and ONNX (step by step).

    Args:
        net: The network.
        model: Its export.
        streams: Features of each stream, shape (T, 640).
        lookahead_steps: Look-ahead of all of them.
    """
    net = net.eval()
    worst = 0.0
    for features_TF in streams:
        whole, _ = net(torch.from_numpy(features_TF[None]), net.initial_state(1), torch.tensor([lookahead_steps]))
        stepped_TS = stream_activities(model, features_TF, lookahead_steps=lookahead_steps)
        worst = max(worst, float(np.abs(whole[0].numpy() - stepped_TS).max()))
    return worst
