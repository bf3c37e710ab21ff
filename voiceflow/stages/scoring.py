"""Scoring models on splits of a dataset: shared by evaluate, export and promote."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from voiceflow.contract import ModelMetadata
from voiceflow.metrics import Score, score
from voiceflow.models.diarizer import Diarizer
from voiceflow.stages.dataset import Recording, read_recordings, read_samples, read_turns
from voiceflow.streaming.batch import Scorer, stream_recordings
from voiceflow.streaming.session import StreamSettings
from voiceflow.turns import Turn

FloatArray = npt.NDArray[np.float32]


class TorchStep:
    """A torch network behind the interface of `runtime.StepModel`, for models that are not exported yet."""

    def __init__(self, net: Diarizer, metadata: ModelMetadata) -> None:
        self.net = net.eval()
        self.metadata = metadata

    @torch.inference_mode()
    def step(
        self, features_BF: FloatArray, state_BN: FloatArray, lookahead_B: npt.NDArray[np.int64]
    ) -> tuple[FloatArray, FloatArray]:
        """See `runtime.StepModel.step`."""
        activity, state = self.net(
            torch.from_numpy(features_BF[:, None]), torch.from_numpy(state_BN), torch.from_numpy(lookahead_B)
        )
        return activity[:, 0].numpy(), state.numpy()


class SplitScores:
    """What a model said about recordings, and how wrong it was.

    Args:
        dataset: What `prepare` wrote.
        recordings: Which of its recordings.
        scorer: The model.
        latency_s: At which latency it streams.
    """

    def __init__(self, dataset: Path, recordings: Sequence[Recording], scorer: Scorer, *, latency_s: float) -> None:
        self.recordings = list(recordings)
        self.references = {recording.name: read_turns(dataset, recording) for recording in recordings}
        audio = [read_samples(dataset, recording) for recording in recordings]
        sessions = stream_recordings(audio, scorer, StreamSettings("pcm_f32le", latency_s=latency_s))
        self.hypotheses: dict[str, list[Turn]] = {}
        """Turns under the labels they were first told with: what a client knew at this latency."""
        self.revised: dict[str, list[Turn]] = {}
        """The same turns after all revisions."""
        for recording, session in zip(recordings, sessions, strict=True):
            self.hypotheses[recording.name] = session.turns_as_told
            self.revised[recording.name] = session.turns
        self.scores = self.score(0.0)

    def score(self, collar_per_side_s: float, *, revised: bool = False) -> dict[str, Score]:
        """Scores by recording, of the turns as first told or as revised."""
        hypotheses = self.revised if revised else self.hypotheses
        return {
            recording.name: score(
                self.references[recording.name],
                hypotheses[recording.name],
                duration_s=recording.duration_s,
                collar_per_side_s=collar_per_side_s,
            )
            for recording in self.recordings
        }


def held_out(dataset: Path) -> list[Recording]:
    """Recordings that gates judge by: the test split."""
    return read_recordings(dataset, "test")


def slices_of(recordings: Sequence[Recording]) -> dict[str, list[str]]:
    """Slices of simulated recordings: by condition and by number of speakers."""
    slices: dict[str, list[str]] = {}
    for recording in recordings:
        count = len(recording.speakers)
        speakers = f"{count} speaker" + ("s" if count > 1 else "") if count < 5 else "5-8 speakers"
        for name in (recording.condition, speakers):
            slices.setdefault(name, []).append(recording.name)
    return dict(sorted(slices.items()))


def errors_s(scores: dict[str, Score], names: Sequence[str]) -> list[float]:
    """Seconds of error of each recording, in the order of `names`."""
    return [scores[name].missed_s + scores[name].false_alarm_s + scores[name].confusion_s for name in names]


def table(figures: dict[str, dict[str, float]]) -> dict[str, Any]:
    """DER by slice, for a model file's metadata."""
    return {name: round(row["der"], 6) for name, row in figures.items()}
