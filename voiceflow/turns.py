"""Speaker turns: the type, the formats (RTTM, JSON, SRT, diarized_json), and turns from scores."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voiceflow.errors import DataError
from voiceflow.timebase import FrameGrid

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, order=True)
class Turn:
    """One speaker in [start_s, end_s), in seconds from the start of the recording."""

    start_s: float
    end_s: float
    speaker: str
    confidence: float = 1.0

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.end_s - self.start_s


def scores_to_turns(
    scores_TS: FloatArray,
    *,
    grid: FrameGrid,
    onset: float,
    offset: float | None = None,
    min_on_s: float = 0.0,
    min_off_s: float = 0.0,
    speakers: Sequence[str] | None = None,
) -> list[Turn]:
    """Turn frame-wise speaker scores into speaker turns.

    Overlapped speech gives overlapping turns; a turn open on the last frame ends with that frame.

    Args:
        scores_TS: Speech probability in [0, 1], shape (frames, slots), float32.
        grid: Maps frame indices to seconds from the start of the stream.
        onset: Probability above which a silent slot begins to speak.
        offset: Probability below which a speaking slot stops; `onset` by default.
        min_on_s: Turns shorter than this are dropped, after gaps are filled.
        min_off_s: Gaps shorter than this are filled.
        speakers: Label of each slot; ``speaker_<slot>`` by default.

    Returns:
        Turns sorted by start then end, in seconds, half-open.

    Raises:
        ValueError: If ``scores_TS`` is not two-dimensional.
    """
    if scores_TS.ndim != 2:
        raise ValueError(f"expected scores of shape (frames, slots), got {scores_TS.shape}")
    turns = []
    for slot in range(scores_TS.shape[1]):
        label = speakers[slot] if speakers else f"speaker_{slot}"
        active_T = hysteresis(scores_TS[:, slot], onset, onset if offset is None else offset)
        spans = _fill_gaps(_spans(active_T), round(min_off_s / grid.frame_s, 6))
        for start, end in spans:
            if (end - start) * grid.frame_s + 1e-9 >= min_on_s:
                confidence = round(float(scores_TS[start:end, slot].mean()), 4)
                turns.append(Turn(grid.start_s(start), grid.start_s(end), label, confidence))
    return sorted(turns)


def hysteresis(scores_T: FloatArray, onset: float, offset: float) -> BoolArray:
    """Active from the frame that exceeds `onset` until the first that falls below `offset`."""
    # A frame decides (on or off) or inherits the last decision: forward-fill the deciders.
    decided_T = np.where(scores_T > onset, 1, np.where(scores_T < offset, 0, -1))
    last_T = np.maximum.accumulate(np.where(decided_T >= 0, np.arange(len(scores_T)), -1))
    active: BoolArray = (last_T >= 0) & (decided_T[np.maximum(last_T, 0)] == 1)
    return active


def _spans(active_T: BoolArray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], active_T, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def _fill_gaps(spans: list[tuple[int, int]], min_gap_frames: float) -> list[tuple[int, int]]:
    filled: list[tuple[int, int]] = []
    for start, end in spans:
        if filled and start - filled[-1][1] < min_gap_frames:
            filled[-1] = (filled[-1][0], end)
        else:
            filled.append((start, end))
    return filled


def merge_turns(turns: Iterable[Turn], *, max_gap_s: float = 0.0) -> list[Turn]:
    """Join turns of one speaker that touch, overlap, or lie at most `max_gap_s` apart."""
    merged: dict[str, list[Turn]] = {}
    for turn in sorted(turns):
        row = merged.setdefault(turn.speaker, [])
        if row and turn.start_s - row[-1].end_s <= max_gap_s + 1e-9:
            row[-1] = Turn(row[-1].start_s, max(row[-1].end_s, turn.end_s), turn.speaker, row[-1].confidence)
        else:
            row.append(turn)
    return sorted(turn for row in merged.values() for turn in row)


def turns_within(turns: Iterable[Turn], start_s: float, end_s: float) -> list[Turn]:
    """What of the turns lies in [start_s, end_s), in seconds from `start_s`; less than a millisecond is left out."""
    inside = []
    for turn in sorted(turns):
        begin, end = max(turn.start_s, start_s), min(turn.end_s, end_s)
        if end - begin >= 0.001:
            inside.append(Turn(round(begin - start_s, 6), round(end - start_s, 6), turn.speaker, turn.confidence))
    return inside


def turns_to_activity(turns: Sequence[Turn], *, speakers: Sequence[str], num_frames: int, frame_s: float) -> FloatArray:
    """Fraction of each frame in which each speaker speaks, shape (frames, speakers)."""
    activity = np.zeros((num_frames, len(speakers)), np.float32)
    column = {speaker: index for index, speaker in enumerate(speakers)}
    starts_s = np.arange(num_frames) * frame_s
    for turn in turns:
        first = max(0, int(turn.start_s / frame_s) - 1)
        last = min(num_frames, int(turn.end_s / frame_s) + 2)
        begin_s = np.maximum(starts_s[first:last], turn.start_s)
        end_s = np.minimum(starts_s[first:last] + frame_s, turn.end_s)
        activity[first:last, column[turn.speaker]] += np.maximum(0.0, end_s - begin_s) / frame_s
    return np.minimum(activity, 1.0)


def speakers_in_order(turns: Iterable[Turn]) -> list[str]:
    """Speakers in the order in which they first speak."""
    return list(dict.fromkeys(turn.speaker for turn in sorted(turns)))


# Formats


def to_rttm(turns: Iterable[Turn], recording: str) -> str:
    """RTTM text, one SPEAKER line a turn, times with three decimals.

    Source:
        NIST, The 2009 (RT-09) Rich Transcription Meeting Recognition Evaluation Plan, appendix A.
    """
    name = "_".join(recording.split()) or "recording"
    return "".join(
        f"SPEAKER {name} 1 {turn.start_s:.3f} {turn.duration_s:.3f} <NA> <NA> {turn.speaker} <NA> <NA>\n"
        for turn in sorted(turns)
    )


def read_rttm(path: Path) -> dict[str, list[Turn]]:
    """Turns of each recording in an RTTM file; lines of other types are passed over.

    Raises:
        DataError: Naming the file and line that is not RTTM.
    """
    recordings: dict[str, list[Turn]] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"{path}: cannot be read as RTTM text ({err})") from err
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields or fields[0].startswith(";") or fields[0] != "SPEAKER":
            continue
        try:
            start_s, duration_s, speaker = float(fields[3]), float(fields[4]), fields[7]
        except (IndexError, ValueError) as err:
            raise DataError(
                f"{path}, line {number}: expected 'SPEAKER <recording> 1 <start_s> <duration_s> <NA> <NA> "
                f"<speaker> <NA> <NA>', got {line!r}"
            ) from err
        if not (np.isfinite(start_s) and np.isfinite(duration_s) and start_s >= 0.0 and duration_s > 0.0):
            raise DataError(f"{path}, line {number}: expected start >= 0 and duration > 0, got {line!r}")
        turn = Turn(round(start_s, 6), round(start_s + duration_s, 6), speaker)
        recordings.setdefault(fields[1], []).append(turn)
    return {name: sorted(turns) for name, turns in recordings.items()}


def to_json(turns: Iterable[Turn], *, model: dict[str, Any]) -> dict[str, Any]:
    """The project's JSON answer: turns in seconds and the model that made them."""
    return {
        "turns": [
            {
                "start_s": round(turn.start_s, 3),
                "end_s": round(turn.end_s, 3),
                "speaker": turn.speaker,
                "confidence": turn.confidence,
            }
            for turn in sorted(turns)
        ],
        "model": model,
    }


