"""torch to ONNX: fp32, int8 with one scale a row, fp16; and the parity of whole streams."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from voiceflow.config import DecisionConfig
from voiceflow.contract import CONTRACT_VERSION, INPUTS, METADATA_KEY, OUTPUTS, ModelMetadata, StatePart, check_model
from voiceflow.features import STEP_FEATURES
from voiceflow.models.diarizer import Diarizer
from voiceflow.runtime import StepModel
from voiceflow.timebase import LOOKAHEAD_STEPS_BY_LATENCY_S, SAMPLE_RATE_HZ, STEP_SAMPLES

FloatArray = npt.NDArray[np.float32]

MODEL_NAME = "voiceflow-diarizer"
MIN_QUANTISED_VALUES = 40_000
"""Matrices smaller than this stay fp32: nothing is gained, and the slots' comparison is kept exact."""


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


def quantise_int8(source: Path, path: Path) -> None:
    """Dynamic int8: each large matrix product runs on 8-bit integers.

    Activations get one scale a row (a stream), weights one a column. ONNX Runtime's own dynamic
    quantisation takes one scale for the whole batch, so that what a stream is told would depend
    on who else is being served; here integer sums make a row's answer the same in any batch.

    A row goes through the product twice: its 8-bit value, and the 8-bit remainder. A recurrent
    network with a memory of minutes does not forgive 8 bits alone (docs/experiments.md).
    """
    model = onnx.load(str(source))
    metadata = check_model(model, size_mb=0.0)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[Any] = []
    added: dict[str, Any] = {}
    quantised_inputs: dict[str, tuple[str, str]] = {}
    added["q_zero_point"] = numpy_helper.from_array(np.array(128, np.uint8), "q_zero_point")
    for constant, value in (("q_127", 127.0), ("q_128", 128.0), ("q_tiny", 1e-12), ("q_254", 254.0)):
        added[constant] = numpy_helper.from_array(np.array(value, np.float32), constant)
    added["q_axis"] = numpy_helper.from_array(np.array([-1], np.int64), "q_axis")
    for node in graph.node:
        matrix = _large_matrix(node, weights)
        if matrix is None:
            nodes.append(node)
            continue
        given, product = node.input[0], f"{node.output[0]}_product"
        if given not in quantised_inputs:
            quantised_inputs[given] = (f"{given}_q", f"{given}_scale")
            nodes += _quantise_rows(given, *quantised_inputs[given])
        scale_1C = np.maximum(np.abs(matrix).max(axis=0, keepdims=True), 1e-9) / 127.0
        name = f"{node.output[0]}_weight"
        added[f"{name}_q"] = numpy_helper.from_array(np.round(matrix / scale_1C).astype(np.int8), f"{name}_q")
        added[f"{name}_scale"] = numpy_helper.from_array(scale_1C[0].astype(np.float32), f"{name}_scale")
        quantised, scale = quantised_inputs[given]
        has_bias = node.op_type == "Gemm" and len(node.input) > 2
        scaled = f"{product}_scaled" if has_bias else node.output[0]
        nodes += [
            helper.make_node("MatMulInteger", [quantised, f"{name}_q", "q_zero_point"], [product]),
            helper.make_node("Cast", [product], [f"{product}_float"], to=TensorProto.FLOAT),
            helper.make_node(
                "Split", [f"{product}_float"], [f"{product}_high", f"{product}_low"], axis=0, num_outputs=2
            ),
            helper.make_node("Div", [f"{product}_low", "q_254"], [f"{product}_small"]),
            helper.make_node("Add", [f"{product}_high", f"{product}_small"], [f"{product}_sum"]),
            helper.make_node("Mul", [scale, f"{name}_scale"], [f"{product}_scale"]),
            helper.make_node("Mul", [f"{product}_sum", f"{product}_scale"], [scaled]),
        ]
        if has_bias:
            nodes.append(helper.make_node("Add", [scaled, node.input[2]], [node.output[0]]))
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used] + list(added.values())
    del graph.initializer[:]
    graph.initializer.extend(kept)
    _save(model, path, metadata.model_copy(update={"precision": "int8"}))


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


def _quantise_rows(given: str, quantised: str, scale: str) -> list[Any]:
    """Nodes that turn rows of floats into uint8 around 128, and the scale of each row.

    The result has twice the rows: first the values, then the remainders in steps of 1/254.
    """
    return [
        helper.make_node("Abs", [given], [f"{given}_abs"]),
        helper.make_node("ReduceMax", [f"{given}_abs", "q_axis"], [f"{given}_max"], keepdims=1),
        helper.make_node("Max", [f"{given}_max", "q_tiny"], [f"{given}_top"]),
        helper.make_node("Div", [f"{given}_top", "q_127"], [scale]),
        helper.make_node("Div", [given, scale], [f"{given}_steps"]),
        helper.make_node("Round", [f"{given}_steps"], [f"{given}_rounded"]),
        helper.make_node("Sub", [f"{given}_steps", f"{given}_rounded"], [f"{given}_remainder"]),
        helper.make_node("Mul", [f"{given}_remainder", "q_254"], [f"{given}_fine"]),
        helper.make_node("Round", [f"{given}_fine"], [f"{given}_fine_rounded"]),
        helper.make_node("Concat", [f"{given}_rounded", f"{given}_fine_rounded"], [f"{given}_both"], axis=0),
        helper.make_node("Add", [f"{given}_both", "q_128"], [f"{given}_shifted"]),
        helper.make_node("Cast", [f"{given}_shifted"], [quantised], to=TensorProto.UINT8),
    ]


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
