"""The routes: /v1/stream, /ws/stream, /infer, /health, /ready; KServe's own stay beside them."""

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from serving.errors import DONE, close_code, http_status, wire_code
from serving.transformer import metrics
from serving.transformer.engine import Engine, Stream
from voiceflow.audio import check_finite, load_audio, resample
from voiceflow.audio import check_rate as check_sample_rate
from voiceflow.errors import StreamError, VoiceflowError
from voiceflow.streaming.lanes import Lane
from voiceflow.streaming.messages import Close, EnrolledSpeaker, Finalize, Start, event_message, parse, settings_of
from voiceflow.streaming.session import StreamSettings, Voice
from voiceflow.turns import to_json

logger = logging.getLogger("voiceflow.streams")
MAX_INFER_BYTES = 100 * 1024 * 1024
CLOSE_TIMEOUT_S = 5.0


class StreamingApp:
    """Routes over one engine.

    Args:
        engine: Holds the streams.
        variant: champion, challenger or shadow; told to clients.
    """

    def __init__(self, engine: Engine, *, variant: str = "champion") -> None:
        self.engine = engine
        self.config = engine.config
        self.model = {**engine.metadata.summary(), "variant": variant}
        metrics.set_model(engine.metadata.version, variant)

    def routes(self) -> list[BaseRoute]:
        """For an ASGI application's router."""
        return [
            WebSocketRoute("/v1/stream", self.stream),
            WebSocketRoute("/ws/stream", self.reference_stream),
            Route("/infer", self.infer, methods=["POST"]),
            Route("/health", self.health),
            Route("/ready", self.ready),
        ]

    async def health(self, request: Request) -> JSONResponse:
        """Whether the process lives."""
        return JSONResponse({"status": "ok", "streams": self.engine.num_streams, "model": self.model})

    async def ready(self, request: Request) -> JSONResponse:
        """Whether a new stream would be taken."""
        free = self.config.max_streams - self.engine.num_streams
        return JSONResponse({"ready": free > 0, "free_streams": free}, status_code=200 if free > 0 else 503)

    # /infer

    async def infer(self, request: Request) -> JSONResponse:
        """Turns of a short recording: JSON {"audio": [floats], "sample_rate_hz": 16000}, or the bytes of a file."""
        try:
            samples_N = await self._infer_audio(request)
            stream = self.engine.open(StreamSettings("pcm_f32le", latency_s=self.config.latency_s))
            try:
                stream.session.receive_samples(samples_N)
                stream.session.close()
                await self.engine.settle(stream)
                return JSONResponse(to_json(stream.session.turns, model=self.model))
            finally:
                self.engine.leave(stream)
        except Exception as err:
            if not isinstance(err, VoiceflowError):
                logger.exception("/infer failed")
            metrics.INFERENCE_ERRORS.inc()
            return JSONResponse(
                {"error": {"code": wire_code(err), "message": _told(err)}}, status_code=http_status(err)
            )

    async def _infer_audio(self, request: Request) -> np.ndarray:
        if int(request.headers.get("content-length") or 0) > MAX_INFER_BYTES:
            raise StreamError(
                "too_large", f"expected at most {MAX_INFER_BYTES // 2**20} MiB; stream longer audio to /v1/stream"
            )
        body = await request.body()
        if len(body) > MAX_INFER_BYTES:
            raise StreamError(
                "too_large", f"expected at most {MAX_INFER_BYTES // 2**20} MiB; stream longer audio to /v1/stream"
            )
        if "json" not in request.headers.get("content-type", ""):
            return await asyncio.to_thread(load_audio, body, name="body")
        try:
            value = json.loads(body)
            samples_N = np.asarray(value["audio"], np.float32)
            rate_hz = value.get("sample_rate_hz", 16_000)
        except (ValueError, TypeError, KeyError, AttributeError) as err:
            raise StreamError("bad_json", 'expected {"audio": [floats], "sample_rate_hz": 16000}') from err
        if samples_N.ndim != 1 or len(samples_N) == 0 or not isinstance(rate_hz, int | float):
            raise StreamError("bad_message", f"expected a list of at least one float, got shape {samples_N.shape}")
        return resample(check_finite(samples_N, "audio"), check_sample_rate(rate_hz))

    # /v1/stream

    async def stream(self, socket: WebSocket) -> None:
        """One stream of the native protocol, from start to closed."""
        await socket.accept()
        await self._serve(socket, self._native)

    async def _native(self, socket: WebSocket) -> None:
        message = await self._receive(socket)
        if isinstance(message, bytes):
            raise StreamError("audio_before_start", 'expected {"type": "start", ...} before audio')
        start = parse(message)
        if not isinstance(start, Start):
            raise StreamError("no_start", f"expected start first, got {start.type}")
        if start.resume_token is not None:
            raise StreamError(
                "no_resume", "this server does not keep closed streams; send resume_token null and start anew"
            )
        settings = settings_of(start, default_latency_s=self.config.latency_s)
        voices, refused = await self._enrol(start.diarization.speakers)
        stream = self.engine.open(replace(settings, enrolled=tuple(voices)))
        answers = _Answers(socket, stream, self.engine, ack=start.ack, max_unsent=self.config.max_unsent_messages)
        try:
            await socket.send_json(
                {
                    "type": "started",
                    "session_id": secrets.token_hex(8),
                    "resume_token": None,
                    "audio_s": 0.0,
                    "model": self.model,
                    "speakers_rejected": refused,
                    "limits": {
                        "max_packet_bytes": self.config.max_packet_bytes,
                        "idle_s": self.config.idle_s,
                        "max_speakers": settings.max_speakers or self.engine.metadata.num_slots,
                        "voices_beyond": "each is given to the speaker it is most like",
                    },
                }
            )
            sender = asyncio.create_task(answers.run())
            try:
                await self._listen_while(sender, self._listen(socket, stream, answers))
                stream.session.close()
                self.engine.wake()
                answers.ending = True
                stream.changed.set()
                await sender
                await socket.send_json(
                    {"type": "closed", "audio_s": stream.session.received_s, "speakers": stream.session.num_speakers}
                )
                await socket.close(DONE)
            finally:
                sender.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await sender
        finally:
            self.engine.leave(stream)

    async def _enrol(self, speakers: list[EnrolledSpeaker]) -> tuple[list[Voice], list[dict[str, str]]]:
        """Voices of the speakers a client names, and whom it named in vain, and why."""
        voices: list[Voice] = []
        refused: list[dict[str, str]] = []
        for speaker in speakers:
            try:
                if any(voice.label == speaker.label for voice in voices):
                    raise StreamError("bad_enrolment", f"{speaker.label}: named twice; expected one recording a label")
                samples_N = await asyncio.to_thread(speaker.audio)
                stream = self.engine.open(StreamSettings("pcm_f32le", latency_s=1.04, max_speakers=1))
                try:
                    stream.session.receive_samples(samples_N)
                    stream.session.close()
                    await self.engine.settle(stream)
                    voices.append(stream.session.voice(speaker.label))
                finally:
                    self.engine.leave(stream)
            except VoiceflowError as err:
                refused.append({"label": speaker.label, "reason": str(err)})
        return voices, refused

    @staticmethod
    async def _listen_while(sender: asyncio.Task[None], listening: Coroutine[Any, Any, None]) -> None:
        """Listen to the end, unless the sender fails first: its failure is told at once."""
        listener = asyncio.create_task(listening)
        try:
            await asyncio.wait({listener, sender}, return_when=asyncio.FIRST_COMPLETED)
            if not listener.done():
                sender.result()
            await listener
        finally:
            listener.cancel()

    async def _listen(self, socket: WebSocket, stream: Stream, answers: "_Answers") -> None:
        """Take packets and messages until close."""
        session = stream.session
        while True:
            message = await self._receive(socket)
            if isinstance(message, bytes):
                if len(message) > self.config.max_packet_bytes:
                    raise StreamError(
                        "too_large",
                        f"expected packets of at most {self.config.max_packet_bytes} bytes, got {len(message)}",
                    )
                before_s = session.received_s
                session.receive_audio(message)
                metrics.AUDIO_SECONDS.inc(session.received_s - before_s)
                answers.packet(session.received_s)
                self.engine.wake()
                # Too far ahead: stop reading, and TCP slows the client down.
                while session.waiting_s > self.config.max_queued_audio_s and stream.failure is None:
                    await asyncio.sleep(0.02)
                continue
            parsed = parse(message)
            if isinstance(parsed, Close):
                return
            if isinstance(parsed, Finalize):
                session.finalize()
                self.engine.wake()
            elif isinstance(parsed, Start):
                raise StreamError("started_already", "expected one start a stream; open another connection")

    async def _receive(self, socket: WebSocket) -> str | bytes:
        try:
            message = await asyncio.wait_for(socket.receive(), self.config.idle_s)
        except TimeoutError:
            raise StreamError("idle", f"expected audio or keepalive within {self.config.idle_s:g} s") from None
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1006))
        data = message.get("bytes")
        return data if data is not None else message["text"]

    async def _serve(self, socket: WebSocket, handler: Any) -> None:
        """Run a handler; whatever goes wrong is told on this stream and disturbs no other."""
        connections = metrics.CONNECTIONS
        connections.inc()
        try:
            await handler(socket)
        except WebSocketDisconnect:
            pass
        except Exception as err:
            if not isinstance(err, VoiceflowError):
                logger.exception("a stream failed")
            metrics.INFERENCE_ERRORS.inc()
            if socket.application_state is WebSocketState.CONNECTED:
                with contextlib.suppress(Exception):
                    async with asyncio.timeout(CLOSE_TIMEOUT_S):
                        await socket.send_json({"type": "error", "code": wire_code(err), "message": _told(err)})
                        await socket.close(close_code(err))
        finally:
            connections.dec()

    # /ws/stream

    async def reference_stream(self, socket: WebSocket) -> None:
        """The reference system's protocol: a reply with segments for each chunk of floats at 16 kHz."""
        await socket.accept()
        await self._serve(socket, self._reference)

    async def _reference(self, socket: WebSocket) -> None:
        stream = self.engine.open(StreamSettings("pcm_f32le", latency_s=self.config.latency_s))
        stable_s = 0.0
        try:
            while True:
                message = await self._receive(socket)
                started = time.perf_counter()
                samples_N, sequence = _reference_chunk(message)
                stream.session.receive_samples(samples_N)
                metrics.AUDIO_SECONDS.inc(len(samples_N) / 16_000)
                await self.engine.settle(stream)
                # The answer covers all audio so far: a copy of the session is closed in its stead.
                turns = await self._close_copy(stream)
                segments = [
                    {"speaker": turn.speaker, "start": turn.start_s, "end": turn.end_s, "confidence": turn.confidence}
                    for turn in turns
                    if turn.end_s > stable_s
                ]
                reply = {
                    "segments": segments,
                    "replaces_after_s": stable_s,
                    "latency_ms": round(1000 * (time.perf_counter() - started), 3),
                    "sequence": sequence,
                }
                # Turns that ended before the earliest open one will not change any more.
                stable_s = max(stable_s, stream.session.stable_s)
                await socket.send_json(reply)
        finally:
            self.engine.leave(stream)

    async def _close_copy(self, stream: Stream) -> list[Any]:
        twin = self.engine.twin(stream)
        try:
            twin.session.close(keep_labels=True)
            await self.engine.settle(twin)
            return twin.session.turns
        finally:
            self.engine.leave(twin)


