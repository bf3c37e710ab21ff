"""Models that must not become champion, each a real file with one thing wrong, and what is said of it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from voiceflow.audio import file_digest
from voiceflow.contract import METADATA_KEY
from voiceflow.gates import size_gate
from voiceflow.runtime import pretrained_path
from voiceflow.timebase import STEP_S

LATE_STEPS = 4
FAILS_AFTER_S = 610.0


@dataclass(frozen=True)
class Bad:
    """A fault, and words of the refusal."""

    name: str
    change: Callable[[Any], None]
    says: str


def metadata_of(model: Any) -> dict[str, Any]:
    """What the file says of itself."""
    content: dict[str, Any] = json.loads(next(e.value for e in model.metadata_props if e.key == METADATA_KEY))
    return content


def set_metadata(model: Any, **changes: Any) -> None:
    """Change what the file says of itself, checking nothing."""
    helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata_of(model) | changes)})


def good(data_revision: str) -> Any:
    """The shipped model, as if it had been made from this data."""
    model = onnx.load(str(pretrained_path()))
    set_metadata(model, data_revision=data_revision, version="0.2.0")
    return model


def write(model: Any, folder: Path, latency: Path, params: Any, *, digest: str | None = None) -> None:
    """A file and the reports of its stages, as `voiceflow stage export` and `latency` leave them.

    Args:
        model: The ONNX model.
        folder: `exported/` and `latency.json` come here.
        latency: latency.json of the good model, measured by the stage.
        params: The whole of params.yaml.
        digest: Of which file the reports are; this one's by default.
    """
    exported = folder / "exported"
    exported.mkdir(parents=True)
    path = exported / "diarizer.int8.onnx"
    onnx.save(model, str(path))
    told = digest or file_digest(path)
    passed = [{"gate": name, "passed": True, "reasons": [], "figures": {}} for name in ("parity", "int8")]
    size = size_gate(path.stat().st_size / 1e6, 19.0, params.export).as_dict()
    (exported / "export.json").write_text(json.dumps({"files": {"int8": {"digest": told}}, "gates": [*passed, size]}))
    (folder / "latency").mkdir()
    report = json.loads(latency.read_text()) | {"digest": told}
    (folder / "latency" / "latency.json").write_text(json.dumps(report))


def _nan(model: Any) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == "frame.bias":
            values = numpy_helper.to_array(tensor).copy()
            values[0] = np.nan
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
            return
    raise AssertionError("no such weights")


def _input_name(model: Any) -> None:
    model.graph.input[0].name = "audio"
    for node in model.graph.node:
        node.input[:] = ["audio" if name == "features" else name for name in node.input]


def _state_shape(model: Any) -> None:
    state = metadata_of(model)["state"]
    state[-1]["size"] += 1
    set_metadata(model, state=state)


def _opset(model: Any) -> None:
    for entry in model.opset_import:
        if entry.domain == "":
            entry.version = 99


def _large(model: Any) -> None:
    noise = np.random.default_rng(0).standard_normal(2_000_000).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(noise, "ballast"))


def _contract(model: Any) -> None:
    set_metadata(model, contract_version=0)


def output(model: Any, nodes: Callable[[str, str], list[Any]]) -> None:
    """Put nodes between what the graph computes as activity and what it gives out."""
    for node in model.graph.node:
        node.output[:] = ["activity_before" if name == "activity" else name for name in node.output]
    model.graph.node.extend(nodes("activity_before", "activity"))


def constant(model: Any, name: str, value: Any) -> str:
    """Give the graph a constant; its name."""
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def products(first: str, weights: str, rounds: int, prefix: str) -> tuple[list[Any], str]:
    """Nodes that multiply by the same weights again and again, and the name of what comes of it."""
    nodes, name = [], first
    for number in range(rounds):
        nodes.append(helper.make_node("MatMul", [name, weights], [f"{prefix}_{number}"]))
        name = f"{prefix}_{number}_t"
        nodes.append(helper.make_node("Tanh", [f"{prefix}_{number}"], [name]))
    return nodes, name


def _slow(model: Any) -> None:
    """As long again as the step itself takes, on products whose result is multiplied by zero."""
    side, rounds = 640, 7
    constant(model, "idle_w", np.random.default_rng(0).standard_normal((side, side)).astype(np.float32) / 30)
    constant(model, "idle_zero", np.float32(0.0))
    constant(model, "idle_axes", np.array([1, 2], np.int64))
    nodes, name = products("features", "idle_w", rounds, "idle")
    nodes += [
        helper.make_node("ReduceMean", [name, "idle_axes"], ["idle_mean"], keepdims=1),
        helper.make_node("Mul", ["idle_mean", "idle_zero"], ["idle_nothing"]),
    ]
    output(model, lambda given, out: [*nodes, helper.make_node("Add", [given, "idle_nothing"], [out])])


def _worse(model: Any) -> None:
    """Thresholds, which go with the weights, so high that quiet speech is missed."""
    decision = metadata_of(model)["decision"]
    set_metadata(model, decision=decision | {"onset": 0.8, "offset": 0.78})


def _no_fourth(model: Any) -> None:
    """Whoever comes fourth is taken for the first."""
    keep = np.ones((1, 1, 8), np.float32)
    keep[0, 0, 3] = 0.0
    to_first = np.zeros((8, 8), np.float32)
    to_first[3, 0] = 1.0
    constant(model, "fourth_keep", keep)
    constant(model, "fourth_to_first", to_first)
    output(
        model,
        lambda given, out: [
            helper.make_node("Mul", [given, "fourth_keep"], ["fourth_kept"]),
            helper.make_node("MatMul", [given, "fourth_to_first"], ["fourth_moved"]),
            helper.make_node("Max", ["fourth_kept", "fourth_moved"], [out]),
        ],
    )


def _swapped(model: Any) -> None:
    constant(model, "swap", np.array([1, 0, 2, 3, 4, 5, 6, 7], np.int64))
    output(model, lambda given, out: [helper.make_node("Gather", [given, "swap"], [out], axis=2)])


def _with_state(model: Any, size: int, nodes: Callable[[str, str], list[Any]]) -> None:
    """Give the graph `size` more values of state, before and after as `nodes` is told."""
    parts = metadata_of(model)["state"]
    dims = sum(part["size"] for part in parts)
    set_metadata(model, state=[*parts, {"name": "more", "size": size}])
    for node in model.graph.node:
        node.input[:] = ["state_core" if name == "state" else name for name in node.input]
        node.output[:] = ["new_core" if name == "new_state" else name for name in node.output]
    for value in (*model.graph.input, *model.graph.output):
        if value.name in ("state", "new_state"):
            value.type.tensor_type.shape.dim[1].dim_value = dims + size
    constant(model, "more_sizes", np.array([dims, size], np.int64))
    split = helper.make_node("Split", ["state", "more_sizes"], ["state_core", "more_before"], axis=1)
    model.graph.node.insert(0, split)
    model.graph.node.extend(nodes("more_before", "more_after"))
    model.graph.node.append(helper.make_node("Concat", ["new_core", "more_after"], ["new_state"], axis=1))


def _late(model: Any) -> None:
    """Answers come later than its metadata says, for it looks further ahead."""
    slots, kept = 8, 8 * LATE_STEPS
    constant(model, "late_flat", np.array([-1, slots], np.int64))
    constant(model, "late_one", np.array([-1, 1, slots], np.int64))
    constant(model, "late_sizes", np.array([slots, kept], np.int64))

    def delay(before: str, after: str) -> list[Any]:
        return [
            helper.make_node("Reshape", ["activity_before", "late_flat"], ["late_now"]),
            helper.make_node("Concat", [before, "late_now"], ["late_all"], axis=1),
            helper.make_node("Split", ["late_all", "late_sizes"], ["late_first", after], axis=1),
            helper.make_node("Reshape", ["late_first", "late_one"], ["activity"]),
        ]

    output(model, lambda given, out: [])
    _with_state(model, kept, delay)


def clocked(model: Any, nodes: Callable[[], list[Any]]) -> None:
    """A clock in the state counts steps; `nodes` turn `activity_before` and `clock` (B, 1, 1) into `activity`."""
    constant(model, "clock_one", np.float32(1.0))
    constant(model, "clock_shape", np.array([-1, 1, 1], np.int64))

    def tick(before: str, after: str) -> list[Any]:
        return [
            helper.make_node("Add", [before, "clock_one"], [after]),
            helper.make_node("Reshape", [before, "clock_shape"], ["clock"]),
            *nodes(),
        ]

    output(model, lambda given, out: [])
    _with_state(model, 1, tick)


def _flips(model: Any) -> None:
    """For three seconds of every nine the second and third speaker change places."""
    constant(model, "flip_order", np.array([0, 2, 1, 3, 4, 5, 6, 7], np.int64))
    constant(model, "flip_period", np.float32(9.0 / STEP_S))
    constant(model, "flip_from", np.float32(6.0 / STEP_S))
    clocked(
        model,
        lambda: [
            helper.make_node("Mod", ["clock", "flip_period"], ["flip_at"], fmod=1),
            helper.make_node("Greater", ["flip_at", "flip_from"], ["flip_is"]),
            helper.make_node("Gather", ["activity_before", "flip_order"], ["flip_other"], axis=2),
            helper.make_node("Where", ["flip_is", "flip_other", "activity_before"], ["activity"]),
        ],
    )


def _diverges(model: Any) -> None:
    """After ten minutes of a stream its answers are drowned."""
    constant(model, "tired_from", np.float32(FAILS_AFTER_S / STEP_S))
    constant(model, "tired_by", np.float32(0.4))
    clocked(
        model,
        lambda: [
            helper.make_node("Greater", ["clock", "tired_from"], ["tired_is"]),
            helper.make_node("Mul", ["activity_before", "tired_by"], ["tired_activity"]),
            helper.make_node("Where", ["tired_is", "tired_activity", "activity_before"], ["activity"]),
        ],
    )


def _other_data(model: Any) -> None:
    set_metadata(model, data_revision="0123456789abcdef")


BAD = [
    Bad("NaN weights", _nan, "no numbers"),
    Bad("wrong input name", _input_name, "'inputs'"),
    Bad("extra look-ahead", _late, "ms) late"),
    Bad("state of the wrong shape", _state_shape, "'shape of state'"),
    Bad("opset too new", _opset, "'opset'"),
    Bad("11 MB", _large, "'size'"),
    Bad("twice as slow", _slow, "times the champion's"),
    Bad("DER +3 points overall", _worse, "overall is"),
    Bad("DER +8 points on 4 speakers only", _no_fourth, "slice 4 speakers is"),
    Bad("flips doubled", _flips, "label flips a minute against"),
    Bad("swapped slots", _swapped, "slots are not in order"),
    Bad("stale contract version", _contract, "'contract_version'"),
    Bad("data of another revision", _other_data, "was made from data"),
    Bad("int8 that diverges after 10 minutes", _diverges, "after 10 minutes of one stream"),
]
"""Faults that lie in the file; the others lie in what happens around it (benchmarks/promotions.py)."""
