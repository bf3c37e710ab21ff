"""The voices a stream's state remembers: read, forget, merge and enrol them between two steps.

The model fills its slots in order of arrival: the confirmed ones lie side by side from slot 0 on, the
next is open. Every change here keeps that order.

Shapes: N state values, S slots, E dimensions of a profile.
"""

import numpy as np
import numpy.typing as npt

from voiceflow.contract import ModelMetadata

FloatArray = npt.NDArray[np.float32]

PARTS = ("profiles", "weights", "recent", "slow")
"""Parts of the state that hold one row a slot."""
ENROLLED_STEPS = 50.0
"""Weight of an enrolled voice, as if it had been heard for 4 s."""


def profiles(metadata: ModelMetadata, state_N: FloatArray) -> FloatArray:
    """Mean voice of each slot as unit vectors, shape (S, E); zero where none was heard."""
    sums_SE = _rows(metadata, state_N, "profiles")
    norms_S1 = np.linalg.norm(sums_SE, axis=1, keepdims=True)
    unit: FloatArray = (sums_SE / np.maximum(norms_S1, 1e-6)).astype(np.float32)
    return unit


def heard_steps(metadata: ModelMetadata, state_N: FloatArray) -> FloatArray:
    """Clean speech each slot's profile is made of, in steps, shape (S,)."""
    return _rows(metadata, state_N, "weights")[:, 0]


def forget(metadata: ModelMetadata, state_N: FloatArray, slot: int) -> FloatArray:
    """State without one slot: those behind move up, the last becomes empty."""
    state_N = state_N.copy()
    for part in PARTS:
        rows = _rows(metadata, state_N, part)
        rows[slot:-1] = rows[slot + 1 :].copy()
        rows[-1] = 0.0
    return state_N


def merge(metadata: ModelMetadata, state_N: FloatArray, slot: int, into: int) -> FloatArray:
    """State in which the voice of one slot is part of another's."""
    state_N = state_N.copy()
    for part in ("profiles", "weights"):
        rows = _rows(metadata, state_N, part)
        rows[into] += rows[slot]
    for part in ("recent", "slow"):
        rows = _rows(metadata, state_N, part)
        rows[into] = np.maximum(rows[into], rows[slot])
    return forget(metadata, state_N, slot)


def enrol(metadata: ModelMetadata, state_N: FloatArray, voices_VE: FloatArray) -> FloatArray:
    """State of a stream that knows voices before it begins.

    Args:
        metadata: Where the parts lie.
        state_N: State of a stream that has not begun.
        voices_VE: Unit vectors, at most one a slot; voice v takes slot v.
    """
    state_N = state_N.copy()
    _rows(metadata, state_N, "profiles")[: len(voices_VE)] = voices_VE * np.float32(ENROLLED_STEPS)
    _rows(metadata, state_N, "weights")[: len(voices_VE)] = ENROLLED_STEPS
    return state_N


def _rows(metadata: ModelMetadata, state_N: FloatArray, part: str) -> FloatArray:
    """A view of one part, shape (S, values of a slot)."""
    start = metadata.state_offset(part)
    size = next(entry.size for entry in metadata.state if entry.name == part)
    return state_N[start : start + size].reshape(metadata.num_slots, -1)
