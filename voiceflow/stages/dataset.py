"""The prepared dataset on disk: what `prepare` writes and every later stage reads.

recordings.jsonl        one Recording a line, sorted by name
prepare.json            seed, corpus revision, counts
audio/<split>/*.flac    mono, 16 kHz, 16 bit
rttm/<split>/*.rttm     exact turns
"""

import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from voiceflow.audio import FloatArray, load_audio
from voiceflow.config import Section
from voiceflow.errors import DataError
from voiceflow.turns import Turn, read_rttm

SPLITS = ("train", "dev", "test", "recorded")


class Recording(Section):
    """One recording with reference turns."""

    name: str
    split: str
    """train, dev or test (simulated), or recorded (real, never trained on)."""
    audio: str
    """Path of the audio, relative to the dataset."""
    rttm: str
    condition: str
    """close, room, far, telephone, headset (train only), or recorded."""
    speakers: list[str]
    duration_s: float
    sample_rate_hz: int
    digest: str
    """SHA-256 of the audio file."""


def write_recordings(folder: Path, recordings: Iterable[Recording]) -> None:
    """Write recordings.jsonl, sorted by split and name."""
    ordered = sorted(recordings, key=lambda recording: (SPLITS.index(recording.split), recording.name))
    lines = "".join(recording.model_dump_json() + "\n" for recording in ordered)
    (folder / "recordings.jsonl").write_text(lines, encoding="utf-8")


def read_recordings(folder: Path, split: str | None = None) -> list[Recording]:
    """All recordings of a dataset, or those of one split.

    Raises:
        DataError: No dataset there, or a malformed line.
    """
    path = folder / "recordings.jsonl"
    if not path.is_file():
        raise DataError(f"{path} is missing; run `voiceflow stage prepare` or `dvc repro prepare` first")
    recordings = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            recordings.append(Recording.model_validate_json(line))
        except ValidationError as err:
            raise DataError(f"{path}, line {number}: {err}") from err
    return [recording for recording in recordings if split is None or recording.split == split]


def read_turns(folder: Path, recording: Recording) -> list[Turn]:
    """Reference turns of a recording; empty if its RTTM holds none."""
    return read_rttm(folder / recording.rttm).get(recording.name, [])


def read_samples(folder: Path, recording: Recording) -> FloatArray:
    """Audio of a recording, mono float32 at 16 kHz, shape (N,)."""
    return load_audio(folder / recording.audio)


def read_summary(folder: Path) -> dict[str, object]:
    """prepare.json: seed, corpus revision and counts."""
    path = folder / "prepare.json"
    if not path.is_file():
        raise DataError(f"{path} is missing; run `voiceflow stage prepare` first")
    summary: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return summary
