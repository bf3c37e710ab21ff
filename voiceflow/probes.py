"""Probes: what a servable model must do, found out by running it, whatever its file says of itself."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from voiceflow.features import ENERGY_FLOOR, STEP_FEATURES
from voiceflow.runtime import StepModel
from voiceflow.timebase import STEP_S
from voiceflow.turns import Turn

FloatArray = npt.NDArray[np.float32]

ACTIVE = 0.5
MAX_BATCH_DIFFERENCE = 1e-3
"""Of an answer to a stream, alone and beside others."""
MAX_LATE_STEPS = 1
"""Answers may be told for a neighbouring step: reference turns do not begin on the grid of steps."""
SEARCHED_STEPS = 12


def find_faults(model: StepModel, speech_TF: FloatArray, turns: Sequence[Turn]) -> list[str]:
    """Run a model on noise, silence and speech, and say what it does wrong.

    Args:
        model: The file, loaded.
        speech_TF: Features of a conversation, shape (T, 640): half a minute is enough.
        turns: Who speaks in it, in seconds.

    Returns:
        A sentence a fault; empty where there is none.
    """
    try:
        faults = _numbers(model)
    except Exception as err:  # ONNX Runtime has a class of its own for every kind of failure
        return [f"a step fails: {str(err).strip().splitlines()[0][:300]}"]
    if faults:
        return faults  # what comes of numbers that are none says nothing more
    return [
        *_batches(model, speech_TF),
        *_silence(model),
        *_one_speaker(model, speech_TF),
        *_timing(model, speech_TF, turns),
    ]


def run(
    model: StepModel, features_TF: FloatArray, *, lookahead_steps: int, max_speakers: int | None = None
) -> FloatArray:
    """Activities of a stream by answered step, shape (T - look-ahead, S)."""
    state_BN = model.initial_state(max_speakers)[None]
    rows = []
    for features_F in features_TF:
        activity_BS, state_BN = model.step(features_F[None], state_BN, np.array([lookahead_steps], np.int64))
        rows.append(activity_BS[0])
    return np.stack(rows)[lookahead_steps:]


def _noise(num_steps: int, *, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).normal(-8.0, 3.0, (num_steps, STEP_FEATURES)).astype(np.float32)


def _numbers(model: StepModel) -> list[str]:
    state_BN = np.repeat(model.initial_state()[None], 2, axis=0)
    lookahead = max(model.metadata.lookahead_steps)
    for step, features_F in enumerate(_noise(50)):
        activity_BS, state_BN = model.step(np.stack([features_F] * 2), state_BN, np.full(2, lookahead, np.int64))
        for what, values in (("activities", activity_BS), ("the new state", state_BN)):
            if not np.isfinite(values).all():
                return [f"{what} of step {step} hold values that are no numbers (NaN or infinite)"]
        if step < lookahead and np.abs(activity_BS).max() > 0:
            return [f"call {step} answers a step before the stream began (look-ahead {lookahead} steps)"]
        if activity_BS.min() < -1e-6 or activity_BS.max() > 1 + 1e-6:
            return [f"activities of step {step} lie outside 0 to 1: {activity_BS.min():.3f} to {activity_BS.max():.3f}"]
    return []


def _batches(model: StepModel, speech_TF: FloatArray) -> list[str]:
    lookahead = min(model.metadata.lookahead_steps)
    alone = run(model, speech_TF[:60], lookahead_steps=lookahead)
    state_BN = np.repeat(model.initial_state()[None], 5, axis=0)
    rows = []
    for step, features_F in enumerate(speech_TF[:60]):
        batch_BF = np.concatenate([features_F[None], _noise(4, seed=step)])
        activity_BS, state_BN = model.step(batch_BF, state_BN, np.full(5, lookahead, np.int64))
        rows.append(activity_BS[0])
    difference = float(np.abs(np.stack(rows)[lookahead:] - alone).max())
    if difference > MAX_BATCH_DIFFERENCE:
        return [f"a stream's answers change by {difference:.3f} with who else is in the batch"]
    return []


def _silence(model: StepModel) -> list[str]:
    silence_TF = np.full((80, STEP_FEATURES), np.log(ENERGY_FLOOR), np.float32)
    loudest = float(run(model, silence_TF, lookahead_steps=min(model.metadata.lookahead_steps)).max())
    return [f"somebody speaks in digital silence (activity {loudest:.2f})"] if loudest > ACTIVE else []


def _one_speaker(model: StepModel, speech_TF: FloatArray) -> list[str]:
    activity_TS = run(model, speech_TF, lookahead_steps=max(model.metadata.lookahead_steps), max_speakers=1)
    beyond = int((activity_TS[:, 1:].max(axis=1) > ACTIVE).sum())
    if beyond > 0:
        slot = int(activity_TS.max(axis=0)[1:].argmax()) + 1
        return [f"a stream of at most one speaker is given slot {slot} in {beyond} steps: slots are not in order"]
    return []


def _timing(model: StepModel, speech_TF: FloatArray, turns: Sequence[Turn]) -> list[str]:
    faults = []
    for lookahead in sorted(model.metadata.lookahead_steps):
        active_T = run(model, speech_TF, lookahead_steps=lookahead).max(axis=1)
        times_T = (np.arange(len(active_T)) + 0.5) * STEP_S
        spoken_T = np.zeros(len(active_T), bool)
        for turn in turns:
            spoken_T |= (times_T >= turn.start_s) & (times_T < turn.end_s)
        if not 0 < spoken_T.sum() < len(spoken_T):
            continue  # nothing to line up with
        agreement = {
            shift: _agreement(active_T, spoken_T, shift) for shift in range(-SEARCHED_STEPS, SEARCHED_STEPS + 1)
        }
        late = max(agreement, key=lambda shift: agreement[shift])
        if abs(late) > MAX_LATE_STEPS:
            word = "late" if late > 0 else "early"
            faults.append(
                f"with a look-ahead of {lookahead} steps its answers come {abs(late)} steps "
                f"({1000 * STEP_S * abs(late):.0f} ms) {word}: it looks further ahead than it says"
            )
    return faults


def _agreement(active_T: FloatArray, spoken_T: npt.NDArray[np.bool_], shift: int) -> float:
    """Correlation of answers, taken to be `shift` steps late, with true speech."""
    size = len(active_T) - abs(shift)
    answers, truth = active_T[max(0, shift) :][:size], spoken_T[max(0, -shift) :][:size].astype(np.float64)
    answers, truth = answers - answers.mean(), truth - truth.mean()
    scale = float(np.sqrt((answers**2).sum() * (truth**2).sum()))
    return float((answers * truth).sum()) / scale if scale > 0 else -1.0
