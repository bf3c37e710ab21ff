"""What turns tell beside the audio: units, order, whether they lie where somebody speaks, and on which channel."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from voiceflow.checks.signal import FRAMES_PER_S, FloatArray, labelled, levels_db, runs
from voiceflow.turns import Turn

LevelArray = npt.NDArray[np.float64]
UNITS = {"milliseconds": 1000.0, "samples at 8 kHz": 8000.0, "samples at 16 kHz": 16000.0, "frames of 10 ms": 100.0}
END_TOLERANCE_S = 0.01
"""A turn may end this much after the audio: RTTM has three decimals."""
MAX_LAG_S, LAG_STEP_S = 3.0, 0.05
WINDOW_S = 10.0
MIN_FIT = 0.3
"""Correlation of turns and levels below which nothing can be said of where they belong."""
EVIDENCE_S = 60.0
"""Of shorter recordings the fit of turns to levels counts for less."""
MIN_TURNS = 5
"""Fewer fit to any noise somewhere."""
MIN_CONTRAST_S, AFTER_TURN_S = 2.0, 0.2
"""Speech and its absence that are needed to compare turns with levels; what follows a turn is its echo."""
NEAR_S, MIN_NEAR_S = 2.0, 0.2
"""A pause is compared with speech so near to it, for levels change; with less of it, it is left out."""
MAX_PAUSE_WEIGHT_S = 1.0
"""A longer pause counts no more: one that a sound fills does not speak for a recording."""
ENOUGH_SHARE = 0.2
"""A window of so much speech and so much silence counts in full; one of speech alone fits anywhere."""
CHANNEL_GAIN_DB = 6.0
"""One channel fits the turns so much better than the mix of all: the turns are of it alone."""
SILENT_CHANNEL_DB = 50.0


class Lag(NamedTuple):
    """How much later the audio is than its turns."""

    at_start_s: float
    at_end_s: float
    gain: float
    """Correlation with the turns moved so, less that with the turns as they are."""

    @property
    def most_s(self) -> float:
        """The larger of both ends."""
        return max(self.at_start_s, self.at_end_s, key=abs)


def true_units(turns: Sequence[Turn], duration_s: float) -> tuple[list[Turn], str]:
    """The turns in seconds, and the unit that they were in; seconds where they fit the recording, or nothing does."""
    last_s = max((turn.end_s for turn in turns), default=0.0)
    if last_s > 20.0 * duration_s:
        for unit, per_s in sorted(UNITS.items(), key=lambda item: item[1]):
            if 0.05 * duration_s <= last_s / per_s <= 1.05 * duration_s + END_TOLERANCE_S:
                scaled = [replace(turn, start_s=turn.start_s / per_s, end_s=turn.end_s / per_s) for turn in turns]
                return scaled, unit
    return list(turns), "seconds"


def contrast_db(level_db_T: LevelArray, turns: Sequence[Turn]) -> float | None:
    """How much louder it is inside turns than outside, by what speaks most for the turns; None where there is too
    little of one of them.

    Medians over the recording, and medians over pauses, by their length up to a second, of how much louder speech
    near them is than all of the pause and than what of it lies near speech: levels change, and a sound may fill a
    pause.
    """
    speech_T = labelled(len(level_db_T), turns)
    silent_T = ~labelled(len(level_db_T), [replace(turn, end_s=turn.end_s + AFTER_TURN_S) for turn in turns])
    near = int(NEAR_S * FRAMES_PER_S)
    whole: list[tuple[float, int]] = []
    edges: list[tuple[float, int]] = []
    for start, end in runs(silent_T):
        around = slice(max(0, start - near), end + near)
        speech_db = level_db_T[around][speech_T[around]]
        pause_db = level_db_T[start:end]
        near_db = pause_db if len(pause_db) <= 2 * near else np.concatenate([pause_db[:near], pause_db[-near:]])
        if len(speech_db) >= MIN_NEAR_S * FRAMES_PER_S:
            whole.append((float(np.median(speech_db) - np.median(pause_db)), len(pause_db)))
            edges.append((float(np.median(speech_db) - np.median(near_db)), len(near_db)))
    if min(int(speech_T.sum()), sum(length for _, length in whole)) < MIN_CONTRAST_S * FRAMES_PER_S:
        return None
    overall = float(np.median(level_db_T[speech_T]) - np.median(level_db_T[silent_T]))
    return max(overall, _weighted_median(whole), _weighted_median(edges))


def _weighted_median(rows: list[tuple[float, int]]) -> float:
    """Of differences in dB and their pauses' lengths in frames."""
    ordered = sorted(rows)
    weights = np.cumsum([min(length, int(MAX_PAUSE_WEIGHT_S * FRAMES_PER_S)) for _, length in ordered])
    return ordered[int(np.searchsorted(weights, weights[-1] / 2))][0]


