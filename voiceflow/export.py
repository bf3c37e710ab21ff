"""torch to ONNX: fp32, int8 with fixed scales, fp16; and the parity of whole streams."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper

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
INPUT_BOUND = 8.0
"""Log-mel less the level, times 0.3: from silence under the loudest level to a tone at full scale over the lowest."""
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


def quantise_int8(source: Path, path: Path) -> None:
    """int8: each large matrix product runs on 8-bit integers.

    Weights get one scale a column; activations a fixed one, from how far they can reach, so that a
    stream's answer does not depend on who else is being served (ONNX Runtime's own dynamic
    quantisation takes one scale from the whole batch). Integer sums make a row's answer the same in
    any batch.

    A row goes through the product twice: its 8-bit value, and the 8-bit remainder. A recurrent
    network with a memory of minutes does not forgive 8 bits alone (docs/experiments.md).

    Raises:
        ValueError: A large matrix whose other factor has no known bound.
    """
    model = onnx.load(str(source))
    metadata = check_model(model, size_mb=0.0)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    nodes: list[Any] = []
    added: dict[str, Any] = {"q_128": numpy_helper.from_array(np.array(128, np.uint8), "q_128")}

    def add(name: str, value: Any) -> str:
        added[name] = numpy_helper.from_array(value, name)
        return name

    quantised: set[str] = set()
    for node in graph.node:
        matrix = _large_matrix(node, weights)
        if matrix is None:
            nodes.append(node)
            continue
        given, product = node.input[0], node.output[0]
        if given not in quantised:
            quantised.add(given)
            step = np.float32(_bound(given, producers, weights) / 127.0)
            add(f"{given}_step", np.array(step))
            add(f"{given}_fine_step", np.array(step / 254.0, np.float32))
            nodes += _quantise(given)
        scale_C = np.maximum(np.abs(matrix).max(axis=0), 1e-9) / 127.0
        weight = add(f"{product}_weight", np.round(matrix / scale_C).astype(np.int8))
        scale = add(f"{product}_scale", scale_C.astype(np.float32))
        bias = list(node.input[2:]) if node.op_type == "Gemm" else []
        parts = [
            _product(f"{given}_value", weight, f"{given}_step", scale, f"{product}_value", bias),
            _product(f"{given}_remainder", weight, f"{given}_fine_step", scale, f"{product}_remainder", []),
        ]
        nodes += [*parts, helper.make_node("Add", [parts[0].output[0], parts[1].output[0]], [product])]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used] + list(added.values())
    del graph.initializer[:]
    graph.initializer.extend(kept)
    model.opset_import.append(helper.make_opsetid(FUSED_DOMAIN, 1))
    _save(model, path, metadata.model_copy(update={"precision": "int8"}))


def _bound(name: str, producers: dict[str, Any], weights: dict[str, Any]) -> float:
    """How far from zero the values of a tensor can be; what lies beyond is cut off."""
    while name in producers:
        node = producers[name]
        if node.op_type == "LayerNormalization":
            scale_H, shift_H = (np.abs(numpy_helper.to_array(weights[part])) for part in node.input[1:3])
            return float((scale_H * np.sqrt(len(scale_H) - 1) + shift_H).max())
        if node.op_type == "Concat":
            return INPUT_BOUND
        if node.op_type not in ("Gather", "Split", "Reshape", "Squeeze", "Unsqueeze"):
            raise ValueError(
                f"no bound is known for {name!r}, which comes from {node.op_type}: teach `_bound` its reach"
            )
        name = node.input[0]
    return 1.0  # of the state, only what LSTM layers put out is multiplied: a sigmoid times a tanh


def _quantise(given: str) -> list[Any]:
    """Nodes that turn floats into uint8 around 128, and what that leaves into as many steps of 1/254 again."""
    return [
        helper.make_node("QuantizeLinear", [given, f"{given}_step", "q_128"], [f"{given}_value"]),
        helper.make_node("DequantizeLinear", [f"{given}_value", f"{given}_step", "q_128"], [f"{given}_rounded"]),
        helper.make_node("Sub", [given, f"{given}_rounded"], [f"{given}_left"]),
        helper.make_node("QuantizeLinear", [f"{given}_left", f"{given}_fine_step", "q_128"], [f"{given}_remainder"]),
    ]


def _product(given: str, weight: str, step: str, scale: str, output: str, bias: list[str]) -> Any:
    """One integer product whose sums are scaled as they are written."""
    optional = ["q_128", "", *bias]
    return helper.make_node(
        "MatMulIntegerToFloat", [given, weight, step, scale, *optional], [f"{output}_product"], domain=FUSED_DOMAIN
    )


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
