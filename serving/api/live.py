"""pyannoteAI's live protocol: `POST /v1/live` gives a URL for one stream, which tells when speakers start and end."""

from typing import Any

import numpy as np
import orjson

from serving.api.connection import Talk
from serving.api.pace import Pace
from serving.api.service import Service
from serving.errors import DONE, told
from serving.transformer.engine import Stream
from voiceflow.errors import StreamError
from voiceflow.streaming.events import Segment
from voiceflow.streaming.messages import shown
from voiceflow.streaming.session import StreamSettings

ENCODINGS = ("pcm_f32le", "pcm_s16le")
PATH = "/v1/live/stream"
MAX_TEXT_CHARS = 1024


class LiveTalk(Talk):
    """One connection that speaks it: binary audio at 16 kHz in, `diarization_speaker_start` and `_end` out.

    Args:
        service: The process's streams.
        ticket: What the URL carries; it is good for one connection.
        encoding: `pcm_f32le` or `pcm_s16le`.
    """

    def __init__(self, service: Service, ticket: str, encoding: str) -> None:
        self.service = service
        self.ticket = ticket
        self.encoding = encoding
        self.stream: Stream | None = None
        self.pace = Pace(service.config)
        self._is_ending = False
        self._speakers: dict[str, str] = {}
        self._open: dict[str, str] = {}
        """Speakers of the segments that began and have not ended, by segment id."""

    def begin(self) -> None:
        """Take the ticket, then the stream begins."""
        if self.encoding not in ENCODINGS:
            raise StreamError("bad_encoding", f"expected encoding {list(ENCODINGS)}, got {shown(self.encoding)}")
        self.connection.run(self._begin())

    async def _begin(self) -> None:
        ticket_id = self.service.tokens.read("live", self.ticket)
        if not await self.service.redeem(ticket_id):
            raise StreamError("bad_token", "the URL was used before, or its time is over; POST /v1/live for another")
        settings = StreamSettings(self.encoding, latency_s=self.service.config.latency_s)
        self.stream = self.service.open(settings)
        self.stream.on_scored = self._scored

    def on_text(self, text: str) -> None:
        """`end_of_stream` is the only message."""
        if len(text) > MAX_TEXT_CHARS:
            raise StreamError(
                "too_large", f"expected a message of at most {MAX_TEXT_CHARS} characters, got {len(text)}"
            )
        try:
            value = orjson.loads(text)
        except ValueError as err:
            raise StreamError("bad_json", f"expected a JSON object, got {text[:60]!r}") from err
        kind = value.get("type") if isinstance(value, dict) else type(value).__name__
        if kind != "end_of_stream":
            raise StreamError("unknown_type", f"expected type 'end_of_stream', got {shown(kind)}")
        assert self.stream is not None
        self._is_ending = True
        self.stream.session.close()
        self.stream.wake()
        self._scored()

    def on_audio(self, data: bytes) -> None:
        """A frame of audio."""
        stream = self.stream
        assert stream is not None
        if self._is_ending:
            raise StreamError("closed", "expected no audio after end_of_stream")
        width = np.dtype("<f4" if self.encoding == "pcm_f32le" else "<i2").itemsize
        if len(data) == 0 or len(data) % width or len(data) > self.service.config.max_packet_bytes:
            raise StreamError(
                "bad_chunk",
                f"Invalid chunk size: expected a multiple of {width} bytes, "
                f"at most {self.service.config.max_packet_bytes}, got {len(data)}",
            )
        before = stream.session.num_samples
        stream.session.receive_audio(data)
        num_samples = stream.session.num_samples - before
        self.service.heard(stream, num_samples, self.connection.last_heard_s)
        self.pace.received(num_samples)
        if stream.session.waiting_s > self.service.config.max_queued_audio_s:
            self.connection.pause_reading()

    def _scored(self) -> None:
        stream = self.stream
        assert stream is not None
        if stream.failure is not None:
            self.connection.fail(stream.failure)
            return
        for event in stream.session.events_to_send():
            if isinstance(event, Segment):  # it has no word for a speaker who turns out to be another one
                self._tell(event)
        if self._is_ending and stream.session.is_done:
            self.connection.close(DONE)

    def _tell(self, segment: Segment) -> None:
        speaker = self._open.get(segment.id)
        if speaker is None:
            label = segment.turn.speaker
            speaker = self._speakers.setdefault(label, f"SPEAKER_{len(self._speakers):02d}")
            self._open[segment.id] = speaker
            self._say("diarization_speaker_start", segment.turn.start_s, speaker)
        if segment.final:
            del self._open[segment.id]
            self._say("diarization_speaker_end", segment.turn.end_s, speaker)

    def _say(self, kind: str, time_s: float, speaker: str) -> None:
        self.connection.send_json({"type": kind, "data": {"timestamp": round(time_s, 3), "speaker": speaker}})

    def error_message(self, error: Exception) -> dict[str, Any]:
        """See `Talk.error_message`."""
        return {"type": "error", "message": told(error)}

    async def go_away(self) -> None:
        """See `Talk.go_away`: speakers who speak stop where the audio does."""
        if self.stream is not None and not self._is_ending:
            self.stream.session.finalize()
            await self.stream.settle()
        await super().go_away()

    def sweep(self, now_s: float) -> None:
        """See `Talk.sweep`."""
        idle_s = self.service.config.idle_s
        stream, connection = self.stream, self.connection
        if connection.is_paused:
            queued_s = stream.session.waiting_s if stream is not None else 0.0
            if queued_s <= self.service.config.max_queued_audio_s and self.pace.may_receive(now_s):
                connection.resume_reading()
        elif not self.pace.may_receive(now_s):
            connection.pause_reading()
        elif now_s - connection.last_heard_s > idle_s:
            raise StreamError("idle", f"expected audio within {idle_s:g} s")

    def lost(self) -> None:
        """See `Talk.lost`."""
        if self.stream is not None:
            self.stream.leave()
