"""The words of `/v1/stream`: what clients may say, checked, and what we answer."""

import base64
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from voiceflow.audio import SAMPLE_BYTES, FloatArray, load_audio
from voiceflow.errors import StreamError
from voiceflow.streaming.events import Event, ModelChanged, Segment
from voiceflow.streaming.session import StreamSettings
from voiceflow.timebase import SAMPLE_RATE_HZ

MAX_ENROLMENT_S = 60.0
"""A recording of a known speaker may be this long: the stream waits while it is heard."""


COMPRESSED = ("ogg_opus", "webm_opus")
"""Encodings that are decoded before a session hears them; the rate and channels are in the file."""


class Message(BaseModel):
    """Base of client messages; unknown keys are refused, so that a typo is not a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AudioFormat(Message):
    """What the binary packets hold."""

    encoding: str = "pcm_s16le"
    sample_rate: float = Field(16_000, allow_inf_nan=False)
    channels: int = 1


class EnrolledSpeaker(Message):
    """A speaker known by name, with a recording of that speaker alone."""

    label: str = Field(min_length=1, max_length=64)
    audio_b64: str
    """A WAV, FLAC, Ogg/Opus or MP3 file in base64; 5 s or more of speech is best."""

    def audio(self) -> FloatArray:
        """The recording, mono float32 at 16 kHz.

        Raises:
            StreamError: `bad_enrolment`: not base64, or longer than `MAX_ENROLMENT_S`.
            AudioError: Not audio.
        """
        try:
            data = base64.b64decode(self.audio_b64, validate=True)
        except ValueError as err:
            raise StreamError("bad_enrolment", f"{self.label}: expected audio_b64 in base64 ({err})") from err
        samples_N = load_audio(data, name=self.label)
        if len(samples_N) > MAX_ENROLMENT_S * SAMPLE_RATE_HZ:
            raise StreamError(
                "bad_enrolment",
                f"{self.label}: expected at most {MAX_ENROLMENT_S:g} s, got {len(samples_N) / SAMPLE_RATE_HZ:.0f} s",
            )
        return samples_N


class DiarizationOptions(Message):
    """What is wanted of the diarizer."""

    max_speakers: int | None = None
    latency_s: float | None = Field(None, allow_inf_nan=False)
    speakers: list[EnrolledSpeaker] = Field(default_factory=list, max_length=16)


class Start(Message):
    """First message of a stream."""

    type: Literal["start"]
    audio: AudioFormat = AudioFormat()
    diarization: DiarizationOptions = DiarizationOptions()
    resume_token: str | None = None
    """Of a stream that was cut off: it goes on, with the settings it was opened with."""
    last_seq: int = Field(0, ge=0)
    """With a resume token: `seq` of the last segment or revision that came; those after it are told again."""
    ack: bool = False


class Finalize(Message):
    """Decide everything heard so far; the stream goes on."""

    type: Literal["finalize"]


class KeepAlive(Message):
    """Nothing, so that a quiet stream is not idle."""

    type: Literal["keepalive"]


class Update(Message):
    """Another wish of a stream that is under way."""

    type: Literal["update"]
    diarization: DiarizationOptions = DiarizationOptions()

    def check(self) -> None:
        """Refuse what cannot change within a stream.

        Raises:
            StreamError: `bad_update`.
        """
        wishes = self.diarization.model_fields_set
        if wishes:
            raise StreamError(
                "bad_update",
                f"expected nothing that is settled at the start, got {sorted(wishes)}; open another stream",
            )


class Close(Message):
    """No more audio; answer everything and close."""

    type: Literal["close"]


ClientMessage = Start | Finalize | KeepAlive | Update | Close
_ADAPTER: TypeAdapter[ClientMessage] = TypeAdapter(Annotated[ClientMessage, Field(discriminator="type")])
MAX_PARTS = 1000
"""Values of a message, about; many more would take long to read, and no message has so many."""
MAX_SHOWN = 80
TYPES = ("start", "finalize", "keepalive", "update", "close")


def shown(value: object) -> str:
    """What a client sent, as an error shows it: not longer than a line."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def parse(text: str) -> ClientMessage:
    """Read a text message.

    Raises:
        StreamError: `bad_json`, `unknown_type` or `bad_message`, with what was expected.
    """
    if text.count(",") + text.count("[") > MAX_PARTS:
        raise StreamError(
            "bad_message", f"expected at most {MAX_PARTS} values in a message; audio goes in binary packets"
        )
    try:
        value = json.loads(text)
    except RecursionError as err:
        raise StreamError("bad_message", f"expected a JSON object, got {text[:60]!r}") from err
    except ValueError as err:
        raise StreamError("bad_json", f"expected a JSON object, got {text[:60]!r}") from err
    if not isinstance(value, dict):
        raise StreamError("bad_json", f"expected a JSON object, got {type(value).__name__}")
    if value.get("type") not in TYPES:
        raise StreamError("unknown_type", f"expected a type of {list(TYPES)}, got {shown(value.get('type'))}")
    try:
        return _ADAPTER.validate_python(value)
    except ValidationError as err:
        fault = err.errors()[0]
        where = ".".join(str(part) for part in fault["loc"][1:])
        raise StreamError(
            "bad_message",
            f"{value['type']}: expected another {where[:60]} ({fault['msg']}), got {shown(fault['input'])}",
        ) from err


def settings_of(start: Start, *, default_latency_s: float) -> StreamSettings:
    """Settings of a stream from its first message; of compressed audio, those of what it is decoded to.

    Raises:
        StreamError: `bad_encoding` or `bad_rate`.
    """
    if start.audio.encoding in COMPRESSED:
        start = start.model_copy(update={"audio": AudioFormat(encoding="pcm_f32le")})
    if start.audio.encoding not in SAMPLE_BYTES:
        raise StreamError(
            "bad_encoding",
            f"expected encoding {[*sorted(SAMPLE_BYTES), *COMPRESSED]}, got {shown(start.audio.encoding)}",
        )
    if start.audio.sample_rate != int(start.audio.sample_rate) or not 8_000 <= start.audio.sample_rate <= 48_000:
        raise StreamError("bad_rate", f"expected a sample rate from 8000 to 48000 Hz, got {start.audio.sample_rate:g}")
    latency_s = start.diarization.latency_s
    return StreamSettings(
        start.audio.encoding,
        int(start.audio.sample_rate),
        start.audio.channels,
        default_latency_s if latency_s is None else latency_s,
        start.diarization.max_speakers,
    )


def event_message(event: Event, seq: int) -> dict[str, Any]:
    """An event as it goes out; which models a `model_changed` is about is added by whoever serves them."""
    if isinstance(event, Segment):
        return {"type": "segment", "seq": seq, **_segment(event), "overlap": event.overlap}
    if isinstance(event, ModelChanged):
        return {"type": "model_changed", "seq": seq, "at_s": round(event.at_s, 3), "speakers": list(event.speakers)}
    return {
        "type": "revision",
        "seq": seq,
        "segments": [_revised(segment) for segment in event.segments],
        "merged": [{"from": event.merged, "into": event.into}],
    }


def _segment(segment: Segment) -> dict[str, Any]:
    return {
        "id": segment.id,
        "rev": segment.rev,
        "speaker": segment.turn.speaker,
        "start_s": round(segment.turn.start_s, 3),
        "end_s": round(segment.turn.end_s, 3),
        "final": segment.final,
        "confidence": segment.turn.confidence,
    }


def _revised(segment: Segment) -> dict[str, Any]:
    return {"id": segment.id, "rev": segment.rev, "speaker": segment.turn.speaker, "final": segment.final}
