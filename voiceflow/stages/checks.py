"""What `validate` measures of a dataset: one row a recording, one a turn, one a speaker."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voiceflow.audio import file_digest, read_file
from voiceflow.config import ValidateConfig
from voiceflow.errors import VoiceflowError
from voiceflow.stages.dataset import Recording, read_turns
from voiceflow.timebase import FRAME_HOP_SAMPLES
from voiceflow.turns import Turn

Row = dict[str, Any]
FloatArray = npt.NDArray[np.float32]
LOW_BAND_HZ = 70.0
END_TOLERANCE_S = 0.01
"""A turn may end this much after the audio: RTTM has three decimals."""


def measure(
    dataset: Path, recordings: Sequence[Recording], config: ValidateConfig, progress: Callable[[str, int, int], None]
) -> tuple[list[Row], list[Row], list[Row]]:
    """Rows of recordings, turns and speakers.

    An unreadable file or RTTM becomes a row that says so; nothing is raised.
    """
    recording_rows: list[Row] = []
    turn_rows: list[Row] = []
    for done, recording in enumerate(recordings, start=1):
        turns, turns_error = _turns(dataset, recording)
        recording_rows.append(_recording_row(dataset, recording, turns, config) | {"turns_error": turns_error})
        turn_rows += _turn_rows(recording, turns, recording_rows[-1]["duration_s"])
        progress("read recordings", done, len(recordings))
    seen = Counter(row["digest"] for row in recording_rows if row["digest"])
    for row in recording_rows:
        row["copies"] = seen[row["digest"]] if row["digest"] else 1
    splits: dict[str, set[str]] = defaultdict(set)
    for recording in recordings:
        if recording.split != "recorded":
            for speaker in recording.speakers:
                splits[speaker].add(recording.split)
    speaker_rows = [
        {"name": speaker, "num_splits": len(found), "splits": ", ".join(sorted(found))}
        for speaker, found in sorted(splits.items())
    ]
    return recording_rows, turn_rows, speaker_rows


def _turns(dataset: Path, recording: Recording) -> tuple[list[Turn], str]:
    try:
        return read_turns(dataset, recording), ""
    except VoiceflowError as err:
        return [], str(err)


def _recording_row(dataset: Path, recording: Recording, turns: Sequence[Turn], config: ValidateConfig) -> Row:
    row: Row = {
        "name": recording.name,
        "split": recording.split,
        "condition": recording.condition,
        "declared_rate_hz": recording.sample_rate_hz,
        "num_speakers": len({turn.speaker for turn in turns}),
        "num_turns": len(turns),
        "read_error": "",
        "digest": "",
        "digest_agrees": True,
        "rate_hz": recording.sample_rate_hz,
        "rate_agrees": True,
        "duration_s": recording.duration_s,
        "num_bad_samples": 0,
        "silence_fraction": 0.0,
        "clipped_fraction": 0.0,
        "dc_offset": 0.0,
        "low_band_share": 0.0,
        "label_contrast_db": None,
    }
    path = dataset / recording.audio
    try:
        samples_NC, rate_hz = read_file(path, name=recording.audio)
    except VoiceflowError as err:
        return row | {"read_error": str(err)}
    digest = file_digest(path)
    finite = np.isfinite(samples_NC)
    samples_N = np.where(finite, samples_NC, 0.0).mean(axis=1).astype(np.float32)
    level_db_T = _levels_db(samples_N)
    return row | {
        "digest": digest,
        "digest_agrees": digest == recording.digest,
        "rate_hz": rate_hz,
        "rate_agrees": rate_hz == recording.sample_rate_hz,
        "duration_s": len(samples_N) / rate_hz,
        "num_bad_samples": int(finite.size - finite.sum()),
        "silence_fraction": float(np.mean(level_db_T < config.silence_dbfs)) if len(level_db_T) else 1.0,
        "clipped_fraction": float(np.mean(np.abs(samples_N) >= 0.999)) if len(samples_N) else 0.0,
        "dc_offset": float(abs(samples_N.mean())) if len(samples_N) else 0.0,
        "low_band_share": _low_band_share(samples_N, rate_hz, turns),
        "label_contrast_db": _label_contrast_db(level_db_T, turns),
    }


def _levels_db(samples_N: FloatArray) -> npt.NDArray[np.float64]:
    """Level of each 10 ms frame in dB relative to full scale."""
    frames = samples_N[: len(samples_N) // FRAME_HOP_SAMPLES * FRAME_HOP_SAMPLES].reshape(-1, FRAME_HOP_SAMPLES)
    levels: npt.NDArray[np.float64] = 10.0 * np.log10(np.mean(frames.astype(np.float64) ** 2, axis=1) + 1e-12)
    return levels


def _labelled(num_frames: int, turns: Sequence[Turn]) -> npt.NDArray[np.bool_]:
    labelled = np.zeros(num_frames, np.bool_)
    for turn in turns:
        labelled[int(turn.start_s * 100) : int(np.ceil(turn.end_s * 100))] = True
    return labelled


def _label_contrast_db(level_db_T: npt.NDArray[np.float64], turns: Sequence[Turn]) -> float | None:
    """Median level inside turns less that outside, or None where one of them is under a second."""
    labelled = _labelled(len(level_db_T), turns)
    if labelled.sum() < 100 or (~labelled).sum() < 100:
        return None
    return float(np.median(level_db_T[labelled]) - np.median(level_db_T[~labelled]))


def _low_band_share(samples_N: FloatArray, rate_hz: int, turns: Sequence[Turn]) -> float:
    """Share of the energy between 20 and 1000 Hz that lies below 70 Hz, inside turns, above the background there."""
    labelled = np.repeat(_labelled(len(samples_N) // FRAME_HOP_SAMPLES, turns), FRAME_HOP_SAMPLES)
    size = 2048
    frequencies = np.fft.rfftfreq(size, 1.0 / rate_hz)
    voice, background = (_spectrum(samples_N[: len(mask)][mask], size) for mask in (labelled, ~labelled))
    if voice is None:
        return 0.0
    clean = np.maximum(voice - (background if background is not None else 0.0), 0.0)
    band = clean[(frequencies >= 20) & (frequencies < 1000)].sum()
    return float(clean[(frequencies >= 20) & (frequencies < LOW_BAND_HZ)].sum() / band) if band > 0 else 0.0


def _spectrum(samples_N: FloatArray, size: int) -> npt.NDArray[np.float64] | None:
    """Mean power spectrum, or None of less than half a second."""
    if len(samples_N) < 4 * size:
        return None
    frames = samples_N[: len(samples_N) // size * size].reshape(-1, size) * np.hanning(size)
    power: npt.NDArray[np.float64] = np.mean(np.abs(np.fft.rfft(frames, axis=1)) ** 2, axis=0)
    return power


def _turn_rows(recording: Recording, turns: Sequence[Turn], duration_s: float) -> list[Row]:
    rows = []
    last_end: dict[str, float] = {}
    for turn in sorted(turns):
        rows.append(
            {
                "name": f"{recording.name} {turn.speaker} {turn.start_s:.3f}-{turn.end_s:.3f} s",
                "duration_s": turn.duration_s,
                "past_end_s": max(0.0, turn.end_s - duration_s - END_TOLERANCE_S),
                # Transcribers of real meetings do let a speaker's words touch; it is judged for made ones.
                "overlap_with_itself_s": 0.0
                if recording.split == "recorded"
                else max(0.0, last_end.get(turn.speaker, 0.0) - turn.start_s - 1e-6),
            }
        )
        last_end[turn.speaker] = max(last_end.get(turn.speaker, 0.0), turn.end_s)
    return rows
