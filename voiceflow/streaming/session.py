"""One stream, without I/O: bytes in, chunks to score out, scores in, segments out.

session = Session(settings, metadata)
session.receive_audio(packet)
while (chunk := session.chunk_to_score()) is not None:      # the caller scores, alone or in a batch
    session.receive_scores(chunk, activity_S, new_state_N)
for event in session.events_to_send(): ...
"""

from collections import deque
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from voiceflow.audio import SAMPLE_BYTES, check_rate, decode_pcm
from voiceflow.contract import ModelMetadata
from voiceflow.errors import StreamError
from voiceflow.features import ENERGY_FLOOR, STEP_FEATURES, FeatureStream
from voiceflow.resampling import StreamResampler
from voiceflow.runtime import initial_state
from voiceflow.streaming import slots
from voiceflow.streaming.events import Event, Segment
from voiceflow.streaming.speakers import TurnTracker
from voiceflow.timebase import SAMPLE_RATE_HZ, STEP_S, STEP_SAMPLES, lookahead_steps, samples_to_seconds
from voiceflow.turns import Turn

FloatArray = npt.NDArray[np.float32]

SILENCE_F = np.full(STEP_FEATURES, np.log(np.float32(ENERGY_FLOOR)), np.float32)
"""Features of a step of digital silence, shown in place of a future that will not come."""


REPAIR_STEPS = 12
"""Every so many steps (0.96 s) it is asked whether a speaker turned out to be another one."""
MIN_ENROLMENT_S = 2.0
"""Clear speech of one person that a voice can be known by."""


@dataclass(frozen=True)
class Voice:
    """A speaker known by name: a unit vector of shape (E,), from `Session.voice` of a recording of nobody else."""

    label: str
    profile_E: FloatArray


@dataclass(frozen=True)
class StreamSettings:
    """What a client declares of its stream."""

    encoding: str = "pcm_s16le"
    sample_rate_hz: int = SAMPLE_RATE_HZ
    channels: int = 1
    latency_s: float = 1.04
    max_speakers: int | None = None
    enrolled: tuple[Voice, ...] = ()
    """Speakers known before the stream begins; they are called by their labels."""


@dataclass(frozen=True)
class Chunk:
    """One step that is ready to be scored."""

    features_F: FloatArray
    state_N: FloatArray
    lookahead_steps: int


@dataclass
class Flush:
    """A look past the end on a copy of the state, while the stream itself may go on."""

    state_N: FloatArray
    remaining: int


