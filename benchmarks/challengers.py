"""Challengers for live streams, each a real file: one as good as the champion, and some that turn out to be bad."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from benchmarks.bad_models import clocked, constant, output, products, set_metadata
from voiceflow.runtime import pretrained_path
from voiceflow.timebase import STEP_S

SLOW_SIDE, SLOW_ROUNDS = 1024, 10
"""So many products of square matrices in every step: some hundred milliseconds of a core."""
FAILS_AFTER_S = 4.0
FLIPS_EVERY_S = 1.6


def _good(model: Any) -> None:
    """The champion under another version."""


def _slow(model: Any) -> None:
    """Before each answer it works for nothing, as long for one stream as for many."""
    constant(model, "slow_w", np.random.default_rng(0).standard_normal((SLOW_SIDE, SLOW_SIDE)).astype(np.float32) / 60)
    constant(model, "slow_zero", np.float32(0.0))
    constant(model, "slow_axes", np.array([0, 1], np.int64))
    idle, name = products("slow_w", "slow_each", SLOW_ROUNDS, "slow")
    # What depends on the input is not computed once for all.
    nodes = [
        helper.make_node("ReduceMean", ["activity_before"], ["slow_of"], keepdims=0),
        helper.make_node("Mul", ["slow_of", "slow_zero"], ["slow_by"]),
        helper.make_node("Add", ["slow_w", "slow_by"], ["slow_each"]),
        *idle,
        helper.make_node("ReduceMean", [name, "slow_axes"], ["slow_mean"], keepdims=0),
        helper.make_node("Mul", ["slow_mean", "slow_zero"], ["slow_nothing"]),
    ]
    output(model, lambda given, out: [*nodes, helper.make_node("Add", [given, "slow_nothing"], [out])])


def _failing(model: Any) -> None:
    """Once a stream is some seconds old, a step with it in the batch fails."""
    constant(model, "fail_from", np.float32(FAILS_AFTER_S / STEP_S))
    constant(model, "fail_by", np.array([1000], np.int64))
    constant(model, "fail_slots", np.arange(8, dtype=np.int64))
    clocked(
        model,
        lambda: [
            helper.make_node("Greater", ["clock", "fail_from"], ["fail_each"]),
            helper.make_node("Cast", ["fail_each"], ["fail_ints"], to=onnx.TensorProto.INT64),
            helper.make_node("ReduceMax", ["fail_ints"], ["fail_any"], keepdims=0),
            helper.make_node("Mul", ["fail_any", "fail_by"], ["fail_far"]),
            helper.make_node("Add", ["fail_slots", "fail_far"], ["fail_at"]),
            helper.make_node("Gather", ["activity_before", "fail_at"], ["activity"], axis=2),
        ],
    )


def _flipping(model: Any) -> None:
    """Every few seconds all voices change places."""
    constant(model, "flip_one", np.array([1, 0, 3, 2, 5, 4, 7, 6], np.int64))
    constant(model, "flip_two", np.array([2, 3, 0, 1, 6, 7, 4, 5], np.int64))
    constant(model, "flip_period", np.float32(3.0 * FLIPS_EVERY_S / STEP_S))
    constant(model, "flip_from", np.float32(FLIPS_EVERY_S / STEP_S))
    constant(model, "flip_again", np.float32(2.0 * FLIPS_EVERY_S / STEP_S))
    clocked(
        model,
        lambda: [
            helper.make_node("Mod", ["clock", "flip_period"], ["flip_at"], fmod=1),
            helper.make_node("Greater", ["flip_at", "flip_from"], ["flip_is"]),
            helper.make_node("Greater", ["flip_at", "flip_again"], ["flip_is_again"]),
            helper.make_node("Gather", ["activity_before", "flip_one"], ["flip_once"], axis=2),
            helper.make_node("Gather", ["activity_before", "flip_two"], ["flip_twice"], axis=2),
            helper.make_node("Where", ["flip_is", "flip_once", "activity_before"], ["flip_first"]),
            helper.make_node("Where", ["flip_is_again", "flip_twice", "flip_first"], ["activity"]),
        ],
    )


CHALLENGERS: dict[str, Callable[[Any], None]] = {
    "good": _good,
    "slow": _slow,
    "failing": _failing,
    "flipping": _flipping,
}


def write_challenger(kind: str, folder: Path) -> Path:
    """The file of a challenger; its version tells the kind."""
    model = onnx.load(str(pretrained_path()))
    set_metadata(model, version=f"9.0.0+{kind}")
    CHALLENGERS[kind](model)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}.onnx"
    onnx.save(model, str(path))
    return path
