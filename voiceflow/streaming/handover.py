"""A stream goes on with another model: its recent audio is heard again, its speakers and open segments carried over.

States of different models mean nothing to each other, so the new model begins from silence some seconds back. What
it says of those seconds is not told; it shows which of its slots is which speaker. From the first step that the old
model had not decided on, the new one decides.

Shapes: S slots, T steps heard twice.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from voiceflow.streaming.events import Event, ModelChanged, Segment, Tracked
from voiceflow.streaming.session import StreamSettings
from voiceflow.timebase import FrameGrid
from voiceflow.turns import Turn

MIN_TOGETHER_STEPS = 4
"""Speech in common (0.32 s) by which a slot is known to be a speaker."""
GRID = FrameGrid()


@dataclass
class Carried:
    """What a stream brings along to another model."""

    settings: StreamSettings
    tracked: Tracked
    recent: list[bytes]
    """The last steps that were heard, to be heard again."""
    audio: bytes
    """Not yet heard."""
    num_samples: int
    """Received so far."""
    partial: bytes
    """First bytes of a sample, of audio that is resampled."""
    resampler: dict[str, Any]
    is_closing: bool
    keeps_labels: bool
    is_flush_wanted: bool
    opened_s: float
    """By the clock of `Lanes.open`."""
    events: list[Event] = field(default_factory=list)
    """Not yet told."""


@dataclass(frozen=True)
class Handover:
    """What the old model leaves to the new one.

    Args:
        before: Its speakers and turns.
        first_step: Where the audio that is heard again begins.
        heard_steps: Where the audio that it had heard ends.
        max_speakers: The client's; speakers who are not heard again keep their labels free where there is one.
    """

    before: Tracked
    first_step: int
    heard_steps: int
    max_speakers: int | None = None

    def is_due(self, num_steps: int, scored: int) -> bool:
        """Whether the new model, with so many steps decided and scored, has come to where the old one was."""
        return num_steps >= self.before.num_steps or scored >= self.heard_steps

    def finish(self, now: Tracked) -> tuple[Tracked, list[Event]]:
        """What is known from here on, and what there is to tell.

        Args:
            now: What the new model knows, from the audio that it heard again alone.
        """
        before = self.before
        at_step = max(before.num_steps, now.num_steps)
        came_from = self._matched(now, at_step)
        kept = [before.labels[old] for old in came_from.values()]
        left = [label for label in [*before.labels, *before.spare] if label is not None and label not in kept]
        after = now.copy(num_steps=at_step)
        # 1. Slots whose speaker is known have his label; others are named when they speak, as new ones are.
        num_slots = len(now.labels)
        after.labels = [before.labels[came_from[slot]] if slot in came_from else None for slot in range(num_slots)]
        after.ids, after.revs = [""] * num_slots, [0] * num_slots
        columns, old_columns = after.columns, before.columns
        columns["labelled"][:] = [label is not None for label in after.labels]
        columns["enrolled"][:] = [
            slot in came_from and old_columns["enrolled"][came_from[slot]] for slot in range(num_slots)
        ]
        for slot, old in came_from.items():
            columns["spoken_steps"][slot] = max(columns["spoken_steps"][slot], old_columns["spoken_steps"][old])
        # 2. Open segments of speakers who still speak go on; of the others', the rest is the new model's.
        going_on = {
            old: slot
            for slot, old in came_from.items()
            if old_columns["start"][old] >= 0 and columns["start"][slot] >= 0
        }
        for slot in np.flatnonzero(columns["start"] >= 0).tolist():
            old = came_from.get(slot, -1)
            continues = old in going_on
            _restart(columns, slot, int(old_columns["start"][old]) if continues else at_step)
            if continues:
                after.ids[slot], after.revs[slot] = before.ids[old], before.revs[old]
                for name in ("told", "told_end"):
                    columns[name][slot] = old_columns[name][old]
                columns["overlap"][slot] |= old_columns["overlap"][old]
        # 3. What was told before stays, and what nobody goes on with ends.
        after.take_turns(before)
        after.spare = left if self.max_speakers is not None else []
        events: list[Event] = []
        for old in np.flatnonzero(old_columns["told"]).tolist():
            if old not in going_on:
                events.append(after.add_final(_ended(before, old)))
        events.append(ModelChanged(GRID.start_s(at_step), tuple(label for label in after.labels if label is not None)))
        return after, events

    def _matched(self, now: Tracked, at_step: int) -> dict[int, int]:
        """The old slot of each new one whose speaker is known, by how long both spoke at once."""
        old_ST, new_ST = (self._spoken(tracked, at_step) for tracked in (self.before, now))
        together_SS = new_ST.astype(np.int64) @ old_ST.T.astype(np.int64)
        matched: dict[int, int] = {}
        for flat in np.argsort(-together_SS, axis=None, kind="stable").tolist():
            slot, old = divmod(flat, together_SS.shape[1])
            if together_SS[slot, old] < MIN_TOGETHER_STEPS:
                break
            if slot not in matched and old not in matched.values() and self.before.labels[old] is not None:
                matched[slot] = old
        return matched

    def _spoken(self, tracked: Tracked, at_step: int) -> npt.NDArray[np.bool_]:
        """When each slot spoke in the audio heard twice, (S, T)."""
        spoken_ST = np.zeros((len(tracked.labels), max(0, at_step - self.first_step)), np.bool_)
        slot_of = {label: slot for slot, label in enumerate(tracked.labels) if label is not None}
        spans = [
            (
                slot_of[segment.turn.speaker],
                round(segment.turn.start_s / GRID.frame_s),
                round(segment.turn.end_s / GRID.frame_s),
            )
            for segment in tracked.final
            if segment.turn.speaker in slot_of
        ]
        columns = tracked.columns
        for slot in np.flatnonzero(columns["start"] >= 0).tolist():
            spans.append((slot, int(columns["start"][slot]), int(columns["last_end"][slot])))
        for slot, start, end in spans:
            spoken_ST[slot, max(0, start - self.first_step) : max(0, end - self.first_step)] = True
        return spoken_ST


def _restart(columns: dict[str, npt.NDArray[Any]], slot: int, start: int) -> None:
    """Let a slot's open span begin elsewhere, as surely as it spoke; one that would be empty is none."""
    before, end = int(columns["start"][slot]), int(columns["last_end"][slot])
    columns["told"][slot], columns["told_end"][slot] = False, 0
    if end <= start:
        columns["start"][slot] = -1
        columns["speaking"][slot] = False
        return
    columns["score_sum"][slot] *= (end - start) / max(1, end - before)
    columns["start"][slot] = start


def _ended(before: Tracked, slot: int) -> Segment:
    """A segment that was told while it grew, to its last active step."""
    columns, label = before.columns, before.labels[slot]
    assert label is not None
    start, end = int(columns["start"][slot]), int(columns["last_end"][slot])
    confidence = round(float(columns["score_sum"][slot]) / max(1, end - start), 4)
    turn = Turn(GRID.start_s(start), GRID.start_s(end), label, confidence)
    return Segment(before.ids[slot], before.revs[slot] + 1, turn, True, bool(columns["overlap"][slot]))
