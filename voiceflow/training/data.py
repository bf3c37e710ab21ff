"""Training excerpts: features and activities of whole recordings in memory, random pieces of them as batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from voiceflow.audio import FloatArray
from voiceflow.features import ENERGY_FLOOR, NUM_MEL_BINS, step_features
from voiceflow.timebase import LOOKAHEAD_STEPS_BY_LATENCY_S, STEP_S
from voiceflow.turns import Turn, speakers_in_order, turns_to_activity

HalfArray = npt.NDArray[np.float16]
MAX_SPEAKERS = 8
LATE_SHARE, NOBODY_SHARE = 0.15, 0.15
"""Share of excerpts whose beginning is silenced, and of those the share in which nobody speaks at all."""
NOISE_SHARE, LATE_NOISE_SHARE = 0.4, 0.8
"""Share of excerpts with other sounds mixed in, and of those that begin late."""
LOG_FLOOR = np.float32(np.log(ENERGY_FLOOR))
SILENT_LOG = LOG_FLOOR + np.float32(0.05)
"""A frame none of whose bins exceeds this is digital silence (half precision moves the floor a little)."""


@dataclass(frozen=True)
class Example:
    """One recording: log-mel features (T, 640) in half precision, activity (T, 8) of its first 8 speakers."""

    name: str
    features_TF: HalfArray
    active_TS: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Batch:
    """Excerpts: features (B, K, 640), activity (B, K, 8), look-ahead (B,)."""

    features_BKF: Tensor
    active_BKS: Tensor
    lookahead_B: Tensor


def make_example(name: str, samples_N: FloatArray, turns: Sequence[Turn]) -> Example:
    """Features and activities on the 80 ms grid; a speaker is active in a step he fills by half."""
    features_TF = step_features(samples_N)
    speakers = speakers_in_order(turns)[:MAX_SPEAKERS]
    known = [turn for turn in turns if turn.speaker in speakers]
    activity = turns_to_activity(known, speakers=speakers, num_frames=len(features_TF), frame_s=STEP_S)
    active_TS = np.zeros((len(features_TF), MAX_SPEAKERS), np.bool_)
    active_TS[:, : len(speakers)] = activity >= 0.5
    return Example(name, features_TF.astype(np.float16), active_TS)


class BatchSampler:
    """Draws batches; the draw of step n depends on the seed and n alone, so that a resumed run sees the same."""

    def __init__(self, examples: Sequence[Example], *, seed: int, noises: Sequence[HalfArray] = ()) -> None:
        """Take examples, and features (T, 640) of sounds that are no speech, to be mixed in."""
        if not examples:
            raise ValueError("expected at least one training example")
        self.examples = examples
        self.noises = noises
        self.seed = seed

    def draw(self, step: int, *, batch_size: int, num_steps: int) -> Batch:
        """The batch of optimiser step `step`: excerpts of `num_steps` model steps each."""
        rng = np.random.default_rng((self.seed, step))
        lookaheads = np.array(list(LOOKAHEAD_STEPS_BY_LATENCY_S.values()))
        features = np.zeros((batch_size, num_steps, self.examples[0].features_TF.shape[1]), np.float32)
        active = np.zeros((batch_size, num_steps, MAX_SPEAKERS), np.bool_)
        for row in range(batch_size):
            example = self.examples[int(rng.integers(len(self.examples)))]
            length = min(num_steps, len(example.features_TF))
            start = int(rng.integers(len(example.features_TF) - length + 1))
            piece_TF = example.features_TF[start : start + length].astype(np.float32)
            active[row, :length] = example.active_TS[start : start + length]
            piece_TF = _augment(rng, piece_TF)
            if self.noises:
                piece_TF, active[row, :length] = self._disturb(rng, piece_TF, active[row, :length])
            features[row, :length] = piece_TF
            features[row, length:] = LOG_FLOOR
        return Batch(
            torch.from_numpy(features), torch.from_numpy(active), torch.from_numpy(rng.choice(lookaheads, batch_size))
        )

    def _disturb(
        self, rng: np.random.Generator, features_TF: FloatArray, active_TS: npt.NDArray[np.bool_]
    ) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """Now and then begin with nobody, and mix in sounds that are no speech, loudest before anybody speaks."""
        loudness = float(np.percentile(features_TF.mean(axis=1), 95))
        late = rng.random() < LATE_SHARE
        begin = 0
        if late:
            begin = int((1.0 if rng.random() < NOBODY_SHARE else rng.uniform(0.1, 0.6)) * len(features_TF))
            features_TF, active_TS = _begin_late(rng, features_TF, active_TS, begin)
        if rng.random() < (LATE_NOISE_SHARE if late else NOISE_SHARE):
            noise_TF = self.noises[int(rng.integers(len(self.noises)))]
            features_TF = _overlay(rng, features_TF, noise_TF, loudness, begin)
        return features_TF, active_TS


def _augment(rng: np.random.Generator, features_TF: FloatArray) -> FloatArray:
    """Other voices, another level, another microphone, now and then a noise floor or a masked band."""
    mel = features_TF.reshape(-1, NUM_MEL_BINS)
    silent = mel.max(axis=1, keepdims=True) <= SILENT_LOG
    if rng.random() < 0.7:
        mel = mel @ _WARPS[int(np.clip(rng.normal(len(_WARPS) // 2, 4.0), 0, len(_WARPS) - 1))]
    shift = rng.normal(0.0, 1.0) if rng.random() < 0.8 else rng.uniform(-5.0, 2.0)
    bins = np.linspace(0.0, 1.0, NUM_MEL_BINS)
    tilt = rng.normal(0.0, 0.6) * (bins - 0.5) + rng.normal(0.0, 0.3) * np.cos(np.pi * rng.integers(2, 6) * bins)
    mel = mel + (shift + tilt).astype(np.float32)
    if rng.random() < 0.25:
        floor = np.percentile(mel[::8].mean(axis=1), 95) - rng.uniform(3.0, 12.0) + rng.normal(0.0, 2.0) * (bins - 0.5)
        spread = rng.standard_normal(mel.shape, dtype=np.float32) * np.float32(0.45)
        mel = np.logaddexp(mel, floor.astype(np.float32) + spread)
    if rng.random() < 0.3:
        width = int(rng.integers(2, 12))
        first = int(rng.integers(0, NUM_MEL_BINS - width))
        mel[:, first : first + width] = mel.mean()
    # What is not heard stays so at any level.
    mel = np.where(silent, LOG_FLOOR, np.maximum(mel, LOG_FLOOR))
    return mel.reshape(features_TF.shape).astype(np.float32)


def _begin_late(
    rng: np.random.Generator, features_TF: FloatArray, active_TS: npt.NDArray[np.bool_], length: int
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Nobody speaks in the first `length` steps: they are like the quietest of the excerpt."""
    quiet_F = np.percentile(features_TF[::4], 3, axis=0).astype(np.float32)
    features_TF, active_TS = features_TF.copy(), active_TS.copy()
    spread = rng.standard_normal((length, features_TF.shape[1]), dtype=np.float32) * np.float32(0.4)
    features_TF[:length] = np.maximum(quiet_F + spread, LOG_FLOOR)
    active_TS[:length] = False
    return features_TF, active_TS