def wrong_channel(samples_NC: FloatArray, rate_hz: int, turns: Sequence[Turn], mix_db: float | None) -> str:
    """What is wrong with the channels of a recording, or "".

    Args:
        samples_NC: All channels, shape (N, channels).
        rate_hz: Sample rate.
        turns: In seconds.
        mix_db: `contrast_db` of the mean of all channels.
    """
    if samples_NC.shape[1] > 1:
        power_C = 10.0 * np.log10(np.mean(samples_NC.astype(np.float64) ** 2, axis=0) + 1e-12)
        silent = np.flatnonzero(power_C < power_C.max() - SILENT_CHANNEL_DB)
        if len(silent):
            return f"channel {silent[0]} is silent"
        left_N, right_N = samples_NC[:, 0].astype(np.float64), samples_NC[:, 1].astype(np.float64)
        if float(left_N @ right_N) < -0.5 * np.sqrt(float(left_N @ left_N) * float(right_N @ right_N)):
            return "channels 0 and 1 cancel each other"
        each_db = [contrast_db(levels_db(channel_N, rate_hz), turns) for channel_N in samples_NC.T]
        known_db = [-np.inf if value is None else value for value in each_db]
        best = int(np.argmax(known_db))
        others = [value for channel, value in enumerate(known_db) if channel != best]
        if mix_db is not None and known_db[best] > mix_db + CHANNEL_GAIN_DB and max(others) < CHANNEL_GAIN_DB / 2:
            gains = f"{known_db[best]:.0f} dB above its pauses, {mix_db:.0f} in the mix"
            return f"the turns are of channel {best} alone ({gains})"
    elif mix_db is not None and mix_db < -CHANNEL_GAIN_DB / 2:
        return (
            f"somebody speaks where the turns are silent, and not in them ({mix_db:.0f} dB): turns of another channel"
        )
    return ""


