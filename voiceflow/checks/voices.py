"""Whether two names are one voice: what each sounds like, measured against how much one name varies.

Source:
    Long-term cepstra with within-class covariance normalisation (Hatch, Kajarekar and Stolcke, Within-class Covariance
    Normalization for SVM-based Speaker Recognition, 2006) and scores relative to the nearest others (adaptive s-norm).
"""

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
MIN_SPEECH_S, MAX_SPEECH_S = 4.0, 12.0
"""Speech of one name alone that is needed, and looked at, in one recording."""
EDGE_S = 0.1
"""Cut from both ends of turns."""
MIN_NAMES = 12
"""Fewer names do not tell how alike different people are."""
NEAREST = 30
SHRINKAGE = 0.05


class SameVoice(NamedTuple):
    """Two names, and how much more alike they are than others: in standard deviations of the nearest strangers."""

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


def same_voices(vectors: Mapping[str, Sequence[VectorArray]], *, min_score: float) -> list[SameVoice]:
    """Pairs of names that sound like one person, best first; for all vectors of each name.

    How much one name varies from piece to piece is learnt from the data itself; a pair is told where both are
    each other's nearest and further from the crowd than `min_score`.
    """
    names = sorted(vectors)
    if len(names) < MIN_NAMES:
        return []
    all_VD = np.concatenate([np.stack(vectors[name]) for name in names])
    centre_D, scale_D = all_VD.mean(axis=0), all_VD.std(axis=0) + 1e-9
    groups = [(np.stack(vectors[name]) - centre_D) / scale_D for name in names]
    within = sum((group - group.mean(axis=0)).T @ (group - group.mean(axis=0)) for group in groups)
    freedom = max(1, sum(len(group) - 1 for group in groups))
    within_DD = np.asarray(within) / freedom
    within_DD += SHRINKAGE * np.trace(within_DD) / len(within_DD) * np.eye(len(within_DD))
    whiten_DD = np.linalg.cholesky(np.linalg.inv(within_DD))
    points_ND = np.stack([(group @ whiten_DD).mean(axis=0) for group in groups])
    points_ND /= np.linalg.norm(points_ND, axis=1, keepdims=True)
    alike_NN = points_ND @ points_ND.T
    np.fill_diagonal(alike_NN, -np.inf)
    # The nearest one is left out of the crowd: it may be the same person.
    crowd = np.sort(alike_NN, axis=1)[:, ::-1][:, 1 : 1 + min(NEAREST, len(names) - 2)]
    mean_N, spread_N = crowd.mean(axis=1), crowd.std(axis=1) + 1e-6
    scores_NN = 0.5 * ((alike_NN - mean_N[:, None]) / spread_N[:, None] + (alike_NN - mean_N) / spread_N)
    nearest_N = scores_NN.argmax(axis=1)
    found = [
        SameVoice(names[index], names[other], float(scores_NN[index, other]))
        for index, other in enumerate(nearest_N.tolist())
        if index < other and nearest_N[other] == index and scores_NN[index, other] >= min_score
    ]
    return sorted(found, key=lambda pair: -pair.score)