def _overlay(
    rng: np.random.Generator, features_TF: FloatArray, noise_TF: HalfArray, loudness: float, begin: int
) -> FloatArray:
    """Add the energy of other sounds: faint ones throughout, loud ones for a while.

    Args:
        rng: Draws how loud and when.
        features_TF: The excerpt.
        noise_TF: Features of the sounds.
        loudness: Log energy of the excerpt's speech.
        begin: Steps before anybody speaks; loud sounds stay within them, where there are any.
    """
    length = len(features_TF)
    start = int(rng.integers(max(1, len(noise_TF) - length + 1)))
    noise = np.resize(noise_TF[start:], (length, noise_TF.shape[1])).astype(np.float32)
    levels_T = noise.mean(axis=1)
    heard_T = levels_T > LOG_FLOOR + 0.5
    if not heard_T.any():
        return features_TF
    loud = loudness - float(np.percentile(levels_T[heard_T], 90))
    gain = rng.uniform(-8.0, 3.0 if begin else 1.0)
    if gain > -3.0:
        first, last = (0, begin) if begin else _span(rng, length)
        noise[:first] = LOG_FLOOR
        noise[last:] = LOG_FLOOR
    noise = np.where(noise <= SILENT_LOG, LOG_FLOOR, noise + np.float32(loud + gain))
    mixed: FloatArray = np.logaddexp(features_TF, noise).astype(np.float32)
    return mixed


def _span(rng: np.random.Generator, length: int) -> tuple[int, int]:
    first = max(0, int(rng.integers(-length // 3, length)))
    return first, first + int(rng.uniform(0.05, 0.4) * length)


def _warps() -> list[FloatArray]:
    """Matrices (80, 80) that stretch the frequency axis by 0.84 to 1.19: vocal tracts of other lengths.

    Source:
        Jaitly and Hinton, Vocal tract length perturbation, 2013.
    """
    low, high = (2595.0 * np.log10(1.0 + hz / 700.0) for hz in (20.0, 7600.0))
    mel = np.linspace(low, high, NUM_MEL_BINS + 2)[1:-1]
    hz = 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    matrices = []
    for factor in np.exp(np.linspace(-0.17, 0.17, 25)):
        source = np.interp(2595.0 * np.log10(1.0 + hz / factor / 700.0), mel, np.arange(NUM_MEL_BINS))
        low_bin = np.minimum(source.astype(int), NUM_MEL_BINS - 2)
        matrix = np.zeros((NUM_MEL_BINS, NUM_MEL_BINS), np.float32)
        matrix[low_bin, np.arange(NUM_MEL_BINS)] = 1.0 - (source - low_bin)
        matrix[low_bin + 1, np.arange(NUM_MEL_BINS)] = source - low_bin
        matrices.append(matrix)
    return matrices


_WARPS = _warps()
