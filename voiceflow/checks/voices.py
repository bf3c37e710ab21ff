"""Whether two names are one voice: what each sounds like, measured against how much one name varies.

Source:
    Long-term cepstra with within-class covariance normalisation (Hatch, Kajarekar and Stolcke, Within-class Covariance
    Normalization for SVM-based Speaker Recognition, 2006) and scores relative to the nearest others (adaptive s-norm).
"""

import importlib.resources
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from voiceflow.checks.signal import FloatArray
from voiceflow.features import log_mel
from voiceflow.timebase import SAMPLE_RATE_HZ
from voiceflow.turns import Turn

VectorArray = npt.NDArray[np.float64]
NUM_CEPSTRA = 29
MIN_SPEECH_S, MAX_SPEECH_S = 4.0, 30.0
"""Speech of one name alone that is needed, and looked at, in one recording."""
EDGE_S = 0.1
"""Cut from both ends of turns."""
MIN_NAMES = 8
"""Fewer names do not tell how alike different people are."""
NEAREST = 30
SHRINKAGE = 0.05
WITHIN_FILE, PRIOR_FREEDOM = "within.npy", 200
"""How one voice varies elsewhere, and for how many of the data's own vectors that counts."""


class SameVoice(NamedTuple):
    """Two names, and how alike they are: a cosine, or standard deviations of the nearest strangers."""

    first: str
    second: str
    score: float


def voice_vectors(samples_N: FloatArray, turns: Sequence[Turn]) -> dict[str, list[VectorArray]]:
    """What each speaker sounds like: two vectors of halves of what he says alone, of those with enough of it.

    Args:
        samples_N: Mono float32 at 16 kHz.
        turns: In seconds.
    """
    pieces = alone(samples_N, turns)
    vectors = {}
    for speaker, speech_N in pieces.items():
        if len(speech_N) >= MIN_SPEECH_S * SAMPLE_RATE_HZ:
            half = len(speech_N) // 2
            vectors[speaker] = [_vector(speech_N[:half]), _vector(speech_N[half:])]
    return vectors


def alone(samples_N: FloatArray, turns: Sequence[Turn]) -> dict[str, FloatArray]:
    """What each speaker says while nobody else speaks, joined, at most `MAX_SPEECH_S`."""
    busy_N = np.zeros(len(samples_N), np.int8)
    spans: dict[str, list[slice]] = defaultdict(list)
    for turn in turns:
        start, end = (min(len(samples_N), int(at_s * SAMPLE_RATE_HZ)) for at_s in (turn.start_s, turn.end_s))
        busy_N[start:end] += 1
        edge = int(EDGE_S * SAMPLE_RATE_HZ)
        spans[turn.speaker].append(slice(start + edge, max(start + edge, end - edge)))
    found = {}
    for speaker, slices in spans.items():
        pieces = [
            samples_N[span][busy_N[span] == 1] for span in sorted(slices, key=lambda span: span.start - span.stop)
        ]
        found[speaker] = np.concatenate(pieces)[: int(MAX_SPEECH_S * SAMPLE_RATE_HZ)]
    return found


def _vector(speech_N: FloatArray) -> VectorArray:
    """Mean and spread of the cepstra of the louder frames, shape (2 x `NUM_CEPSTRA`,)."""
    import scipy.fft

    mel_TF = log_mel(speech_N)
    loudness_T = mel_TF.mean(axis=1)
    cepstra = scipy.fft.dct(mel_TF[loudness_T >= np.quantile(loudness_T, 0.4)], axis=1, norm="ortho")
    cepstra = cepstra[:, 1 : NUM_CEPSTRA + 1]
    return np.concatenate([cepstra.mean(axis=0), cepstra.std(axis=0)]).astype(np.float64)