def label_lag(level_db_T: LevelArray, turns: Sequence[Turn]) -> Lag:
    """By how much turns run ahead of or behind their audio, at its start and at its end.

    Levels and turns are compared in windows, shifted by up to 3 s; of all straight lines of shifts over time the
    one that fits best is taken: clocks that differ, or a part that was cut off at the start.
    """
    nothing = Lag(0.0, 0.0, 0.0)
    speech_T = labelled(len(level_db_T), turns).astype(np.float64)
    least = min(speech_T.sum(), (1.0 - speech_T).sum())
    if len(turns) < MIN_TURNS or len(speech_T) < 6 * FRAMES_PER_S or least < MIN_CONTRAST_S * FRAMES_PER_S:
        return nothing
    low_db, high_db = np.quantile(level_db_T, [0.1, 0.95])
    loud_T = np.clip((level_db_T - low_db) / max(high_db - low_db, 6.0), 0.0, 1.0)
    loud_T = np.convolve(loud_T, np.ones(9) / 9.0, mode="same")
    window = min(len(speech_T), max(int(WINDOW_S * FRAMES_PER_S), len(speech_T) // 8))
    starts = np.arange(0, len(speech_T) - window + 1, max(1, window // 2))
    fits_WL = np.stack([_fits(loud_T, speech_T, int(start), window) for start in starts])
    shifts = np.arange(-int(MAX_LAG_S / LAG_STEP_S), int(MAX_LAG_S / LAG_STEP_S) + 1)
    centre_W = (starts + window / 2) / len(speech_T)
    # at(0) and at(1) are the shifts at both ends; all pairs of them are tried.
    at_SW = shifts[:, None, None] * (1.0 - centre_W) + shifts[None, :, None] * centre_W
    index = np.round(at_SW).astype(np.int64) + len(shifts) // 2
    share_W = np.array([speech_T[start : start + window].mean() for start in starts])
    weight_W = np.minimum(1.0, np.minimum(share_W, 1.0 - share_W) / ENOUGH_SHARE)
    if not weight_W.any():
        return nothing
    weight_W /= weight_W.sum()
    total_SS = fits_WL[np.arange(len(starts)), index] @ weight_W
    first, last = np.unravel_index(int(total_SS.argmax()), total_SS.shape)
    best, now = float(total_SS[first, last]), float(total_SS[len(shifts) // 2, len(shifts) // 2])
    # In a short recording the best of all shifts at the very edge of them is no best one.
    at_edge = len(shifts) - 1 in (first, last) or 0 in (first, last)
    if best < MIN_FIT or (at_edge and len(speech_T) < EVIDENCE_S * FRAMES_PER_S):
        return nothing
    gain_W = fits_WL[np.arange(len(starts)), index[first, last]] - fits_WL[:, len(shifts) // 2]
    gain = min(best - now, _gain_elsewhere(gain_W, weight_W, starts, window))
    return Lag(float(shifts[first]) * LAG_STEP_S, float(shifts[last]) * LAG_STEP_S, gain)


def _gain_elsewhere(gain_W: LevelArray, weight_W: LevelArray, starts: npt.NDArray[np.int64], window: int) -> float:
    """The least mean gain without one of W windows and those that overlap it, where half of all remain: one turn that
    begins too late moves no others. Infinity where so few windows do not tell."""
    apart_WW = np.abs(starts[:, None] - starts[None, :]) >= window
    kept = [apart_W for apart_W in apart_WW if 2 * int(apart_W.sum()) >= len(starts) and weight_W[apart_W].any()]
    return min((float(np.average(gain_W[each], weights=weight_W[each])) for each in kept), default=np.inf)


def _fits(loud_T: LevelArray, speech_T: LevelArray, start: int, window: int) -> LevelArray:
    """Correlation of the turns of one window with the levels around it, for every shift, shape (L,)."""
    turns_W = speech_T[start : start + window] - speech_T[start : start + window].mean()
    norm = np.sqrt(float(turns_W @ turns_W))
    most = int(MAX_LAG_S * FRAMES_PER_S)
    step = int(LAG_STEP_S * FRAMES_PER_S)
    padded_T = np.pad(loud_T, most, mode="edge")[start : start + window + 2 * most]
    dots_L = (
        np.correlate(padded_T, turns_W, mode="valid")[::step]
        if window < 2000
        else _correlate(padded_T, turns_W)[::step]
    )
    sums = np.concatenate([[0.0], np.cumsum(padded_T)])
    squares = np.concatenate([[0.0], np.cumsum(padded_T**2)])
    mean_L = (sums[window:] - sums[:-window])[::step] / window
    spread_L = np.sqrt(np.maximum((squares[window:] - squares[:-window])[::step] - window * mean_L**2, 1e-9))
    fits: LevelArray = dots_L / (norm * spread_L) if norm > 0 else np.zeros(len(dots_L))
    return fits


def _correlate(padded_T: LevelArray, turns_W: LevelArray) -> LevelArray:
    size = 1 << int(np.ceil(np.log2(len(padded_T))))
    product = np.fft.rfft(padded_T, size) * np.conj(np.fft.rfft(turns_W, size))
    correlated: LevelArray = np.fft.irfft(product, size)[: len(padded_T) - len(turns_W) + 1]
    return correlated


def turn_rows(recording: str, turns: Sequence[Turn], duration_s: float) -> list[dict[str, Any]]:
    """One row a turn: length, how far it lies past the end, and how long its speaker is in two turns at once."""
    rows = []
    last_end: dict[str, float] = {}
    for turn in sorted(turns):
        rows.append(
            {
                "name": f"{recording} {turn.speaker} {turn.start_s:.3f}-{turn.end_s:.3f} s",
                "recording": recording,
                "speaker": turn.speaker,
                "at_s": turn.start_s,
                "duration_s": turn.duration_s,
                "past_end_s": max(0.0, turn.end_s - duration_s - END_TOLERANCE_S),
                "overlap_with_itself_s": max(0.0, last_end.get(turn.speaker, 0.0) - turn.start_s - 1e-6),
            }
        )
        last_end[turn.speaker] = max(last_end.get(turn.speaker, 0.0), turn.end_s)
    return rows
