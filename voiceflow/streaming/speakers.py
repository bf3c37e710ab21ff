"""From activities to turns while they happen: open segments, revised as they grow, final when they end.

Shapes: C streams there is room for, B streams with a new step, S slots.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from voiceflow.config import DecisionConfig
from voiceflow.streaming.events import Event, Revision, Segment, Tracked
from voiceflow.timebase import FrameGrid
from voiceflow.turns import Turn

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

UPDATE_STEPS = 12
"""An open segment is told again after about so many steps (0.96 s)."""


_COLUMNS: dict[str, tuple[type, int]] = {
    "labelled": (np.bool_, 0),  # it has a speaker
    "enrolled": (np.bool_, 0),
    "spoken_steps": (np.int64, 0),  # length of all its spans that ended
    "speaking": (np.bool_, 0),
    "start": (np.int64, -1),  # of the open span, or -1
    "last_end": (np.int64, 0),  # first step after the last active one
    "score_sum": (np.float64, 0),
    "pending_sum": (np.float64, 0),  # scores since last_end, counted in if the gap is filled
    "told": (np.bool_, 0),  # whether the open span was told of
    "told_end": (np.int64, 0),
    "overlap": (np.bool_, 0),
}
"""What is known of a slot, its type and its value in a stream that has not begun."""
_OF_SPANS = ("speaking", "start", "told", "told_end", "overlap")
"""What is forgotten when a span ends."""


class TurnTable:
    """Decides for the slots of many streams when they speak, exactly as `scores_to_turns` does offline.

    Each stream is a row; its labels and turns are kept by a `TurnTracker`.

    Args:
        decision: Thresholds.
        num_slots: Slots of the model.
        capacity: Rows to begin with.
    """

    def __init__(self, decision: DecisionConfig, num_slots: int, capacity: int = 1) -> None:
        self.decision = decision
        self.num_slots = num_slots
        self.grid = FrameGrid()
        self.num_steps_C = np.zeros(0, np.int64)
        """Steps decided so far."""
        self.columns: dict[str, npt.NDArray[Any]] = {
            name: np.zeros((0, num_slots), dtype) for name, (dtype, _) in _COLUMNS.items()
        }
        """Arrays (C, S) by name."""
        self.grow(capacity)

    def grow(self, capacity: int) -> None:
        """Make room for so many rows in all; those there keep what they hold."""
        extra = capacity - len(self.num_steps_C)
        self.num_steps_C = np.concatenate([self.num_steps_C, np.zeros(extra, np.int64)])
        for name, (dtype, empty) in _COLUMNS.items():
            rows: npt.NDArray[Any] = np.full((extra, self.num_slots), empty, dtype)
            self.columns[name] = np.concatenate([self.columns[name], rows])

    def clear(self, row: int) -> None:
        """A row for a stream that has not begun."""
        self.num_steps_C[row] = 0
        for name, (_, empty) in _COLUMNS.items():
            self.columns[name][row] = empty

    def push(self, rows_B: IntArray, activity_BS: FloatArray) -> list[tuple[int, int, bool]]:
        """Take the next step of some streams.

        Args:
            rows_B: Rows of the streams, each once.
            activity_BS: Their activities, float32.

        Returns:
            (index into `rows_B`, slot, ended) of each span to tell of: it ended, or it grew enough.
        """
        table = {name: column[rows_B] for name, column in self.columns.items()}
        steps_B1 = self.num_steps_C[rows_B][:, None]
        self.num_steps_C[rows_B] += 1
        # Compared as float32, as `hysteresis` does: 0.6 in float32 is not above 0.6.
        speaking = (activity_BS > self.decision.onset) | (table["speaking"] & (activity_BS >= self.decision.offset))
        begins = speaking & (table["start"] < 0)
        start = np.where(begins, steps_B1, table["start"])
        is_open = start >= 0
        score = activity_BS.astype(np.float64)
        pending = np.where(begins, 0.0, table["pending_sum"]) + score
        score_sum = np.where(begins, 0.0, table["score_sum"])
        table["score_sum"] = np.where(speaking, score_sum + pending, score_sum)
        table["pending_sum"] = np.where(speaking, 0.0, np.where(is_open, pending, table["pending_sum"]))
        table["last_end"] = np.where(speaking, steps_B1 + 1, table["last_end"])
        table["overlap"] |= speaking & (speaking.sum(axis=1, keepdims=True) > 1)
        table["speaking"], table["start"] = speaking, start
        for name in ("score_sum", "pending_sum", "last_end", "overlap", "speaking", "start"):
            self.columns[name][rows_B] = table[name]
        # A gap is over when it can no longer be filled.
        min_off = round(self.decision.min_off_s / self.grid.frame_s, 6)
        ends = is_open & ~speaking & (steps_B1 + 1 - table["last_end"] >= min_off)
        grown = ~table["told"] | (table["last_end"] - table["told_end"] >= UPDATE_STEPS)
        tells = is_open & ~ends & grown & self.long_enough(start, table["last_end"])
        found_B, slots_B = np.nonzero(ends | tells)
        return [(int(index), int(slot), bool(ends[index, slot])) for index, slot in zip(found_B, slots_B, strict=True)]

    def visitors(self, rows_B: IntArray, *, silent_s: float) -> npt.NDArray[np.bool_]:
        """Slots (B, S) heard for less than `min_speaker_s` in all, and not at all for `silent_s`."""
        table = {name: self.columns[name][rows_B] for name in ("labelled", "enrolled", "start", "last_end")}
        silent_BS = self.num_steps_C[rows_B][:, None] - table["last_end"] >= silent_s / self.grid.frame_s
        found: npt.NDArray[np.bool_] = (
            table["labelled"] & ~table["enrolled"] & (table["start"] < 0) & silent_BS & ~self.is_heard(rows_B)
        )
        return found

    def is_heard(self, rows_B: IntArray) -> npt.NDArray[np.bool_]:
        """Slots (B, S) heard for `min_speaker_s` in all."""
        heard: npt.NDArray[np.bool_] = (
            self.columns["spoken_steps"][rows_B] * self.grid.frame_s >= self.decision.min_speaker_s
        )
        return heard

    def long_enough(self, start: Any, last_end: Any) -> Any:
        """Whether spans are long enough to be turns."""
        return (last_end - start) * self.grid.frame_s + 1e-9 >= self.decision.min_on_s


class TurnTracker:
    """The speakers of one stream and their turns: what its slots are called, and what is told of them.

    Args:
        decision: Thresholds.
        num_slots: Slots of the model.
        enrolled: Labels of the first slots, whose voices are known.
        table: Where its slots are a row; by default one of its own.
        row: Which row.
    """

    def __init__(
        self,
        decision: DecisionConfig,
        num_slots: int,
        enrolled: Sequence[str] = (),
        *,
        table: TurnTable | None = None,
        row: int = 0,
    ) -> None:
        self.decision = decision
        self._table = table or TurnTable(decision, num_slots)
        self._row = row
        self._table.clear(row)
        self._labels: list[str | None] = [*enrolled, *([None] * (num_slots - len(enrolled)))]
        self._ids: list[str] = [""] * num_slots
        self._revs = [0] * num_slots
        for name in ("labelled", "enrolled"):
            self._column(name)[: len(enrolled)] = True
        self._count = 0
        self._num_named = 0
        self._num_final: Counter[str] = Counter()
        """Final turns of each label."""
        self.keep_s: float | None = None
        """How far back turns are remembered; None for all."""
        self.final: list[Segment] = []
        """Segments that ended, under the labels their speakers have now."""
        self.as_told: list[Turn] = []
        """The same turns under the labels they were first told with."""
        self._spare: list[str] = []

    @property
    def tracked(self) -> Tracked:
        """What it knows; its slots' values are copies."""
        columns = {name: self._column(name).copy() for name in self._table.columns}
        return Tracked(
            self.num_steps,
            columns,
            self._labels,
            self._ids,
            self._revs,
            self._count,
            self._num_named,
            self._num_final,
            self.keep_s,
            self.final,
            self.as_told,
            self._spare,
        )

    @tracked.setter
    def tracked(self, tracked: Tracked) -> None:
        self._table.num_steps_C[self._row] = tracked.num_steps
        for name, column_S in tracked.columns.items():
            self._column(name)[:] = column_S
        self._labels, self._ids, self._revs = tracked.labels, tracked.ids, tracked.revs
        self._count, self._num_named, self._num_final = tracked.count, tracked.num_named, tracked.num_final
        self.keep_s, self.final, self.as_told = tracked.keep_s, tracked.final, tracked.as_told
        self._spare = tracked.spare

    @property
    def num_steps(self) -> int:
        """Steps decided so far."""
        return int(self._table.num_steps_C[self._row])

    def to_plain(self, *, turns_s: float | None = None) -> dict[str, Any]:
        """Labels and turns as plain values, for `from_plain`; the row goes separately.

        Args:
            turns_s: How far back turns are told; None for all.
        """
        since_s = -1.0 if turns_s is None else self._table.grid.start_s(self.num_steps) - turns_s
        return {
            "slots": [self._labels, self._ids, self._revs],
            "counts": [self._count, self._num_named, dict(self._num_final)],
            "spare": self._spare,
            "keep_s": self.keep_s,
            "final": [
                (one.id, one.rev, one.final, one.overlap, *astuple(one.turn))
                for one in self.final
                if one.turn.end_s > since_s
            ],
            "as_told": [astuple(turn) for turn in self.as_told if turn.end_s > since_s],
        }

    def from_plain(self, plain: dict[str, Any]) -> None:
        """Know what another tracker knew; its row has been copied."""
        self._labels, self._ids, self._revs = (list(values) for values in plain["slots"])
        self._count, self._num_named, num_final = plain["counts"]
        self._num_final = Counter(num_final)
        self._spare = list(plain.get("spare", ()))
        self.keep_s = plain["keep_s"]
        self.final = [
            Segment(name, rev, Turn(*turn), final, overlap) for name, rev, final, overlap, *turn in plain["final"]
        ]
        self.as_told = [Turn(*turn) for turn in plain["as_told"]]

    def push(self, activity_S: FloatArray) -> list[Event]:
        """Take the activities of the next step, shape (slots,), and return what changed."""
        found = self._table.push(np.array([self._row]), activity_S[None])
        return [event for _, slot, ended in found for event in self.tell(slot, ended=ended)]

    def tell(self, slot: int, *, ended: bool) -> list[Event]:
        """What there is to say of a slot's open span: that it ended, or how long it is by now."""
        return self._end(slot) if ended else [self._tell(slot, final=False)]

    def end(self) -> list[Event]:
        """End every open span with its last active step: the stream, or this part of it, is over."""
        return [event for slot in np.flatnonzero(self._column("start") >= 0) for event in self._end(int(slot))]

    # speakers

    @property
    def num_speakers(self) -> int:
        """Different speakers in final turns."""
        return sum(count > 0 for count in self._num_final.values())

    def visitors(self, *, silent_s: float) -> list[int]:
        """Slots heard for less than `min_speaker_s` in all, and not at all for `silent_s`."""
        [visitor_S] = self._table.visitors(np.array([self._row]), silent_s=silent_s)
        return [int(slot) for slot in np.flatnonzero(visitor_S)]

    def established(self) -> list[int]:
        """Slots that are surely somebody: heard for `min_speaker_s`, or enrolled."""
        [heard_S] = self._table.is_heard(np.array([self._row]))
        is_somebody_S = self._column("labelled") & (self._column("enrolled") | heard_S)
        return [int(slot) for slot in np.flatnonzero(is_somebody_S)]

    def nearest(self, slot: int, others: Sequence[int]) -> int:
        """The one of `others` who spoke nearest in time to the last turn of a slot's speaker."""
        label_of = {self._labels[other]: other for other in others}
        last = next((s.turn for s in reversed(self.final) if s.turn.speaker == self._labels[slot]), None)
        if last is None:
            return others[0]
        candidates = [s.turn for s in self.final if s.turn.speaker in label_of]
        turn = min(
            candidates,
            key=lambda turn: max(turn.start_s - last.end_s, last.start_s - turn.end_s),
            default=None,
        )
        return others[0] if turn is None else label_of[turn.speaker]

    def is_enrolled(self, slot: int) -> bool:
        """Whether the slot's voice was known before the stream began."""
        return bool(self._column("enrolled")[slot])

    def is_open(self, slot: int) -> bool:
        """Whether the slot has an open span."""
        return bool(self._column("start")[slot] >= 0)

    def merge(self, slot: int, into: int) -> Revision:
        """The speaker of one slot is that of another: relabel his turns; slots behind his move up."""
        gone, stays = self._labels[slot], self._labels[into]
        assert gone is not None
        assert stays is not None
        assert slot != into
        assert not self.is_open(slot)
        revised = []
        for index, segment in enumerate(self.final):
            if segment.turn.speaker == gone:
                turn = replace(segment.turn, speaker=stays)
                self.final[index] = replace(segment, rev=segment.rev + 1, turn=turn)
                revised.append(self.final[index])
        self._num_final[stays] += self._num_final.pop(gone, 0)
        self._column("spoken_steps")[into] += self._column("spoken_steps")[slot]
        for values in (self._labels, self._ids, self._revs):
            del values[slot]
        self._labels.append(None)
        self._ids.append("")
        self._revs.append(0)
        for name, (_, empty) in _COLUMNS.items():
            column_S = self._column(name)
            column_S[slot:-1] = column_S[slot + 1 :].copy()
            column_S[-1] = empty
        return Revision(gone, stays, tuple(revised))

    @property
    def stable_s(self) -> float:
        """Start of the earliest open span, or of the first undecided step."""
        start_S = self._column("start")
        return self._table.grid.start_s(min([self.num_steps, *start_S[start_S >= 0].tolist()]))

    def _column(self, name: str) -> npt.NDArray[Any]:
        """A view of this stream's values."""
        column_S: npt.NDArray[Any] = self._table.columns[name][self._row]
        return column_S

    def _end(self, slot: int) -> list[Event]:
        events: list[Event] = []
        start, last_end = int(self._column("start")[slot]), int(self._column("last_end")[slot])
        if self._table.long_enough(start, last_end):
            segment = self._tell(slot, final=True)
            self._column("spoken_steps")[slot] += last_end - start
            self.final.append(segment)
            self.as_told.append(segment.turn)
            self._num_final[segment.turn.speaker] += 1
            events.append(segment)
            if self.keep_s is not None:
                self._forget_before(segment.turn.end_s - self.keep_s)
        for name in _OF_SPANS:
            self._column(name)[slot] = _COLUMNS[name][1]
        return events

    def _forget_before(self, end_s: float) -> None:
        while self.final[0].turn.end_s < end_s:
            del self.final[0]
        while self.as_told[0].end_s < end_s:
            del self.as_told[0]

    def _tell(self, slot: int, *, final: bool) -> Segment:
        label = self._labels[slot]
        if label is None:
            if self._spare:
                label = self._spare.pop(0)
            else:
                label = f"speaker_{self._num_named}"
                self._num_named += 1
            self._labels[slot] = label
            self._column("labelled")[slot] = True
        if not self._column("told")[slot]:
            self._count += 1
            self._ids[slot], self._revs[slot] = f"seg_{self._count}", 0
            self._column("told")[slot] = True
        else:
            self._revs[slot] += 1
        start, last_end = int(self._column("start")[slot]), int(self._column("last_end")[slot])
        self._column("told_end")[slot] = last_end
        confidence = round(float(self._column("score_sum")[slot]) / (last_end - start), 4)
        grid = self._table.grid
        turn = Turn(grid.start_s(start), grid.start_s(last_end), label, confidence)
        return Segment(self._ids[slot], self._revs[slot], turn, final, bool(self._column("overlap")[slot]))
