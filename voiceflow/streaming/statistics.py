"""What a live stream sounds like, in a handful of numbers: sums and counts while it runs, never audio.

Shapes: C rows of lanes, W watched ones, B lanes with a step, T frames of a step, M mel bins, S slots.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from voiceflow.features import MEL_CENTRES_HZ, NUM_MEL_BINS
from voiceflow.timebase import STEP_FRAMES, STEP_S
from voiceflow.turns import Turn

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

LOWEST_DB, NUM_LEVELS = -100, 130
"""Histogram of frame levels, a bin a dB."""
MOST_FALL_DB = 40
FALL_FRAMES = 3
"""A level is compared with that 30 ms before: how fast sound dies away is what a room does."""
FAST, SLOW, RISE_DB = 0.3, 0.03, 1.5
"""Two running means of the level, 30 and 300 ms; where the fast one rises above the slow one, a syllable begins."""
ROLLOFF = 0.995
LOW_HZ, MIDDLE_HZ = 300.0, 1500.0
MIN_CONFIDENCE = 1e-4


@dataclass(frozen=True)
class StreamStatistics:
    """One stream, or a stretch of a long one."""

    audio_s: float
    level_db: float
    """Level of its louder frames (90th percentile), in dB on a scale of its own."""
    snr_db: float
    """Louder frames less quiet ones (95th less 10th percentile)."""
    bandwidth_hz: float
    """Frequency below which nearly all of its energy lies."""
    tilt_db: float
    """Energy above 1.5 kHz relative to that from 300 Hz to 1.5 kHz."""
    decay_db: float
    """How far the level falls within 30 ms where it falls fast (10th percentile): less in reverberant rooms."""
    onsets_per_s: float
    """Syllables, about, a second of speech."""
    speech_share: float
    overlap_share: float
    """Of the speech, that of several at once."""
    num_speakers: float
    turn_s: float
    """Mean length of its turns."""
    turns_per_minute: float
    confidence: float
    """Mean activity of who speaks most clearly, while somebody speaks."""
    entropy: float
    """How undecided the model is: mean binary entropy of its activities, in bits, summed over slots."""
    flips_per_minute: float
    """Turns whose speaker turned out to be another one."""

    def as_dict(self) -> dict[str, float]:
        """Plain values, rounded: nobody is recognised by the seventh digit."""
        return {name: round(float(value), 4) for name, value in asdict(self).items()}


NAMES = tuple(name for name in StreamStatistics.__dataclass_fields__ if name != "audio_s")
"""What is compared between streams."""


class StreamWatch:
    """Counts for the streams that are watched, among rows of `Lanes`."""

    def __init__(self, capacity: int) -> None:
        self._slot_C = np.full(capacity, -1, np.int64)
        self._free: list[int] = []
        self._columns: dict[str, npt.NDArray[Any]] = {
            "levels": np.zeros((0, NUM_LEVELS), np.int64),
            "falls": np.zeros((0, 2 * MOST_FALL_DB + 1), np.int64),
            "power": np.zeros((0, NUM_MEL_BINS)),
            "tail": np.zeros((0, FALL_FRAMES)),
            "fast": np.zeros(0),
            "slow": np.zeros(0),
            "above": np.zeros(0, np.bool_),
            "onsets": np.zeros(0, np.int64),
            "frames": np.zeros(0, np.int64),
            "steps": np.zeros(0, np.int64),
            "speech": np.zeros(0, np.int64),
            "overlap": np.zeros(0, np.int64),
            "confidence": np.zeros(0),
            "entropy": np.zeros(0),
        }
        self.num_watched = 0

    def grow(self, capacity: int) -> None:
        """Make room for so many rows in all."""
        self._slot_C = np.concatenate([self._slot_C, np.full(capacity - len(self._slot_C), -1, np.int64)])

    def begin(self, row: int) -> None:
        """Watch a row from now on."""
        assert self._slot_C[row] < 0
        if not self._free:
            used = len(self._columns["frames"])
            for name, column in self._columns.items():
                self._columns[name] = np.concatenate([column, np.zeros((16, *column.shape[1:]), column.dtype)])
            self._free = list(range(used + 15, used - 1, -1))
        self._slot_C[row] = self._free.pop()
        self.num_watched += 1
        self.reset(row)

    def reset(self, row: int) -> None:
        """Begin to count anew."""
        for column in self._columns.values():
            column[self._slot_C[row]] = 0

    def end(self, row: int) -> None:
        """Watch a row no more; nothing where it was not watched."""
        if self._slot_C[row] >= 0:
            self._free.append(int(self._slot_C[row]))
            self._slot_C[row] = -1
            self.num_watched -= 1

    def is_watched(self, row: int) -> bool:
        """Whether a row is watched."""
        return bool(self._slot_C[row] >= 0)

    def hear(self, rows_B: IntArray, features_BF: FloatArray) -> None:
        """Count in one step of features of some lanes, shape (B, 640)."""
        slots_B = self._slot_C[rows_B]
        watched_B = slots_B >= 0
        if not watched_B.any():
            return
        slots_W = slots_B[watched_B]
        power_WTM = np.exp(features_BF[watched_B].reshape(-1, STEP_FRAMES, NUM_MEL_BINS))
        self._columns["power"][slots_W] += power_WTM.sum(axis=1)
        level_WT = 10.0 * np.log10(power_WTM.sum(axis=2, dtype=np.float64) + 1e-10)
        bins_WT = np.clip(level_WT - LOWEST_DB, 0, NUM_LEVELS - 1).astype(np.int64)
        np.add.at(self._columns["levels"], (slots_W[:, None], bins_WT), 1)
        begun_W = self._columns["frames"][slots_W] > 0
        before_WT = np.where(begun_W[:, None], self._columns["tail"][slots_W], level_WT[:, :1])
        joined_WT = np.concatenate([before_WT, level_WT], axis=1)
        fall_WT = np.clip(joined_WT[:, FALL_FRAMES:] - joined_WT[:, :-FALL_FRAMES], -MOST_FALL_DB, MOST_FALL_DB)
        np.add.at(self._columns["falls"], (slots_W[:, None], np.round(fall_WT).astype(np.int64) + MOST_FALL_DB), 1)
        fast_W, slow_W = (np.where(begun_W, self._columns[name][slots_W], level_WT[:, 0]) for name in ("fast", "slow"))
        above_W = self._columns["above"][slots_W]
        for level_W in level_WT.T:
            fast_W = fast_W + FAST * (level_W - fast_W)
            slow_W = slow_W + SLOW * (level_W - slow_W)
            is_above_W = fast_W > slow_W + RISE_DB
            self._columns["onsets"][slots_W] += is_above_W & ~above_W
            above_W = is_above_W
        self._columns["fast"][slots_W], self._columns["slow"][slots_W] = fast_W, slow_W
        self._columns["above"][slots_W] = above_W
        self._columns["tail"][slots_W] = joined_WT[:, -FALL_FRAMES:]
        self._columns["frames"][slots_W] += STEP_FRAMES

    def answer(self, rows_B: IntArray, activity_BS: FloatArray, *, onset: float) -> None:
        """Count in one step of activities of some lanes, shape (B, S)."""
        slots_B = self._slot_C[rows_B]
        watched_B = slots_B >= 0
        if not watched_B.any():
            return
        slots_W, activity_WS = slots_B[watched_B], activity_BS[watched_B].astype(np.float64)
        num_active_W = (activity_WS > onset).sum(axis=1)
        clipped_WS = np.clip(activity_WS, MIN_CONFIDENCE, 1.0 - MIN_CONFIDENCE)
        entropy_WS = -clipped_WS * np.log2(clipped_WS) - (1.0 - clipped_WS) * np.log2(1.0 - clipped_WS)
        self._columns["steps"][slots_W] += 1
        self._columns["speech"][slots_W] += num_active_W > 0
        self._columns["overlap"][slots_W] += num_active_W > 1
        self._columns["confidence"][slots_W] += np.where(num_active_W > 0, activity_WS.max(axis=1), 0.0)
        self._columns["entropy"][slots_W] += entropy_WS.sum(axis=1)

    def read(self, row: int, turns: Sequence[Turn], *, num_flips: int) -> StreamStatistics:
        """What was counted of a row since it began or was reset.

        Args:
            row: A watched one.
            turns: Its turns since then.
            num_flips: Those of them that are another speaker's now than when they were told.
        """
        slot = int(self._slot_C[row])
        assert slot >= 0
        column = {name: values[slot] for name, values in self._columns.items()}
        audio_s = float(column["frames"]) / STEP_FRAMES * STEP_S
        minutes = max(audio_s, STEP_S) / 60.0
        speech_steps = max(1, int(column["speech"]))
        share_M = np.cumsum(column["power"]) / max(float(column["power"].sum()), 1e-30)
        low = (MEL_CENTRES_HZ >= LOW_HZ) & (MEL_CENTRES_HZ < MIDDLE_HZ)
        tilt = float(column["power"][MEL_CENTRES_HZ >= MIDDLE_HZ].sum()) / max(float(column["power"][low].sum()), 1e-30)
        return StreamStatistics(
            audio_s=audio_s,
            level_db=_quantile(column["levels"], 0.9) + LOWEST_DB,
            snr_db=_quantile(column["levels"], 0.95) - _quantile(column["levels"], 0.1),
            bandwidth_hz=float(MEL_CENTRES_HZ[min(int(np.searchsorted(share_M, ROLLOFF)), NUM_MEL_BINS - 1)]),
            tilt_db=10.0 * float(np.log10(tilt + 1e-10)),
            decay_db=_quantile(column["falls"], 0.1) - MOST_FALL_DB,
            onsets_per_s=float(column["onsets"]) / (speech_steps * STEP_S),
            speech_share=float(column["speech"]) / max(1, int(column["steps"])),
            overlap_share=float(column["overlap"]) / speech_steps,
            num_speakers=float(len({turn.speaker for turn in turns})),
            turn_s=float(np.mean([turn.duration_s for turn in turns])) if turns else 0.0,
            turns_per_minute=len(turns) / minutes,
            confidence=float(column["confidence"]) / speech_steps,
            entropy=float(column["entropy"]) / max(1, int(column["steps"])),
            flips_per_minute=num_flips / minutes,
        )


def _quantile(histogram: IntArray, share: float) -> float:
    """A quantile of counted bins, between bins in proportion."""
    total = int(histogram.sum())
    if not total:
        return 0.0
    cumulative = np.cumsum(histogram)
    index = int(np.searchsorted(cumulative, share * total))
    before = float(cumulative[index - 1]) if index else 0.0
    return index + (share * total - before) / max(1.0, float(histogram[index]))
