"""All streams of a process side by side: their audio, state and decisions are rows of arrays.

A `Lane` has the methods of a `Session` and says the same, to the bit; what many lanes need at once is
done for all of them in one operation: features, the model's step, and what became of each slot.

lanes = Lanes(metadata)
lane = lanes.open(settings)
lane.receive_audio(packet)
while (batch := lanes.gather(max_batch=256)) is not None:       # the caller scores
    lanes.scatter(*model.step(*batch))
for event in lane.events_to_send(): ...

Shapes: C rows there is room for, B lanes with a step to score, S slots, N state values.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from voiceflow.audio import decode_pcm
from voiceflow.contract import ModelMetadata
from voiceflow.errors import StreamError
from voiceflow.features import FeatureRows
from voiceflow.streaming.handover import Carried
from voiceflow.streaming.lane import Lane
from voiceflow.streaming.session import REPAIR_STEPS, SILENCE_F, StreamSettings, Voice
from voiceflow.streaming.speakers import TurnTable, TurnTracker
from voiceflow.streaming.statistics import StreamWatch
from voiceflow.timebase import STEP_S, STEP_SAMPLES, samples_to_seconds

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

Batch = tuple[FloatArray, FloatArray, IntArray]
"""Features (B, 640), states (B, N) and steps of look-ahead (B,): the inputs of one step of the model."""
FIRST_CAPACITY = 64
AHEAD_S = 1.0
"""A lane is ahead of real time where it has been scored for so much more than the time it is open."""
BEHIND_STEPS = 3
"""A lane is behind where more steps than these wait."""


class Lanes:
    """Rows for all streams of a process.

    Args:
        metadata: What the model file says of itself.
        capacity: Rows to begin with; more are made when they are needed.
    """

    def __init__(self, metadata: ModelMetadata, *, capacity: int = FIRST_CAPACITY) -> None:
        self.metadata = metadata
        self.table = TurnTable(metadata.decision, metadata.num_slots, capacity)
        self.state_CN = np.zeros((capacity, metadata.state_dims), np.float32)
        self.waiting_C = np.zeros(capacity, np.int64)
        """Steps of audio not yet scored."""
        self.asked_C = np.zeros(capacity, np.bool_)
        """Whether the scores of a step are awaited: its audio is taken, its state is still that of before."""
        self.scored_C = np.zeros(capacity, np.int64)
        self.lookahead_C = np.zeros(capacity, np.int64)
        self.opened_s_C = np.zeros(capacity)
        self.ending: dict[int, Lane] = {}
        """Lanes that look past their end, or will once their audio is scored."""
        self._features = FeatureRows(capacity)
        self.watch = StreamWatch(capacity)
        """Statistics of the lanes that are watched."""
        self._lanes: dict[int, Lane] = {}
        self._free = list(range(capacity - 1, -1, -1))
        self._asked: tuple[list[Lane], IntArray] | None = None
        self._handing_over: dict[int, Lane] = {}
        """Lanes that hear again what those of another model heard."""
        self._left: list[int] = []
        """Rows of lanes that left while their scores were awaited."""
        self._next = 0

    def __len__(self) -> int:
        return len(self._lanes)

    def open(self, settings: StreamSettings, *, keep_s: float | None = None, now_s: float = 0.0) -> Lane:
        """A stream that begins.

        Args:
            settings: What the client declared.
            keep_s: How far back its turns are remembered; None for all.
            now_s: Time by the clock that `gather` is told.

        Raises:
            StreamError: For settings that are not served.
        """
        if not self._free:
            self._grow(2 * len(self.waiting_C))
        row = self._free.pop()
        try:
            lane = Lane(settings, self, row, keep_s=keep_s)
        except Exception:
            self._clear(row)
            raise
        self._lanes[row] = lane
        self.opened_s_C[row] = now_s
        return lane

    def twin(self, lane: Lane) -> Lane:
        """Another stream that has heard and said what this one has, to look at its end while it goes on."""
        assert not self.asked_C[lane.row]
        assert lane.handover is None
        twin = self.open(lane.settings, now_s=float(self.opened_s_C[lane.row]))
        for array in self.row_arrays().values():
            array[twin.row] = array[lane.row]
        twin.from_plain(lane.to_plain())
        return twin

    def take_over(self, carried: Carried) -> Lane:
        """A stream that another model has brought so far: what it heard last is heard again, in the next steps; then
        the stream goes on where it was, with a `ModelChanged`."""
        wanted = carried.settings.max_speakers
        at_most = None if wanted is None else min(wanted, self.metadata.num_slots)
        lane = self.open(replace(carried.settings, enrolled=(), max_speakers=at_most))
        self._handing_over[lane.row] = lane
        lane.go_on_from(carried)
        return lane

    def save(self, lane: Lane, *, turns_s: float | None = None, recent: bool = False) -> bytes:
        """A stream as bytes, to go on after a crash, on another process or another machine.

        Plain values only: reading them runs no code. They are not signed or encrypted; whoever lets them
        leave the process does that. Events not yet taken by `events_to_send` are not in them.

        Args:
            lane: The stream, between two steps.
            turns_s: How far back its turns can be told again or relabelled afterwards; None for all.
            recent: Whether what `Lane.keep_recent` kept goes along.
        """
        import msgpack

        assert not self.asked_C[lane.row]
        assert lane.handover is None
        settings = {**asdict(lane.settings), "enrolled": [voice.label for voice in lane.settings.enrolled]}
        rows = {name: array[lane.row].tobytes() for name, array in self.row_arrays().items()}
        saved: bytes = msgpack.packb(
            {
                "model": self._model(),
                "settings": settings,
                "rows": rows,
                "lane": lane.to_plain(turns_s=turns_s, recent=recent),
            }
        )
        return saved

    def restore(self, saved: bytes, *, now_s: float = 0.0) -> Lane:
        """The stream of a `save`, with the same turns, labels and audio to score; `now_s` as for `open`.

        Raises:
            StreamError: `bad_snapshot`: not a snapshot; `other_model`: one of another model.
        """
        with _reading():
            plain = _unpacked(saved)
            if plain["model"] != self._model():
                raise StreamError("other_model", f"expected a stream of {self._model()}, got one of {plain['model']}")
            lane = self.open(_settings(plain, self.metadata.embedding_dims))
            try:
                for name, array in self.row_arrays().items():
                    array[lane.row] = np.frombuffer(plain["rows"][name], array.dtype).reshape(array.shape[1:])
                lane.from_plain(plain["lane"])
            except Exception:
                self.leave(lane)
                raise
            self.opened_s_C[lane.row] = now_s - lane.received_s
        return lane

    def carried(self, saved: bytes, *, now_s: float = 0.0) -> Carried:
        """What the stream of a `save` brings along, whatever model it is of; for `take_over`.

        Raises:
            StreamError: `bad_snapshot`: not a snapshot.
        """
        with _reading():
            plain = _unpacked(saved)
            lane, rows = plain["lane"], plain["rows"]
            tracker = TurnTracker(self.metadata.decision, len(lane["tracker"]["slots"][0]))
            tracker.from_plain(lane["tracker"])
            tracked = tracker.tracked
            tracked.num_steps = int(np.frombuffer(rows["num_steps"], np.int64)[0])
            for name, column_S in tracked.columns.items():
                column_S[:] = np.frombuffer(rows[name], column_S.dtype)
            flush_wanted, closing, keep_labels = lane["flags"]
            return Carried(
                _settings(plain, self.metadata.embedding_dims),
                tracked,
                lane["recent"][1] if lane.get("recent") else [],
                lane["audio"],
                lane["num_samples"],
                lane["partial"],
                lane["resampler"],
                closing,
                keep_labels,
                flush_wanted or lane["flush"] is not None,
                now_s - samples_to_seconds(lane["num_samples"]),
            )

    def _model(self) -> list[Any]:
        meta = self.metadata
        return [meta.version, meta.git_commit, meta.run_id, meta.data_revision, meta.precision, meta.state_dims]

    def row_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All that is known of streams in rows, by name."""
        return {
            "state": self.state_CN,
            "waiting": self.waiting_C,
            "scored": self.scored_C,
            "num_steps": self.table.num_steps_C,
            **self.table.columns,
            **self._features.columns,
        }

    def holds(self, lane: Lane) -> bool:
        """Whether it has not left."""
        return self._lanes.get(lane.row) is lane

    def leave(self, lane: Lane) -> None:
        """Forget a stream."""
        if not self.holds(lane):
            return
        del self._lanes[lane.row]
        self.ending.pop(lane.row, None)
        self._handing_over.pop(lane.row, None)
        self.waiting_C[lane.row] = 0
        if self._asked is None:
            self._clear(lane.row)
        else:
            self._left.append(lane.row)

    @property
    def most_waiting_s(self) -> float:
        """Audio not yet scored of the lane that has most of it, in seconds."""
        return float(self.waiting_C.max()) * STEP_S

    def gather(self, *, max_batch: int, now_s: float | None = None) -> Batch | None:
        """Inputs of one step of the lanes that have one, at most `max_batch`; scores are expected next.

        A batch may be scored again, elsewhere, if its scoring fails.

        Args:
            max_batch: Lanes at most.
            now_s: Time by the clock of `open`. Given it, lanes that are ahead of real time wait while any
                other is behind: who sends faster than people speak gets what the others leave.
        """
        assert self._asked is None
        flushing = [lane for lane in tuple(self.ending.values()) if lane.begin_flush_if_due()]
        waits_C = self.waiting_C > 0
        waits_C[[lane.row for lane in flushing]] = False
        for row in [row for row, lane in self.ending.items() if not lane.has_work]:
            del self.ending[row]
        flushing = flushing[:max_batch]
        rows_B = np.flatnonzero(waits_C)
        if now_s is not None:
            rows_B = self._without_those_ahead(rows_B, now_s)
        if len(rows_B) > max_batch - len(flushing):  # those left out come first next time
            first = int(np.searchsorted(rows_B, self._next))
            rows_B = np.roll(rows_B, -first)[: max_batch - len(flushing)]
            self._next = int(rows_B[-1]) + 1 if len(rows_B) else 0
        if not flushing and not len(rows_B):
            return None
        self._asked = (flushing, rows_B)
        self.asked_C[rows_B] = True
        state_BN, lookahead_B = self.state_CN[rows_B], self.lookahead_C[rows_B]
        if len(rows_B):
            samples_BN, lengths_B = _decode([self._lanes[row] for row in rows_B.tolist()])
            features_BF = self._features.push(rows_B, samples_BN, lengths_B)
            if self.watch.num_watched:
                self.watch.hear(rows_B, features_BF)
        else:
            features_BF = np.zeros((0, len(SILENCE_F)), np.float32)
        if flushing:
            features_BF = np.concatenate([np.tile(SILENCE_F, (len(flushing), 1)), features_BF])
            state_BN = np.concatenate([np.stack([lane.flush_state for lane in flushing]), state_BN])
            lookahead_B = np.concatenate([[lane.lookahead_steps for lane in flushing], lookahead_B])
        return features_BF, state_BN, lookahead_B

    def are_ahead(self, rows_B: IntArray, now_s: float) -> npt.NDArray[np.bool_]:
        """Whether lanes have been scored for more audio than the time that they are open, by the clock of `open`."""
        is_ahead_B: npt.NDArray[np.bool_] = self.scored_C[rows_B] * STEP_S > now_s - self.opened_s_C[rows_B] + AHEAD_S
        return is_ahead_B

    def _without_those_ahead(self, rows_B: IntArray, now_s: float) -> IntArray:
        is_ahead_B = self.are_ahead(rows_B, now_s)
        if not is_ahead_B.any() or not (self.waiting_C[rows_B[~is_ahead_B]] > BEHIND_STEPS).any():
            return rows_B
        return rows_B[~is_ahead_B]

    def scatter(self, activity_BS: FloatArray, state_BN: FloatArray) -> list[Lane]:
        """Take the scores of the batch last gathered; returns its lanes."""
        assert self._asked is not None
        flushing, rows_B = self._asked
        self.state_CN[rows_B] = state_BN[len(flushing) :]
        answered_B = np.array(
            [lane.flushed(state_N) for lane, state_N in zip(flushing, state_BN, strict=False)]
            + (self.scored_C[rows_B] - self.lookahead_C[rows_B]).tolist(),
            np.int64,
        )
        self.scored_C[rows_B] += 1
        all_B = np.concatenate([np.array([lane.row for lane in flushing], np.int64), rows_B])
        # The first answers tell of steps before the stream began; after a flush, of steps decided already.
        new_B = answered_B >= self.table.num_steps_C[all_B]
        told_B = all_B[new_B]
        if self.watch.num_watched:
            self.watch.answer(told_B, activity_BS[new_B], onset=self.metadata.decision.onset)
        for index, slot, ended in self.table.push(told_B, activity_BS[new_B]):
            if (row := int(told_B[index])) in self._lanes:
                self._lanes[row].tell(slot, ended=ended)
        for lane in tuple(self._handing_over.values()):
            lane.hand_over_if_due()
            if lane.handover is None:
                del self._handing_over[lane.row]
        for lane in flushing:
            lane.end_flush_if_over()
        self._repair(rows_B[self.scored_C[rows_B] % REPAIR_STEPS == 0])
        return self._done()

    def give_up(self) -> list[Lane]:
        """The batch last gathered will not be scored: its lanes cannot go on, and are returned to be left."""
        return self._done()

    def _done(self) -> list[Lane]:
        """Lanes of the batch that are still there; rows of those that left are free now."""
        assert self._asked is not None
        (flushing, rows_B), self._asked = self._asked, None
        self.asked_C[rows_B] = False
        for row in self._left:
            self._clear(row)
        self._left.clear()
        lanes = flushing + [self._lanes[row] for row in rows_B.tolist() if row in self._lanes]
        return [lane for lane in lanes if self._lanes.get(lane.row) is lane]

    def _repair(self, rows_B: IntArray) -> None:
        silent_s = self.metadata.decision.forget_after_s
        if self.metadata.decision.merge_cosine >= 1.0:
            rows_B = rows_B[self.table.visitors(rows_B, silent_s=silent_s).any(axis=1)]
        for row in rows_B.tolist():
            if row in self._lanes:
                self._lanes[row].repair(silent_s=silent_s)

    def _clear(self, row: int) -> None:
        self.watch.end(row)
        self.table.clear(row)
        self._features.clear(row)
        self.state_CN[row], self.waiting_C[row], self.scored_C[row] = 0.0, 0, 0
        self._free.append(row)

    def _grow(self, capacity: int) -> None:
        before = len(self.waiting_C)
        extra = capacity - before
        self.table.grow(capacity)
        self._features.grow(capacity)
        self.watch.grow(capacity)
        # Rows that were never used take no memory: the rest of the new array is not written to.
        state_CN = np.zeros((capacity, self.state_CN.shape[1]), np.float32)
        state_CN[:before] = self.state_CN
        self.state_CN = state_CN
        for name in ("waiting_C", "scored_C", "lookahead_C"):
            setattr(self, name, np.concatenate([getattr(self, name), np.zeros(extra, np.int64)]))
        self.opened_s_C = np.concatenate([self.opened_s_C, np.zeros(extra)])
        self.asked_C = np.concatenate([self.asked_C, np.zeros(extra, np.bool_)])
        self._free += range(capacity - 1, before - 1, -1)


