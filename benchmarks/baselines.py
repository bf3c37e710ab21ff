"""What a user could install from PyPI instead: silero-vad with Resemblyzer's voices, online and offline.

`pip install 'voiceflow[baselines]'` brings Resemblyzer. Thresholds are tuned on dev, for each system apart.

Source:
    Wan et al., Generalized end-to-end loss for speaker verification, 2018 (GE2E, Resemblyzer);
    average-linkage clustering and running centroids as in Coria et al., Overlap-aware low-latency
    online speaker diarization, 2021.
"""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import linear_sum_assignment

from voiceflow.errors import PlatformError
from voiceflow.metrics import score, summarise
from voiceflow.simulation.speech import WINDOW_SAMPLES, load_vad
from voiceflow.timebase import SAMPLE_RATE_HZ, FrameGrid
from voiceflow.turns import Turn, merge_turns, scores_to_turns

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

WINDOW_S, HOP_S = 1.6, 0.4
"""Voices are taken from windows as long as Resemblyzer was trained on. A label is for the middle of its window, so
that it is known 0.8 s after the middle: within 1 s with the voice detector's 32 ms and the hop's half."""
MEL_FRAMES_PER_S = 100
VAD_ONSETS = (0.2, 0.35, 0.5)
GAP_FILL_S = 0.3
COSINE_DISTANCES = tuple(round(0.2 + 0.025 * step, 3) for step in range(17))


@dataclass(frozen=True)
class Heard:
    """What both networks say of one recording: found once, clustered many times."""

    duration_s: float
    vad_T: FloatArray
    middles_W: FloatArray
    """Middle of each window, in seconds."""
    voices_WE: FloatArray
    cpu_s: float


@functools.cache
def _networks() -> tuple[Any, Any]:
    try:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from resemblyzer import VoiceEncoder
    except ImportError as err:
        raise PlatformError("the baseline needs Resemblyzer; run `pip install 'voiceflow[baselines]'`") from err
    return load_vad(), VoiceEncoder("cpu", verbose=False)


