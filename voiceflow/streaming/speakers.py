"""From activities to turns while they happen: open segments, revised as they grow, final when they end."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    """Whether its times are settled; its speaker may still turn out to be another one, told by a `Revision`."""
    overlap: bool


@dataclass(frozen=True)
class Revision:
    """A speaker turned out to be another one: all his segments, told again under the other's label."""

    merged: str
    into: str
    segments: tuple[Segment, ...]


Event = Segment | Revision


@dataclass
class _Slot:
    """One slot of the model: its speaker, and his open span if he has one."""

    label: str | None = None
    """Given when the slot is first told of."""
    enrolled: bool = False
    spoken_steps: int = 0
    """Length of all spans that ended."""
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

    def close(self) -> None:
        """Forget the span, keep the speaker."""
        self.speaking, self.start, self.id, self.rev, self.told_end, self.overlap = False, -1, None, 0, 0, False


class TurnTracker:
    """Decides for each slot when it speaks, exactly as `scores_to_turns` does offline, and what it is called.

    Args:
        decision: Thresholds.
        num_slots: Slots of the model.
        enrolled: Labels of the first slots, whose voices are known.
    """

    def __init__(self, decision: DecisionConfig, num_slots: int, enrolled: Sequence[str] = ()) -> None:
        self.decision = decision
        self.grid = FrameGrid()
        self.num_steps = 0
        """Steps decided so far."""
        self._slots = [_Slot() for _ in range(num_slots)]
        for slot, label in zip(self._slots, enrolled, strict=False):
            slot.label, slot.enrolled = label, True
        self._min_off = round(decision.min_off_s / self.grid.frame_s, 6)
        self._count = 0
        self._num_named = 0
        self.final: list[Segment] = []
        """Segments that ended, under the labels their speakers have now."""
        self.as_told: list[Turn] = []
        """The same turns under the labels they were first told with."""

    def push(self, activity_S: FloatArray) -> list[Event]:
        """Take the activities of the next step, shape (slots,), and return what changed."""
        step = self.num_steps
        changed: list[Event] = []
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
        for slot in self._slots:
            if slot.start < 0:
                continue
            slot.overlap = slot.overlap or (slot.speaking and len(talking) > 1)
            # A gap is over when it can no longer be filled.
            if not slot.speaking and self.num_steps - slot.last_end >= self._min_off:
                changed += self._end(slot)
            elif self._long_enough(slot) and (slot.id is None or slot.last_end - slot.told_end >= UPDATE_STEPS):
                changed.append(self._tell(slot, final=False))
        return changed

    def end(self) -> list[Event]:
        """End every open span with its last active step: the stream, or this part of it, is over."""
        return [segment for slot in self._slots if slot.start >= 0 for segment in self._end(slot)]

    # speakers

    @property
    def num_speakers(self) -> int:
        """Different speakers in final turns."""
        return len({segment.turn.speaker for segment in self.final})

    def visitors(self, *, silent_s: float) -> list[int]:
        """Slots heard for less than `min_speaker_s` in all, and not at all for `silent_s`."""
        silent_steps = silent_s / self.grid.frame_s
        return [
            index
            for index, slot in enumerate(self._slots)
            if slot.label is not None
            and not slot.enrolled
            and slot.start < 0
            and slot.spoken_steps * self.grid.frame_s < self.decision.min_speaker_s
            and self.num_steps - slot.last_end >= silent_steps
        ]

    def established(self) -> list[int]:
        """Slots that are surely somebody: heard for `min_speaker_s`, or enrolled."""
        return [
            index
            for index, slot in enumerate(self._slots)
            if slot.label is not None
            and (slot.enrolled or slot.spoken_steps * self.grid.frame_s >= self.decision.min_speaker_s)
        ]

    def nearest(self, slot: int, others: Sequence[int]) -> int:
        """The one of `others` who spoke nearest in time to the last turn of a slot's speaker."""
        label_of = {self._slots[other].label: other for other in others}
        last = next(s.turn for s in reversed(self.final) if s.turn.speaker == self._slots[slot].label)
        candidates = [s.turn for s in self.final if s.turn.speaker in label_of]
        turn = min(
            candidates,
            key=lambda turn: max(turn.start_s - last.end_s, last.start_s - turn.end_s),
            default=None,
        )
        return others[0] if turn is None else label_of[turn.speaker]

    def is_enrolled(self, slot: int) -> bool:
        """Whether the slot's voice was known before the stream began."""
        return self._slots[slot].enrolled

    def is_open(self, slot: int) -> bool:
        """Whether the slot has an open span."""
        return self._slots[slot].start >= 0

    def merge(self, slot: int, into: int) -> Revision:
        """The speaker of one slot is that of another: relabel his turns; slots behind his move up."""
        gone, stays = self._slots[slot], self._slots[into]
        assert gone.label is not None
        assert stays.label is not None
        assert slot != into
        assert gone.start < 0
        revised = []
        for index, segment in enumerate(self.final):
            if segment.turn.speaker == gone.label:
                turn = replace(segment.turn, speaker=stays.label)
                self.final[index] = replace(segment, rev=segment.rev + 1, turn=turn)
                revised.append(self.final[index])
        stays.spoken_steps += gone.spoken_steps
        del self._slots[slot]
        self._slots.append(_Slot())
        return Revision(gone.label, stays.label, tuple(revised))

    @property
    def stable_s(self) -> float:
        """Start of the earliest open span, or of the first undecided step."""
        return self.grid.start_s(min([self.num_steps, *(slot.start for slot in self._slots if slot.start >= 0)]))

    def _long_enough(self, slot: _Slot) -> bool:
        return (slot.last_end - slot.start) * self.grid.frame_s + 1e-9 >= self.decision.min_on_s

    def _end(self, slot: _Slot) -> list[Event]:
        events: list[Event] = []
        if self._long_enough(slot):
            segment = self._tell(slot, final=True)
            slot.spoken_steps += slot.last_end - slot.start
            self.final.append(segment)
            self.as_told.append(segment.turn)
            events.append(segment)
        slot.close()
        return events

    def _tell(self, slot: _Slot, *, final: bool) -> Segment:
        if slot.label is None:
            slot.label = f"speaker_{self._num_named}"
            self._num_named += 1
        if slot.id is None:
            self._count += 1
            slot.id = f"seg_{self._count}"
        else:
            slot.rev += 1
        slot.told_end = slot.last_end
        confidence = round(slot.score_sum / (slot.last_end - slot.start), 4)
        turn = Turn(self.grid.start_s(slot.start), self.grid.start_s(slot.last_end), slot.label, confidence)
        return Segment(slot.id, slot.rev, turn, final, slot.overlap)
