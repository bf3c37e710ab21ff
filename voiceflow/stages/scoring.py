"""Scoring models on splits of a dataset: shared by evaluate, export and promote."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voiceflow.metrics import Score, score
from voiceflow.stages.dataset import Recording, read_recordings, read_samples, read_turns
from voiceflow.streaming.batch import Scorer, stream_recordings, stream_statistics
from voiceflow.streaming.session import StreamSettings
from voiceflow.turns import Turn

FloatArray = npt.NDArray[np.float32]


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

    @property
    def revisions_per_minute(self) -> float:
        """Turns whose label was another when they were first told."""
        revised = sum(len(_labelled(self.hypotheses[name]) - _labelled(turns)) for name, turns in self.revised.items())
        return 60.0 * revised / max(sum(recording.duration_s for recording in self.recordings), 1e-9)

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


def _labelled(turns: Sequence[Turn]) -> set[tuple[float, float, str]]:
    return {(turn.start_s, turn.end_s, turn.speaker) for turn in turns}


REFERENCE_BATCH = 32


def write_reference(path: Path, dataset: Path, model: Scorer, *, latency_s: float) -> None:
    """Statistics of the dev and test conversations as live streams, a line each, with their conditions: what `drift`
    compares live streams with."""
    recordings = read_recordings(dataset, "dev") + held_out(dataset)
    lines = []
    for start in range(0, len(recordings), REFERENCE_BATCH):
        batch = recordings[start : start + REFERENCE_BATCH]
        rows = stream_statistics([read_samples(dataset, row) for row in batch], model, latency_s=latency_s)
        lines += [
            json.dumps(row.as_dict() | {"condition": recording.condition})
            for recording, row in zip(batch, rows, strict=True)
        ]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


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


OVERLAP_BOUNDS = (0.05, 0.15)
"""Shares of speech that is spoken at once which part slices."""
DURATION_BOUNDS_S = (120.0, 600.0)


def live_slices(recordings: Sequence[Recording], references: dict[str, list[Turn]]) -> dict[str, list[str]]:
    """Slices by how much is spoken at once, and by duration where that differs."""
    slices: dict[str, list[str]] = {}
    low, high = OVERLAP_BOUNDS
    short_s, long_s = DURATION_BOUNDS_S
    for recording in recordings:
        share, duration_s = overlap_share(references[recording.name]), recording.duration_s
        overlap = "little overlap" if share < low else "much overlap" if share > high else "some overlap"
        length = "under 2 min" if duration_s < short_s else "over 10 min" if duration_s > long_s else "2 to 10 min"
        for name in (overlap, length):
            slices.setdefault(name, []).append(recording.name)
    return {name: members for name, members in sorted(slices.items()) if len(members) < len(recordings)}


def overlap_share(turns: Sequence[Turn]) -> float:
    """Share of the time in which anybody speaks in which more than one does."""
    edges = sorted([(turn.start_s, 1) for turn in turns] + [(turn.end_s, -1) for turn in turns])
    speaking, before_s, spoken_s, shared_s = 0, 0.0, 0.0, 0.0
    for at_s, change in edges:
        spoken_s += (at_s - before_s) * (speaking > 0)
        shared_s += (at_s - before_s) * (speaking > 1)
        speaking, before_s = speaking + change, at_s
    return shared_s / spoken_s if spoken_s > 0 else 0.0


def errors_s(scores: dict[str, Score], names: Sequence[str]) -> list[float]:
    """Seconds of error of each recording, in the order of `names`."""
    return [scores[name].missed_s + scores[name].false_alarm_s + scores[name].confusion_s for name in names]


def table(figures: dict[str, dict[str, float]]) -> dict[str, Any]:
    """DER by slice, for a model file's metadata."""
    return {name: round(row["der"], 6) for name, row in figures.items()}