def listen(samples_N: FloatArray) -> Heard:
    """Speech probabilities and voices of a recording."""
    import librosa
    import torch

    vad, encoder = _networks()
    started = time.process_time()
    peak = float(np.abs(samples_N).max(initial=1e-4))
    padded = np.zeros(-(-len(samples_N) // WINDOW_SAMPLES) * WINDOW_SAMPLES, np.float32)
    padded[: len(samples_N)] = samples_N * np.float32(0.5 / peak)
    with torch.inference_mode():
        vad.reset_states()
        vad_T = np.array(
            [
                float(vad(torch.from_numpy(padded[start : start + WINDOW_SAMPLES]), SAMPLE_RATE_HZ))
                for start in range(0, len(padded), WINDOW_SAMPLES)
            ],
            np.float32,
        )
    # As Resemblyzer's preprocess_wav does: lifted to -30 dBFS, 40 mel bands of 25 ms every 10 ms.
    rms = float(np.sqrt(np.mean(samples_N**2))) + 1e-9
    lifted_N = samples_N * np.float32(max(1.0, 10.0 ** (-30.0 / 20.0) / rms))
    mel_TM = librosa.feature.melspectrogram(y=lifted_N, sr=SAMPLE_RATE_HZ, n_fft=400, hop_length=160, n_mels=40).T
    length = int(WINDOW_S * MEL_FRAMES_PER_S)
    starts = np.arange(0, max(1, len(mel_TM) - length + 1), int(HOP_S * MEL_FRAMES_PER_S))
    windows = np.stack([np.resize(mel_TM[start : start + length], (length, 40)) for start in starts])
    with torch.inference_mode():
        voices_WE = np.concatenate(
            [
                encoder(torch.from_numpy(part.astype(np.float32))).numpy()
                for part in np.array_split(windows, 1 + len(windows) // 64)
            ]
        )
    middles_W = (starts / MEL_FRAMES_PER_S + WINDOW_S / 2).astype(np.float32)
    return Heard(len(samples_N) / SAMPLE_RATE_HZ, vad_T, middles_W, voices_WE, time.process_time() - started)


def one_speaker(heard: Heard, onset: float, distance: float) -> list[Turn]:
    """All speech is one speaker's."""
    return _label(heard, onset, np.zeros(len(heard.middles_W), np.int64))


def offline(heard: Heard, onset: float, distance: float) -> list[Turn]:
    """Average-linkage clustering with the whole recording in hand."""
    labels_W = np.zeros(len(heard.middles_W), np.int64)
    spoken = np.flatnonzero(_speech_share(heard, onset) > 0.5)
    if len(spoken) > 1:
        labels_W[spoken] = _cluster(heard.voices_WE[spoken], distance)
        others = np.setdiff1d(np.arange(len(labels_W)), spoken)
        nearest = np.abs(spoken[None, :] - others[:, None]).argmin(axis=1)
        labels_W[others] = labels_W[spoken[nearest]]
    return _label(heard, onset, labels_W)


def online_centroid(heard: Heard, onset: float, distance: float) -> list[Turn]:
    """Each window goes to the nearest running centroid, or begins a new one."""
    share_W = _speech_share(heard, onset)
    sums: list[FloatArray] = []
    labels_W = np.zeros(len(heard.middles_W), np.int64)
    for index, voice_E in enumerate(heard.voices_WE):
        cosines = [float(voice_E @ total / np.linalg.norm(total)) for total in sums]
        if share_W[index] <= 0.5:
            labels_W[index] = int(np.argmax(cosines)) if sums else 0
            continue
        if not sums or max(cosines) < 1.0 - distance:
            sums.append(np.zeros_like(voice_E))
            cosines.append(1.0)
        labels_W[index] = int(np.argmax(cosines))
        sums[labels_W[index]] += voice_E
    return _label(heard, onset, labels_W)


def online_clustering(heard: Heard, onset: float, distance: float) -> list[Turn]:
    """All windows so far are clustered anew at each; clusters keep the labels most of their windows had."""
    share_W = _speech_share(heard, onset)
    labels_W = np.zeros(len(heard.middles_W), np.int64)
    members: list[int] = []
    known = 0
    for index in range(len(labels_W)):
        if share_W[index] <= 0.5:
            labels_W[index] = labels_W[index - 1] if index else 0
            continue
        members.append(index)
        if len(members) == 1:
            known = max(known, 1)
            continue
        clusters = _cluster(heard.voices_WE[members], distance)
        before = labels_W[members[:-1]]
        shared = np.zeros((clusters.max() + 1, known), np.int64)
        np.add.at(shared, (clusters[:-1], before), 1)
        rows, columns = linear_sum_assignment(-shared)
        label_of = {int(row): int(column) for row, column in zip(rows, columns, strict=True) if shared[row, column]}
        if int(clusters[-1]) not in label_of:
            label_of[int(clusters[-1])] = known
            known += 1
        labels_W[index] = label_of[int(clusters[-1])]
    return _label(heard, onset, labels_W)


SYSTEMS = {
    "one speaker for all": one_speaker,
    "silero + GE2E, offline": offline,
    "silero + GE2E, online 1 s, centroids": online_centroid,
    "silero + GE2E, online 1 s, re-clustering": online_clustering,
}


@dataclass(frozen=True)
class Tuned:
    """A system with the thresholds that serve it best on dev."""

    name: str
    onset: float
    distance: float
    dev_der: float

    def turns(self, heard: Heard) -> list[Turn]:
        """Its answer."""
        return SYSTEMS[self.name](heard, self.onset, self.distance)


def tune(name: str, heard: Sequence[Heard], references: Sequence[list[Turn]]) -> Tuned:
    """Grid search for the least DER."""
    distances = COSINE_DISTANCES if name != "one speaker for all" else COSINE_DISTANCES[:1]
    found = []
    for onset in VAD_ONSETS:
        for distance in distances:
            scores = [
                score(reference, SYSTEMS[name](one, onset, distance), duration_s=one.duration_s)
                for one, reference in zip(heard, references, strict=True)
            ]
            found.append(Tuned(name, onset, distance, float(summarise(scores)["der"])))
    return min(found, key=lambda tuned: tuned.dev_der)


def _cluster(voices_WE: FloatArray, distance: float) -> IntArray:
    labels: IntArray = fcluster(linkage(voices_WE, "average", metric="cosine"), distance, "distance") - 1
    return labels.astype(np.int64)


def _speech(heard: Heard, onset: float) -> list[Turn]:
    return scores_to_turns(
        heard.vad_T[:, None],
        grid=FrameGrid(WINDOW_SAMPLES / SAMPLE_RATE_HZ),
        onset=onset,
        offset=max(0.05, onset - 0.1),
        min_on_s=0.1,
        min_off_s=GAP_FILL_S,
    )


def _speech_share(heard: Heard, onset: float) -> FloatArray:
    """Share of speech in the hop around the middle of each window."""
    share_W = np.zeros(len(heard.middles_W), np.float32)
    for turn in _speech(heard, onset):
        begin = np.maximum(heard.middles_W - HOP_S / 2, turn.start_s)
        end = np.minimum(heard.middles_W + HOP_S / 2, turn.end_s)
        share_W += np.maximum(0.0, end - begin).astype(np.float32) / np.float32(HOP_S)
    return share_W


def _label(heard: Heard, onset: float, labels_W: IntArray) -> list[Turn]:
    """Cut the speech at the borders between windows of different labels."""
    borders = np.concatenate([[0.0], (heard.middles_W[1:] + heard.middles_W[:-1]) / 2.0, [heard.duration_s]])
    turns = []
    for span in _speech(heard, onset):
        first, last = np.searchsorted(borders, [span.start_s, span.end_s], side="right") - 1
        for window in range(int(first), min(int(last), len(labels_W) - 1) + 1):
            begin_s = max(span.start_s, float(borders[window]))
            end_s = min(span.end_s, float(borders[window + 1]), heard.duration_s)
            if end_s > begin_s:
                turns.append(Turn(begin_s, end_s, f"speaker_{labels_W[window]}"))
    return merge_turns(turns, max_gap_s=1e-3)


def pyannet_cpu_s_per_min(*, window_s: float = 5.0, hop_s: float = 0.5, repeats: int = 12) -> float:
    """CPU seconds a minute of audio takes a sliding-window segmentation network of PyanNet's shape, random weights.

    Source:
        Bredin and Laurent, End-to-end speaker segmentation for overlap-aware resegmentation, 2021:
        three convolutions with pooling, four bidirectional LSTM layers of 128, two linear layers.
    """
    import torch
    from torch import nn

    class PyanNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers: list[nn.Module] = []
            for into, out, kernel, stride in ((1, 80, 251, 10), (80, 60, 5, 1), (60, 60, 5, 1)):
                layers += [
                    nn.Conv1d(into, out, kernel, stride),
                    nn.MaxPool1d(3),
                    nn.InstanceNorm1d(out),
                    nn.LeakyReLU(),
                ]
            self.convolutions = nn.Sequential(*layers)
            self.lstm = nn.LSTM(60, 128, num_layers=4, bidirectional=True, batch_first=True)
            self.head = nn.Sequential(
                nn.Linear(256, 128), nn.LeakyReLU(), nn.Linear(128, 128), nn.LeakyReLU(), nn.Linear(128, 7)
            )

        def forward(self, samples_B1N: torch.Tensor) -> torch.Tensor:
            frames, _ = self.lstm(self.convolutions(samples_B1N).transpose(1, 2))
            return self.head(frames)

    net = PyanNet().eval()
    samples = torch.randn(1, 1, int(window_s * SAMPLE_RATE_HZ)) * 0.1
    times_s = []
    with torch.inference_mode():
        for _ in range(repeats):
            started = time.process_time()
            net(samples)
            times_s.append(time.process_time() - started)
    return round(float(np.median(times_s)) * 60.0 / hop_s, 2)