def to_srt(turns: Iterable[Turn]) -> str:
    """SubRip subtitles that show who speaks."""

    def stamp(time_s: float) -> str:
        total_ms = round(time_s * 1000)
        minutes, ms = divmod(total_ms, 60_000)
        hours, minutes = divmod(minutes, 60)
        return f"{hours:02d}:{minutes:02d}:{ms // 1000:02d},{ms % 1000:03d}"

    return "\n".join(
        f"{number}\n{stamp(turn.start_s)} --> {stamp(turn.end_s)}\n[{turn.speaker}]\n"
        for number, turn in enumerate(sorted(turns), start=1)
    )


def to_diarized_json(turns: Iterable[Turn], *, duration_s: float) -> dict[str, Any]:
    """OpenAI's ``diarized_json`` shape, with empty texts: we tell who, not yet what."""
    ordered = sorted(turns)
    return {
        "task": "transcribe",
        "duration": round(duration_s, 3),
        "text": "",
        "segments": [
            {
                "type": "transcript.text.segment",
                "id": f"seg_{index:03d}",
                "start": round(turn.start_s, 3),
                "end": round(turn.end_s, 3),
                "text": "",
                "speaker": turn.speaker,
            }
            for index, turn in enumerate(ordered, start=1)
        ],
    }
