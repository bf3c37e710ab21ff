"""From activities to turns while they happen: open segments, revised as they grow, final when they end."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from voiceflow.config import DecisionConfig
from voiceflow.timebase import FrameGrid
from voiceflow.turns import Turn

FloatArray = npt.NDArray[np.float32]

UPDATE_STEPS = 12
"""An open segment is told again after about so many steps (0.96 s)."""


@dataclass(frozen=True)
class Segment:
    """One speaker's span as told to the client; the same id with a higher rev replaces it."""

    id: str
    rev: int
    turn: Turn
    final: bool
    overlap: bool


@dataclass
class _Slot:
    """One speaker's open span."""

    speaking: bool = False
    start: int = -1
    last_end: int = 0
    """First step after the last active one."""
    score_sum: float = 0.0
    pending_sum: float = 0.0
    """Scores since `last_end`, counted in if the gap is filled."""
    id: str | None = None
    rev: int = 0
    told_end: int = 0
    overlap: bool = False


class TurnTracker:
    """Decides for each slot when it speaks, exactly as `scores_to_turns` does offline.

    Args:
        decision: Thresholds.
        num_slots: Slots of the model.
    """

    def __init__(self, decision: DecisionConfig, num_slots: int) -> None:
        self.decision = decision
        self.grid = FrameGrid()
        self.num_steps = 0
        """Steps decided so far."""
        self._slots = [_Slot() for _ in range(num_slots)]
        self._min_off = round(decision.min_off_s / self.grid.frame_s, 6)
        self._count = 0
        self.final_turns: list[Turn] = []

    def push(self, activity_S: FloatArray) -> list[Segment]:
        """Take the activities of the next step, shape (slots,), and return what changed."""
        step, changed = self.num_steps, []
        self.num_steps += 1
        # Compared as float32, as `hysteresis` does: 0.6 in float32 is not above 0.6.
        begins_S, lasts_S = activity_S > self.decision.onset, activity_S >= self.decision.offset
        for index, slot in enumerate(self._slots):
            score = float(activity_S[index])
            slot.speaking = bool(begins_S[index] or (slot.speaking and lasts_S[index]))
            if slot.speaking:
                if slot.start < 0:
                    slot.start, slot.score_sum, slot.pending_sum = step, 0.0, 0.0
                slot.score_sum += slot.pending_sum + score
                slot.pending_sum, slot.last_end = 0.0, step + 1
            elif slot.start >= 0:
                slot.pending_sum += score
        talking = [slot for slot in self._slots if slot.speaking]
        for index, slot in enumerate(self._slots):
            if slot.start < 0:
                continue
            slot.overlap = slot.overlap or (slot.speaking and len(talking) > 1)
            # A gap is over when it can no longer be filled.
            if not slot.speaking and self.num_steps - slot.last_end >= self._min_off:
                changed += self._end(index, slot)
            elif self._long_enough(slot) and (slot.id is None or slot.last_end - slot.told_end >= UPDATE_STEPS):
                changed.append(self._tell(index, slot, final=False))
        return changed

    def end(self) -> list[Segment]:
        """End every open span with its last active step: the stream, or this part of it, is over."""
        return [
            segment for index, slot in enumerate(self._slots) if slot.start >= 0 for segment in self._end(index, slot)
        ]

    @property
    def num_speakers(self) -> int:
        """Different speakers in final turns."""
        return len({turn.speaker for turn in self.final_turns})

    @property
    def stable_s(self) -> float:
        """Start of the earliest open span, or of the first undecided step."""
        return self.grid.start_s(min([self.num_steps, *(slot.start for slot in self._slots if slot.start >= 0)]))

    def _long_enough(self, slot: _Slot) -> bool:
        return (slot.last_end - slot.start) * self.grid.frame_s + 1e-9 >= self.decision.min_on_s

    def _end(self, index: int, slot: _Slot) -> list[Segment]:
        segments = []
        if self._long_enough(slot):
            segment = self._tell(index, slot, final=True)
            self.final_turns.append(segment.turn)
            segments.append(segment)
        self._slots[index] = _Slot(speaking=False)
        return segments

    def _tell(self, index: int, slot: _Slot, *, final: bool) -> Segment:
        if slot.id is None:
            self._count += 1
            slot.id = f"seg_{self._count}"
        else:
            slot.rev += 1
        slot.told_end = slot.last_end
        confidence = round(slot.score_sum / (slot.last_end - slot.start), 4)
        turn = Turn(self.grid.start_s(slot.start), self.grid.start_s(slot.last_end), f"speaker_{index}", confidence)
        return Segment(slot.id, slot.rev, turn, final, slot.overlap)