def within_class(groups: Sequence[VectorArray]) -> VectorArray:
    """How vectors of one name vary, over all names: a covariance, shape (D, D), a little rounder than it is."""
    freedom = max(1, sum(len(group) - 1 for group in groups))
    within_DD = sum((group - group.mean(axis=0)).T @ (group - group.mean(axis=0)) for group in groups)
    within_DD = np.asarray(within_DD) / freedom
    return (1.0 - SHRINKAGE) * within_DD + SHRINKAGE * np.diag(np.diag(within_DD))


class Voices:
    """What all names sound like, on a scale on which one name varies alike in every direction.

    How much one name varies from piece to piece is known from simulated conversations (`python -m benchmarks.voices`
    measured it), and learnt from the data itself as far as there is enough of it.

    Args:
        vectors: Of each name, by recording, what `voice_vectors` returned.
    """

    def __init__(self, vectors: Mapping[str, Mapping[str, Sequence[VectorArray]]]) -> None:
        self._names = sorted(name for name, found in vectors.items() if found)
        groups = [np.stack([vector for found in vectors[name].values() for vector in found]) for name in self._names]
        self.is_enough = len(self._names) >= MIN_NAMES
        """Whether there are names enough to tell how alike different people are."""
        if not self.is_enough:
            return
        self._centre_D = np.concatenate(groups).mean(axis=0)
        freedom = sum(len(group) - 1 for group in groups)
        prior_DD = np.load(str(importlib.resources.files("voiceflow.checks").joinpath(WITHIN_FILE)))
        within_DD = (freedom * within_class(groups) + PRIOR_FREEDOM * prior_DD) / (freedom + PRIOR_FREEDOM)
        self._whiten_DD = np.linalg.cholesky(np.linalg.inv(within_DD))
        self._points_ND = np.stack([self._point(group) for group in groups])
        self._vectors = vectors

    def _point(self, group: Sequence[VectorArray] | VectorArray) -> VectorArray:
        point_D: VectorArray = ((np.asarray(group) - self._centre_D) @ self._whiten_DD).mean(axis=0)
        return point_D / np.linalg.norm(point_D)

    def same_in_recording(self, *, min_likeness: float) -> list[SameVoice]:
        """Pairs of names of one recording whose cosine is at least so high: the room is the same, and pairs are few."""
        if not self.is_enough:
            return []
        by_recording: dict[str, list[str]] = defaultdict(list)
        for name in self._names:
            for recording in self._vectors[name]:
                by_recording[recording].append(name)
        best: dict[tuple[str, str], float] = {}
        for recording, names in by_recording.items():
            points = {name: self._point(self._vectors[name][recording]) for name in names}
            for first, second in itertools.combinations(names, 2):
                likeness = float(points[first] @ points[second])
                if likeness >= min_likeness:
                    best[first, second] = max(likeness, best.get((first, second), 0.0))
        return [SameVoice(first, second, likeness) for (first, second), likeness in best.items()]

    def same_anywhere(self, *, min_score: float) -> list[SameVoice]:
        """Pairs of names, each the other's nearest, that are further from the crowd than `min_score`, best first."""
        if not self.is_enough:
            return []
        alike_NN = self._points_ND @ self._points_ND.T
        np.fill_diagonal(alike_NN, -np.inf)
        # The nearest one is left out of the crowd: it may be the same person.
        crowd = np.sort(alike_NN, axis=1)[:, ::-1][:, 1 : 1 + min(NEAREST, len(self._names) - 2)]
        mean_N, spread_N = crowd.mean(axis=1), crowd.std(axis=1) + 1e-6
        scores_NN = 0.5 * ((alike_NN - mean_N[:, None]) / spread_N[:, None] + (alike_NN - mean_N) / spread_N)
        nearest_N = scores_NN.argmax(axis=1)
        found = [
            SameVoice(self._names[index], self._names[other], float(scores_NN[index, other]))
            for index, other in enumerate(nearest_N.tolist())
            if index < other and nearest_N[other] == index and scores_NN[index, other] >= min_score
        ]
        return sorted(found, key=lambda pair: -pair.score)