def _reference_chunk(message: str | bytes) -> tuple[np.ndarray, Any]:
    if isinstance(message, bytes):
        raise StreamError(
            "bad_message", 'expected text {"type": "audio_chunk", "data": [floats], "sequence": n}, got binary'
        )
    try:
        value = json.loads(message)
    except ValueError as err:
        raise StreamError("bad_json", f"expected a JSON object, got {message[:60]!r}") from err
    if not isinstance(value, dict) or value.get("type") != "audio_chunk":
        kind = value.get("type") if isinstance(value, dict) else type(value).__name__
        raise StreamError("unknown_type", f"expected type 'audio_chunk', got {kind!r}")
    try:
        samples_N = np.asarray(value["data"], np.float32)
    except (KeyError, ValueError, TypeError) as err:
        raise StreamError("bad_message", "expected data: a list of floats at 16 kHz") from err
    if samples_N.ndim != 1:
        raise StreamError("bad_message", f"expected data: a flat list of floats, got shape {samples_N.shape}")
    return check_finite(samples_N, "data"), value.get("sequence")


def _told(err: Exception) -> str:
    """What a client is told; our own failures stay in the log."""
    return str(err) if isinstance(err, VoiceflowError) else "internal error; the stream cannot go on, open another"


class _Answers:
    """Sends what a stream has to say, in order, from its own task.

    Args:
        socket: Where to.
        stream: Whose answers.
        engine: Asked whether the stream is done.
        ack: Whether each packet is acknowledged once it is answered.
        max_unsent: Acknowledgements that may wait.
    """

    def __init__(self, socket: WebSocket, stream: Stream, engine: Engine, *, ack: bool, max_unsent: int) -> None:
        self._socket = socket
        self._stream = stream
        self._engine = engine
        self._ack = ack
        self._packets: deque[float] = deque()
        self._max_unsent = max_unsent
        self._seq = 0
        self.ending = False
        """Set when the client has sent its last packet."""

    def packet(self, end_s: float) -> None:
        """Note a packet's end, to acknowledge it; beyond `max_unsent` one acknowledgement covers several packets."""
        if not self._ack:
            return
        if len(self._packets) >= self._max_unsent:
            self._packets.pop()
        self._packets.append(end_s)

    async def run(self) -> None:
        """Send until the stream is done.

        Raises:
            StreamError: `slow_reader`: an answer could not be handed over in time.
        """
        session = self._stream.session
        while True:
            await self._stream.changed.wait()
            self._stream.changed.clear()
            if self._stream.failure is not None:
                raise self._stream.failure
            try:
                async with asyncio.timeout(self._engine.config.idle_s):
                    await self._send(session)
            except TimeoutError:
                raise StreamError(
                    "slow_reader", "answers are not being read; read faster and open another stream"
                ) from None
            if self.ending and session.is_done:
                await self._send(session)
                return

    async def _send(self, session: Lane) -> None:
        for event in session.events_to_send():
            self._seq += 1
            await self._socket.send_json(event_message(event, self._seq))
        while self._packets and session.answered_s + 1e-6 >= self._packets[0]:
            end_s = self._packets.popleft()
            await self._socket.send_json(
                {"type": "ack", "audio_s": end_s, "lag_ms": round(1000 * session.waiting_s, 1)}
            )
