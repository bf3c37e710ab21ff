"""`/ws/stream`: the reference system's protocol, a reply with segments for each chunk of floats at 16 kHz."""

import time
from typing import Any

import numpy as np
import orjson

from serving.api.connection import Talk
from serving.api.long_json import read_json
from serving.api.pace import Pace
from serving.api.service import Service
from serving.transformer.engine import Stream
from voiceflow.audio import check_finite
from voiceflow.errors import StreamError
from voiceflow.streaming.messages import shown
from voiceflow.streaming.session import StreamSettings
from voiceflow.turns import Turn


class ReferenceTalk(Talk):
    """One connection that speaks it.

    Args:
        service: The process's streams.
        shown: The key or JWT that came with the request.
    """

    def __init__(self, service: Service, shown: str | None) -> None:
        self.service = service
        self._shown = shown
        self.stream: Stream | None = None
        self.stable_s = 0.0
        self.pace = Pace(service.config)

    def begin(self) -> None:
        """The stream begins with the connection."""
        self.connection.run(self._begin(self.service.access.check(self._shown)))

    async def _begin(self, owner: str) -> None:
        config = self.service.config
        await self.service.enter(owner)
        self.stream = self.service.open(StreamSettings("pcm_f32le", latency_s=config.latency_s))

    def on_text(self, text: str) -> None:
        """A chunk; the next one waits for its reply."""
        self.connection.run(self._reply(text))

    def on_audio(self, data: bytes) -> None:
        """Not in this protocol."""
        raise StreamError(
            "bad_message", 'expected text {"type": "audio_chunk", "data": [floats], "sequence": n}, got binary'
        )

    async def _reply(self, text: str) -> None:
        stream = self.stream
        assert stream is not None
        samples_N, sequence = await _chunk(text)
        started_s = time.perf_counter()
        stream.session.receive_samples(samples_N)
        self.service.heard(stream, len(samples_N), self.connection.last_heard_s)
        self.pace.received(len(samples_N))
        await stream.settle()
        segments = [
            {"speaker": turn.speaker, "start": turn.start_s, "end": turn.end_s, "confidence": turn.confidence}
            for turn in await self._turns_so_far(stream)
            if turn.end_s > self.stable_s
        ]
        reply = {
            "segments": segments,
            "replaces_after_s": self.stable_s,
            "latency_ms": round(1000 * (time.perf_counter() - started_s), 3),
            "sequence": sequence,
        }
        # Turns that ended before the earliest open one will not change any more.
        self.stable_s = max(self.stable_s, stream.session.stable_s)
        self.connection.send(orjson.dumps(reply))
        await self.pace.wait()

    async def _turns_so_far(self, stream: Stream) -> list[Turn]:
        """The answer covers all audio so far: a copy of the stream is closed in its stead."""
        twin = stream.engine.twin(stream)
        try:
            twin.session.close(keep_labels=True)
            await twin.settle()
            return twin.session.turns
        finally:
            twin.leave()

    def sweep(self, now_s: float) -> None:
        """See `Talk.sweep`."""
        idle_s = self.service.config.idle_s
        if not self.connection.is_paused and now_s - self.connection.last_heard_s > idle_s:
            raise StreamError("idle", f"expected an audio_chunk within {idle_s:g} s")

    def lost(self) -> None:
        """See `Talk.lost`."""
        if self.stream is not None:
            self.stream.leave()


async def _chunk(text: str) -> tuple[np.ndarray, Any]:
    try:
        value = await read_json(text, "data")
    except ValueError as err:
        raise StreamError("bad_json", f"expected a JSON object, got {text[:60]!r}") from err
    if not isinstance(value, dict) or value.get("type") != "audio_chunk":
        kind = value.get("type") if isinstance(value, dict) else type(value).__name__
        raise StreamError("unknown_type", f"expected type 'audio_chunk', got {shown(kind)}")
    try:
        samples_N = np.asarray(value["data"], np.float32)
    except (KeyError, ValueError, TypeError, OverflowError) as err:
        raise StreamError("bad_message", "expected data: a list of floats at 16 kHz") from err
    if samples_N.ndim != 1:
        raise StreamError("bad_message", f"expected data: a flat list of floats, got shape {samples_N.shape}")
    return check_finite(samples_N, "data"), value.get("sequence")