@dataclass
class Session:
    """Owns every mutable thing one stream has.

    Args:
        settings: What the client declared.
        metadata: What the model file says of itself.

    Raises:
        StreamError: For settings that are not served.
    """

    settings: StreamSettings
    metadata: ModelMetadata
    _steps: deque[FloatArray] = field(default_factory=deque)
    _events: list[Event] = field(default_factory=list)
    _flush: Flush | None = None
    _flush_wanted: bool = False
    _closing: bool = False
    _keep_labels: bool = False

    def __post_init__(self) -> None:
        settings = self.settings
        if settings.encoding not in SAMPLE_BYTES:
            raise StreamError("bad_encoding", f"expected encoding {sorted(SAMPLE_BYTES)}, got {settings.encoding!r}")
        if settings.channels != 1:
            raise StreamError("bad_channels", f"expected 1 channel, got {settings.channels}; mix down on your side")
        check_rate(settings.sample_rate_hz)
        try:
            self.lookahead_steps = lookahead_steps(settings.latency_s)
        except ValueError as err:
            raise StreamError("bad_latency", str(err)) from err
        if settings.max_speakers is not None and not 1 <= settings.max_speakers <= self.metadata.num_slots:
            raise StreamError(
                "bad_max_speakers",
                f"expected max_speakers from 1 to {self.metadata.num_slots}, got {settings.max_speakers}",
            )
        if len(settings.enrolled) > (settings.max_speakers or self.metadata.num_slots):
            raise StreamError(
                "bad_speakers",
                f"expected at most {settings.max_speakers or self.metadata.num_slots} enrolled speakers, "
                f"got {len(settings.enrolled)}",
            )
        self._resampler = StreamResampler(settings.sample_rate_hz)
        self._tracker = self._new_tracker([voice.label for voice in settings.enrolled])
        state_N = initial_state(self.metadata, settings.max_speakers)
        if settings.enrolled:
            voices_VE = np.stack([voice.profile_E for voice in settings.enrolled])
            state_N = slots.enrol(self.metadata, state_N, voices_VE)
        self._state_N = state_N
        self._partial = b""
        self._scored = 0

    @cached_property
    def _features(self) -> FeatureStream:
        return FeatureStream()

    def _new_tracker(self, labels: list[str]) -> TurnTracker:
        return TurnTracker(self.metadata.decision, self.metadata.num_slots, labels)

    # audio in

    def receive_audio(self, data: bytes) -> None:
        """Take a packet of any size; a sample may be split between packets.

        Raises:
            AudioFormatError: NaN or infinite samples; nothing of the packet is taken then.
            StreamError: The stream was closed before.
        """
        if self._closing:
            raise StreamError("closed", "expected no audio after close; open another stream")
        data = self._partial + data
        whole = len(data) // SAMPLE_BYTES[self.settings.encoding] * SAMPLE_BYTES[self.settings.encoding]
        samples_N = decode_pcm(data[:whole], self.settings.encoding)
        self._partial = data[whole:]
        self.receive_samples(self._resampler.push(samples_N))

    def receive_samples(self, samples_N: FloatArray) -> None:
        """Take mono float32 samples that are at 16 kHz already."""
        self._steps.extend(self._features.push(samples_N))

    def finalize(self) -> None:
        """Ask for final turns of all audio so far; the stream may go on afterwards."""
        self._flush_wanted = True

    def close(self, *, keep_labels: bool = False) -> None:
        """No more audio will come: complete the last step, then decide everything. Calling it twice is harmless.

        Args:
            keep_labels: Leave voices that were heard only briefly their labels, for a look at a stream that goes on.
        """
        if self._closing:
            return
        self._keep_labels = keep_labels
        self.receive_samples(self._resampler.push(np.zeros(0, np.float32), last=True))
        self._steps.extend(self._features.flush())
        self._closing = self._flush_wanted = True

    # the work between

    def chunk_to_score(self) -> Chunk | None:
        """The next step to score, or None if there is none; each waits for the scores of the one before."""
        if self._flush is None and not self._steps and self._flush_wanted:
            self._begin_flush()
        if self._flush is not None:
            return Chunk(SILENCE_F, self._flush.state_N, self.lookahead_steps)
        if self._steps:
            return Chunk(self._steps[0], self._state_N, self.lookahead_steps)
        return None

    @property
    def has_work(self) -> bool:
        """Whether there is anything left to score."""
        return self.chunk_to_score() is not None

    def receive_scores(self, activity_S: FloatArray, new_state_N: FloatArray) -> None:
        """Take the answer to the chunk last given out.

        Args:
            activity_S: Activities of the step `lookahead_steps` before it, shape (slots,).
            new_state_N: State after it, shape (N,).
        """
        if self._flush is not None:
            self._flush.state_N = new_state_N
            self._flush.remaining -= 1
            answered = self._scored - self._flush.remaining - 1
        else:
            self._steps.popleft()
            self._state_N = new_state_N
            answered = self._scored - self.lookahead_steps
            self._scored += 1
        # The first answers tell of steps before the stream began; after a flush, of steps decided already.
        if answered >= self._tracker.num_steps:
            self._events += self._tracker.push(activity_S)
        if self._flush is None and self._scored % REPAIR_STEPS == 0:
            self._repair(silent_s=self.metadata.decision.forget_after_s)
        if self._flush is not None and self._flush.remaining == 0:
            self._end_flush()

    def _begin_flush(self) -> None:
        self._flush_wanted = False
        if self._scored:
            self._flush = Flush(self._state_N, self.lookahead_steps)

    def _end_flush(self) -> None:
        assert self._flush is not None
        if self._closing:
            self._state_N = self._flush.state_N
        self._flush = None
        self._events += self._tracker.end()
        if self._closing and not self._keep_labels:
            self._repair(silent_s=0.0)

    def _repair(self, *, silent_s: float) -> None:
        """Merge speakers that turned out to be one, and give passing voices to the speaker they are most like."""
        while (found := self._passing(silent_s) or self._alike()) is not None:
            slot, into, is_same_voice = found
            self._state_N = (
                slots.merge(self.metadata, self._state_N, slot, into)
                if is_same_voice
                else slots.forget(self.metadata, self._state_N, slot)
            )
            self._events.append(self._tracker.merge(slot, into))

    def _passing(self, silent_s: float) -> tuple[int, int, bool] | None:
        """A voice heard only briefly and silent for `silent_s`, and the slot it goes to; its sound is not kept."""
        visitors = self._tracker.visitors(silent_s=silent_s)
        established = self._tracker.established() if visitors else []
        if not established:
            return None
        slot = visitors[-1]
        if slots.heard_steps(self.metadata, self._state_N)[slot] < 1.0:  # too little of it is left to compare
            return slot, self._tracker.nearest(slot, established), False
        profiles_SE = slots.profiles(self.metadata, self._state_N)
        return slot, max(established, key=lambda other: float(profiles_SE[slot] @ profiles_SE[other])), False

    def _alike(self) -> tuple[int, int, bool] | None:
        """The two slots whose voices are most alike, the younger first, if that is enough to be one voice."""
        limit = self.metadata.decision.merge_cosine
        if limit >= 1.0:
            return None
        profiles_SE = slots.profiles(self.metadata, self._state_N)
        established = self._tracker.established()
        pairs = [
            (float(profiles_SE[slot] @ profiles_SE[into]), slot, into)
            for slot in established
            for into in established
            if into < slot and not self._tracker.is_enrolled(slot) and not self._tracker.is_open(slot)
        ]
        cosine, slot, into = max(pairs, default=(0.0, 0, 0))
        return (slot, into, True) if cosine > limit else None

    # results out

    def events_to_send(self) -> list[Event]:
        """What changed since the last call; no turn is longer than the audio."""
        events, self._events = self._events, []
        return [self._clipped(event) for event in events] if self._closing else events

    def _clipped(self, event: Event) -> Event:
        end_s = self.received_s
        if isinstance(event, Segment) and event.turn.end_s > end_s:
            return replace(event, turn=replace(event.turn, end_s=end_s))
        return event

    @property
    def ended(self) -> list[Segment]:
        """Segments that ended, as they are now; a live stream remembers them for a while only."""
        return list(self._tracker.final)

    @property
    def turns(self) -> list[Turn]:
        """Final turns so far, sorted; none is longer than the audio."""
        return self._within([segment.turn for segment in self._tracker.final])

    @property
    def turns_as_told(self) -> list[Turn]:
        """The same turns under the labels they had when they ended: what a client knew at the stream's latency."""
        return self._within(self._tracker.as_told)

    def _within(self, turns: list[Turn]) -> list[Turn]:
        end_s = self.received_s
        return sorted(
            turn if turn.end_s <= end_s else Turn(turn.start_s, end_s, turn.speaker, turn.confidence)
            for turn in turns
            if turn.start_s < end_s
        )

    def voice(self, label: str) -> Voice:
        """The voice of a stream in which one person spoke and that was closed; open it with `max_speakers=1`.

        Raises:
            StreamError: `bad_enrolment`: too little speech.
        """
        heard_s = float(slots.heard_steps(self.metadata, self._state_N)[0]) * STEP_S
        if heard_s < MIN_ENROLMENT_S:
            raise StreamError(
                "bad_enrolment",
                f"{label}: expected at least {MIN_ENROLMENT_S:g} s of clear speech, heard {heard_s:.1f} s",
            )
        return Voice(label, slots.profiles(self.metadata, self._state_N)[0])

    @property
    def num_samples(self) -> int:
        """Samples received, at 16 kHz."""
        return self._features.num_samples

    @property
    def num_answered(self) -> int:
        """Samples whose activity has been decided, to the end of their step."""
        return self._tracker.num_steps * STEP_SAMPLES

    @property
    def received_s(self) -> float:
        """Audio received, in seconds."""
        return samples_to_seconds(self.num_samples)

    @property
    def answered_s(self) -> float:
        """Audio whose activity has been decided, in seconds."""
        return samples_to_seconds(min(self.num_answered, self.num_samples))

    @property
    def stable_s(self) -> float:
        """Time before which no turn will change any more."""
        return self._tracker.stable_s

    @property
    def waiting_s(self) -> float:
        """Audio received and not yet scored, in seconds."""
        return len(self._steps) * STEP_S

    @property
    def num_speakers(self) -> int:
        """Different speakers so far."""
        return self._tracker.num_speakers

    @property
    def is_done(self) -> bool:
        """Whether it was closed and everything has been decided."""
        return self._closing and not self.has_work
