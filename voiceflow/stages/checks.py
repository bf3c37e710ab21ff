"""What `validate` measures of a dataset: one row a recording, one a turn, one a speaker."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voiceflow.audio import file_digest, read_file
from voiceflow.config import ValidateConfig
from voiceflow.errors import VoiceflowError
from voiceflow.stages.dataset import Recording, read_turns
from voiceflow.turns import Turn

Row = dict[str, Any]
FloatArray = npt.NDArray[np.float32]
LOW_BAND_HZ = 70.0
TYPICAL_PITCH_HZ, TYPICAL_CENTRE_HZ = 180.0, 500.0
"""Medians over clean conversations; see `voice_height`."""
MAX_FRAMES = 600
"""Frames of a recording that are looked at, evenly spread: enough, and quick."""
MIN_VOICED_SHARE = 0.4
"""Of the louder frames: with fewer voiced ones the pitch is that of the noise."""
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
    groups: dict[str, list[str]] = defaultdict(list)
    for row in recording_rows:
        groups[row["samples_digest"] or row["name"]].append(row["name"])
    for row in recording_rows:
        same = groups[row["samples_digest"] or row["name"]]
        row |= {"copies": len(same), "same_audio": ", ".join(name for name in same if name != row["name"])}
    return recording_rows, turn_rows, _speaker_rows(recordings, recording_rows)


def _speaker_rows(recordings: Sequence[Recording], recording_rows: Sequence[Row]) -> list[Row]:
    """Who is in which splits, by the manifest and by the turns, whichever knows of it."""
    splits: dict[str, set[str]] = defaultdict(set)
    for recording, row in zip(recordings, recording_rows, strict=True):
        if recording.split != "recorded":
            for speaker in {*recording.speakers, *row["turn_speakers"]}:
                splits[speaker].add(recording.split)
    return [
        {"name": speaker, "num_splits": len(found), "splits": ", ".join(sorted(found))}
        for speaker, found in sorted(splits.items())
    ]


def _turns(dataset: Path, recording: Recording) -> tuple[list[Turn], str]:
    try:
        return read_turns(dataset, recording), ""
    except VoiceflowError as err:
        return [], str(err)


def _recording_row(dataset: Path, recording: Recording, turns: Sequence[Turn], config: ValidateConfig) -> Row:
    simulated = recording.split != "recorded"
    turn_speakers = sorted({turn.speaker for turn in turns})
    row: Row = {
        "name": recording.name,
        "split": recording.split,
        "condition": recording.condition,
        "declared_rate_hz": recording.sample_rate_hz,
        "num_speakers": len(turn_speakers),
        "turn_speakers": turn_speakers,
        "speakers_agree": turn_speakers == sorted(set(recording.speakers)),
        # Labels of real recordings bridge pauses and crosstalk: there the same checks only warn.
        "num_turns": len(turns) if simulated else None,
        "num_turns_recorded": None if simulated else len(turns),
        "read_error": "",
        "digest": "",
        "samples_digest": "",
        "digest_agrees": True,
        "rate_hz": recording.sample_rate_hz,
        "rate_agrees": True,
        "duration_s": recording.duration_s,
        "num_bad_samples": 0,
        "silence_fraction": 0.0,
        "clipped_fraction": 0.0,
        "dc_offset": 0.0,
        "low_band_share": 0.0,
        "voice_height": None,
        "label_contrast_db": None,
        "recorded_contrast_db": None,
    }
    path = dataset / recording.audio
    try:
        samples_NC, rate_hz = read_file(path, name=recording.audio)
    except VoiceflowError as err:
        return row | {"read_error": str(err)}
    digest = file_digest(path)
    hop = max(1, rate_hz // 100)
    finite = np.isfinite(samples_NC)
    samples_N = np.where(finite, samples_NC, 0.0).mean(axis=1).astype(np.float32)
    level_db_T = _levels_db(samples_N, hop)
    contrast_db = _label_contrast_db(level_db_T, turns)
    return row | {
        "digest": digest,
        "samples_digest": hashlib.sha256(np.round(samples_N * 32768.0).astype(np.int32).tobytes()).hexdigest(),
        "digest_agrees": digest == recording.digest,
        "rate_hz": rate_hz,
        "rate_agrees": rate_hz == recording.sample_rate_hz,
        "duration_s": len(samples_N) / rate_hz,
        "num_bad_samples": int(finite.size - finite.sum()),
        "silence_fraction": float(np.mean(level_db_T < config.silence_dbfs)) if len(level_db_T) else 1.0,
        "clipped_fraction": _clipped_fraction(samples_NC),
        "dc_offset": float(abs(samples_N.mean())) if len(samples_N) else 0.0,
        "low_band_share": _low_band_share(samples_N, rate_hz, turns),
        "voice_height": voice_height(samples_N, rate_hz),
        "label_contrast_db": contrast_db if simulated else None,
        "recorded_contrast_db": None if simulated else contrast_db,
    }


def _levels_db(samples_N: FloatArray, hop: int) -> npt.NDArray[np.float64]:
    """Level of each 10 ms frame, less its mean, in dB relative to full scale."""
    frames = samples_N[: len(samples_N) // hop * hop].reshape(-1, hop)
    levels: npt.NDArray[np.float64] = 10.0 * np.log10(np.var(frames, axis=1, dtype=np.float64) + 1e-12)
    return levels


def _clipped_fraction(samples_NC: FloatArray) -> float:
    """Share of samples at full scale, in the worst channel."""
    return float(np.mean(np.abs(samples_NC) >= 0.999, axis=0).max())


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
    labelled = np.repeat(_labelled(len(samples_N) // (hop := max(1, rate_hz // 100)), turns), hop)
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


def voice_height(samples_N: FloatArray, rate_hz: int) -> float | None:
    """Pitch times centre of the speech band, relative to what is typical at the labelled rate.

    Voices at the labelled rate lie between 0.3 and 3; 44.1 kHz audio labelled 16 kHz lies near 0.2, for
    both factors sink with the rate. The product is independent of level and of the channel's response.

    Args:
        samples_N: Mono audio.
        rate_hz: Labelled rate.

    Returns:
        The figure, or None where the audio is short or too little of it is voiced to tell.
    """
    size = 2048
    frames = np.lib.stride_tricks.sliding_window_view(samples_N, size) if len(samples_N) >= 2 * rate_hz else None
    if frames is None or not samples_N.any():
        return None
    frames = frames[:: max(rate_hz // 40, len(frames) // MAX_FRAMES)]
    frames = (frames - frames.mean(axis=1, keepdims=True)) * np.hanning(size).astype(np.float32)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    pitch_hz = _pitch_hz(frames[power.sum(axis=1) >= np.median(power.sum(axis=1))], rate_hz)
    if pitch_hz is None:
        return None
    # The centre of the dynamic range (90th less 10th percentile over time) of third-octave bands.
    frequencies = np.fft.rfftfreq(size, 1.0 / rate_hz)
    edges = np.searchsorted(frequencies, np.geomspace(60.0, 0.47 * rate_hz, 25))
    bands_db = 10.0 * np.log10(np.add.reduceat(power, edges, axis=1)[:, :-1] / np.diff(edges) + 1e-12)
    range_db = np.subtract(*np.quantile(bands_db, [0.9, 0.1], axis=0))
    centre_hz = np.exp(np.average(np.log(frequencies[edges[:-1]] * frequencies[edges[1:]]) / 2, weights=range_db))
    return float(pitch_hz / TYPICAL_PITCH_HZ * centre_hz / TYPICAL_CENTRE_HZ)


def _pitch_hz(frames: FloatArray, rate_hz: int) -> float | None:
    """Median pitch of windowed frames (first high peak of the autocorrelation), or None if few are voiced."""
    size = frames.shape[1]

    def autocorrelation(signal: FloatArray) -> npt.NDArray[np.float64]:
        result: npt.NDArray[np.float64] = np.fft.irfft(np.abs(np.fft.rfft(signal, 2 * size)) ** 2)[..., :size]
        return result

    window = autocorrelation(np.hanning(size).astype(np.float32))
    shortest, longest = int(rate_hz / 400), min(int(rate_hz / 25), size // 2)
    whole = autocorrelation(frames)
    lags = whole[:, shortest:longest] / (whole[:, :1] * window[shortest:longest] / window[0] + 1e-12)
    best = lags.max(axis=1, keepdims=True)
    inner = lags[:, 1:-1]
    peaks = (inner >= lags[:, :-2]) & (inner > lags[:, 2:]) & (inner >= 0.85 * best) & (best >= 0.5)
    voiced = peaks.any(axis=1)
    if voiced.mean() < MIN_VOICED_SHARE:
        return None
    return float(np.median(rate_hz / (shortest + 1 + peaks[voiced].argmax(axis=1))))


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