@contextmanager
def _reading() -> Iterator[None]:
    """Whatever is wrong with a snapshot is one error."""
    try:
        yield
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as err:
        raise StreamError("bad_snapshot", f"expected a saved stream ({type(err).__name__})") from err


def _unpacked(saved: bytes) -> dict[str, Any]:
    import msgpack

    try:
        plain: dict[str, Any] = msgpack.unpackb(saved)
    except msgpack.UnpackException as err:
        raise ValueError("not packed") from err
    return plain


def _settings(plain: dict[str, Any], embedding_dims: int) -> StreamSettings:
    # What enrolled voices sound like is in the state already.
    nobody_E = np.zeros(embedding_dims, np.float32)
    settings = dict(plain["settings"])
    enrolled = tuple(Voice(label, nobody_E) for label in settings.pop("enrolled"))
    return StreamSettings(**settings, enrolled=enrolled)


def _decode(lanes: Sequence[Lane]) -> tuple[FloatArray, IntArray | None]:
    """The next step of each lane: samples (B, 1280), and how many of them were heard if not all."""
    samples_BN = np.zeros((len(lanes), STEP_SAMPLES), np.float32)
    lengths_B = np.full(len(lanes), STEP_SAMPLES)
    for width, encoding in ((2, "pcm_s16le"), (4, "pcm_f32le")):
        indices = [index for index, lane in enumerate(lanes) if lane.width == width]
        if not indices:
            continue
        pieces = [lanes[index].take_step() for index in indices]
        for index, piece in zip(indices, pieces, strict=True):
            lengths_B[index] = len(piece) // width
        data = b"".join(piece.ljust(STEP_SAMPLES * width, b"\0") for piece in pieces)
        samples_BN[indices] = decode_pcm(data, encoding).reshape(len(indices), STEP_SAMPLES)
    return samples_BN, None if (lengths_B == STEP_SAMPLES).all() else lengths_B
