"""One stream whose audio, state and open spans are a row of arrays that hold many."""

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from voiceflow.audio import SAMPLE_BYTES, decode_pcm
from voiceflow.errors import StreamError
from voiceflow.streaming.events import Event
from voiceflow.streaming.handover import Carried, Handover
from voiceflow.streaming.session import Chunk, Flush, Session, StreamSettings
from voiceflow.streaming.speakers import TurnTracker
from voiceflow.streaming.statistics import StreamStatistics
from voiceflow.timebase import SAMPLE_RATE_HZ, STEP_S, STEP_SAMPLES

if TYPE_CHECKING:
    from voiceflow.streaming.lanes import Lanes

FloatArray = npt.NDArray[np.float32]


class Lane(Session):
    """A session whose audio, state and open spans are a row of `Lanes`; made by `Lanes.open`."""

    def __init__(self, settings: StreamSettings, lanes: "Lanes", row: int, *, keep_s: float | None = None) -> None:
        self.lanes = lanes
        self.row = row
        self._audio = bytearray()
        """Not yet scored, as it came; as float32 where it was resampled."""
        self.width = 4
        self._num_samples = 0
        self.recent: deque[bytes] | None = None
        """The last steps that were taken, where another model may have to hear them again."""
        self.handover: Handover | None = None
        """What is left to do before this lane goes on for one of another model."""
        self._held: list[Event] = []
        """What that one had not told yet."""
        self._watched_from_s = 0.0
        super().__init__(settings, lanes.metadata)
        if settings.sample_rate_hz == SAMPLE_RATE_HZ:
            self.width = SAMPLE_BYTES[settings.encoding]
        self._tracker.keep_s = keep_s
        lanes.lookahead_C[row] = self.lookahead_steps

    def _new_tracker(self, labels: list[str]) -> TurnTracker:
        return TurnTracker(
            self.metadata.decision, self.metadata.num_slots, labels, table=self.lanes.table, row=self.row
        )

    @property
    def _state_N(self) -> FloatArray:
        state_N: FloatArray = self.lanes.state_CN[self.row]
        return state_N

    @_state_N.setter
    def _state_N(self, state_N: FloatArray) -> None:
        self.lanes.state_CN[self.row] = state_N

    @property
    def _scored(self) -> int:
        return int(self.lanes.scored_C[self.row])

    @_scored.setter
    def _scored(self, scored: int) -> None:
        self.lanes.scored_C[self.row] = scored

    # audio in

    def receive_audio(self, data: bytes) -> None:
        """See `Session.receive_audio`."""
        if self._closing:
            raise StreamError("closed", "expected no audio after close; open another stream")
        if self.settings.sample_rate_hz != SAMPLE_RATE_HZ:
            super().receive_audio(data)
            return
        if self.width == 4:
            partial = len(self._audio) % 4
            whole = bytes(self._audio[len(self._audio) - partial :]) + data
            decode_pcm(whole[: len(whole) // 4 * 4], "pcm_f32le")  # refuses what is not finite
        before = len(self._audio) // self.width
        self._audio += data
        self._count(len(self._audio) // self.width - before)

    def receive_samples(self, samples_N: FloatArray) -> None:
        """See `Session.receive_samples`; for lanes of float samples."""
        assert self.width == 4
        self._audio += samples_N.astype("<f4").tobytes()
        self._count(len(samples_N))

    def _count(self, num_samples: int) -> None:
        if not self.lanes.holds(self):  # its row may be another stream's by now
            raise StreamError("closed", "expected no audio of a stream that has left")
        self._num_samples += num_samples
        self.lanes.waiting_C[self.row] = len(self._audio) // self.width // STEP_SAMPLES

    def drop_partial(self) -> None:
        """Forget the first bytes of a sample whose other bytes have not come: its packet is sent again."""
        self._partial = b""
        if partial := len(self._audio) % self.width:
            del self._audio[-partial:]

    def finalize(self) -> None:
        """See `Session.finalize`."""
        super().finalize()
        self.lanes.ending[self.row] = self

    def close(self, *, keep_labels: bool = False) -> None:
        """See `Session.close`."""
        if self._closing:
            return
        self._keep_labels = keep_labels
        if self.settings.sample_rate_hz != SAMPLE_RATE_HZ:
            self.receive_samples(self._resampler.push(np.zeros(0, np.float32), last=True))
        self._closing = True
        num_samples = len(self._audio) // self.width
        self.lanes.waiting_C[self.row] = -(-num_samples // STEP_SAMPLES)
        if self._scored or self.has_work:
            self.finalize()

    # the work between

    def chunk_to_score(self) -> Chunk | None:
        """Not for lanes: they are scored together."""
        raise NotImplementedError("lanes are scored by Lanes.gather and Lanes.scatter")

    @property
    def has_work(self) -> bool:
        """Whether there is anything left to score, or scores are awaited."""
        waits = self.lanes.waiting_C[self.row] or self.lanes.asked_C[self.row]
        return bool(waits) or self._flush is not None or self._flush_wanted

    def take_step(self) -> bytes:
        """The bytes of the next step; fewer than a step's where the stream ends."""
        size = STEP_SAMPLES * self.width
        piece = bytes(self._audio[:size])
        del self._audio[:size]
        self.lanes.waiting_C[self.row] -= 1
        piece = piece[: len(piece) // self.width * self.width]
        if self.recent is not None:
            self.recent.append(piece)
        return piece

    def begin_flush_if_due(self) -> bool:
        """Begin the look past the end once all audio is scored; whether one is under way."""
        if self._flush is None and self._flush_wanted and not self.lanes.waiting_C[self.row]:
            self._begin_flush()
        return self._flush is not None

    def flushed(self, state_N: FloatArray) -> int:
        """Take the state after one more step of the look past the end; the step that its scores answer."""
        assert self._flush is not None
        # Copied: the whole batch would live on for this row.
        self._flush.state_N = state_N.copy()
        self._flush.remaining -= 1
        return self._scored - self._flush.remaining - 1

    def end_flush_if_over(self) -> None:
        """End the look past the end after its last step."""
        if self._flush is not None and self._flush.remaining == 0:
            self._end_flush()

    @property
    def flush_state(self) -> FloatArray:
        """State of the look past the end."""
        assert self._flush is not None
        return self._flush.state_N

    def tell(self, slot: int, *, ended: bool) -> None:
        """Note what there is to say of a slot's open span."""
        self._events += self._tracker.tell(slot, ended=ended)

    def repair(self, *, silent_s: float) -> None:
        """See `Session`: merge speakers that turned out to be one."""
        self._repair(silent_s=silent_s)

    def to_plain(self, *, turns_s: float | None = None, recent: bool = False) -> dict[str, Any]:
        """All that is not in the row as plain values, for `from_plain`; arguments as for `Lanes.save`."""
        return {
            "audio": bytes(self._audio),
            "num_samples": self._num_samples,
            "partial": self._partial,
            "resampler": self._resampler.to_plain(),
            "flush": [self._flush.state_N.tobytes(), self._flush.remaining] if self._flush else None,
            "flags": [self._flush_wanted, self._closing, self._keep_labels],
            "tracker": self._tracker.to_plain(turns_s=turns_s),
            "recent": None if self.recent is None else [self.recent.maxlen, list(self.recent) if recent else []],
        }

    def from_plain(self, plain: dict[str, Any]) -> None:
        """Become what another lane was; its row has been copied."""
        self._audio, self._num_samples = bytearray(plain["audio"]), plain["num_samples"]
        self._partial = plain["partial"]
        self._resampler.from_plain(plain["resampler"])
        if plain["flush"]:
            state, remaining = plain["flush"]
            self._flush = Flush(np.frombuffer(state, np.float32), remaining)
        self._flush_wanted, self._closing, self._keep_labels = plain["flags"]
        self._tracker.from_plain(plain["tracker"])
        if plain.get("recent") is not None:
            length, pieces = plain["recent"]
            self.recent = deque(pieces, maxlen=length)
        if self.has_work:
            self.lanes.ending[self.row] = self

    # from another model

    def keep_recent(self, seconds: float) -> None:
        """Keep so much of the audio that was taken, for `carried`."""
        if self.recent is None:
            self.recent = deque(maxlen=round(seconds / STEP_S))

    @property
    def recent_s(self) -> float:
        """Audio that another model would hear again, in seconds."""
        return len(self.recent or ()) * STEP_S

    def carried(self) -> Carried:
        """What it brings along to another model; it is of no use afterwards."""
        assert self.handover is None
        return Carried(
            self.settings,
            self._tracker.tracked,
            list(self.recent or ()),
            bytes(self._audio),
            self._num_samples,
            self._partial,
            self._resampler.to_plain(),
            self._closing,
            self._keep_labels,
            self._flush_wanted or self._flush is not None,
            float(self.lanes.opened_s_C[self.row]),
            self.events_to_send(),
        )

    def go_on_from(self, carried: Carried) -> None:
        """Go on with a stream that a lane of another model has brought so far; this one has not begun."""
        self._audio = bytearray(b"".join(carried.recent) + carried.audio)
        self._num_samples = carried.num_samples
        self._partial = carried.partial
        self._resampler.from_plain(carried.resampler)
        self._closing, self._keep_labels = carried.is_closing, carried.keeps_labels
        self._flush_wanted = carried.is_flush_wanted
        self._held = carried.events
        num_samples = len(self._audio) // self.width
        heard_steps = -(-(self._num_samples - len(carried.audio) // self.width) // STEP_SAMPLES)
        first_step = heard_steps - len(carried.recent)
        lanes = self.lanes
        lanes.waiting_C[self.row] = -(-num_samples // STEP_SAMPLES) if self._closing else num_samples // STEP_SAMPLES
        lanes.scored_C[self.row] = lanes.table.num_steps_C[self.row] = first_step
        lanes.opened_s_C[self.row] = carried.opened_s
        self.handover = Handover(carried.tracked, first_step, heard_steps, self.settings.max_speakers)
        if self._flush_wanted:
            lanes.ending[self.row] = self
        self.hand_over_if_due()

    def hand_over_if_due(self) -> None:
        """Take the other lane's place once the audio that it had heard is heard."""
        handover = self.handover
        if handover is not None and handover.is_due(self._tracker.num_steps, self._scored):
            self._tracker.tracked, events = handover.finish(self._tracker.tracked)
            self._events, self.handover = [*self._held, *events], None

    # statistics

    def watch(self) -> None:
        """Count what it sounds like from now on, for `statistics`."""
        self._watched_from_s = self.answered_s
        self.lanes.watch.begin(self.row)

    @property
    def is_watched(self) -> bool:
        """Whether it is."""
        return self.lanes.holds(self) and self.lanes.watch.is_watched(self.row)

    @property
    def watched_s(self) -> float:
        """Audio decided since it is watched, or since `statistics`."""
        return self.answered_s - self._watched_from_s

    def statistics(self) -> StreamStatistics:
        """What it sounded like since `watch` or the last call; begins anew."""
        since_s = self._watched_from_s
        final, told = self._tracker.final, self._tracker.as_told
        recent = [
            (segment.turn, turn) for segment, turn in zip(final, told, strict=False) if segment.turn.end_s > since_s
        ]
        num_flips = sum(now.speaker != then.speaker for now, then in recent)
        found = self.lanes.watch.read(self.row, [now for now, _ in recent], num_flips=num_flips)
        self.lanes.watch.reset(self.row)
        self._watched_from_s = self.answered_s
        return found

    # results out

    def events_to_send(self) -> list[Event]:
        """See `Session.events_to_send`; nothing while audio is heard again."""
        return [] if self.handover is not None else super().events_to_send()

    @property
    def num_samples(self) -> int:
        """See `Session.num_samples`."""
        return self._num_samples

    @property
    def waiting_s(self) -> float:
        """See `Session.waiting_s`."""
        return int(self.lanes.waiting_C[self.row]) * STEP_S
