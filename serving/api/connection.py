"""One WebSocket: whole messages in, bounded sending out, and an error told before it closes."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine
from enum import IntEnum
from typing import Any

import orjson
from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport

from serving.errors import DONE, DRAINED, close_code, told, wire_code
from serving.transformer import census, metrics
from voiceflow.errors import StreamError, VoiceflowError

logger = logging.getLogger("voiceflow.streams")
CLOSE_TIMEOUT_S = 5.0
"""So long a client has to take the last messages and close its side."""
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Of a message in fragments; a larger single frame is refused by the WebSocket layer with 1009."""
MAX_FRAGMENTS = 1024
"""Of a message: as many as the largest one has in pieces of 16 KiB."""
MAX_FRAMES_PER_S, BURST_FRAMES = 1000.0, 200.0
"""Of one connection; more wait to be read. Microphones send 10 to 375 packets a second."""


class Pause(IntEnum):
    """Why nothing is read of a connection for a while."""

    TASK = 1
    """Something that takes time is done."""
    TALK = 2
    """More is here than its talk wants."""
    RATE = 4
    """Frames come faster than `MAX_FRAMES_PER_S`."""
    END = 8
    """The server goes."""


class Talk(ABC):
    """One protocol's side of a connection; whatever it raises is told to the client and ends the connection."""

    connection: "Connection"

    # The empty methods below are what protocols that have nothing to do then inherit: hence noqa B027.

    def begin(self) -> None:  # noqa: B027
        """The connection is open."""

    @abstractmethod
    def on_text(self, text: str) -> None:
        """A text message."""

    @abstractmethod
    def on_audio(self, data: bytes) -> None:
        """A binary message."""

    @abstractmethod
    def lost(self) -> None:
        """The connection is gone; called once."""

    async def go_away(self) -> None:
        """The server goes: end the connection within its grace."""
        self.connection.close(DRAINED, "drained")

    def sweep(self, now_s: float) -> None:  # noqa: B027
        """Called about every tenth of a second: what must happen when nothing comes."""

    def error_message(self, error: Exception) -> dict[str, Any]:
        """How this protocol tells of an error."""
        message = {"type": "error", "code": wire_code(error), "message": told(error)}
        retry_after_s = getattr(error, "retry_after_s", None)
        return message if retry_after_s is None else {**message, "retry_after_s": retry_after_s}


class _Over(Talk):
    """What is left to say when a connection is gone."""

    def on_text(self, text: str) -> None:
        """Nobody listens."""

    def on_audio(self, data: bytes) -> None:
        """Nobody listens."""

    def lost(self) -> None:
        """Once."""


OVER = _Over()


class Connection(WSListener):
    """A WebSocket as its talk sees it.

    Args:
        talk: The protocol that is spoken.
        model_metrics: Those of the champion.
        max_unsent_bytes: What may wait to be read by the client, in our process.
    """

    def __init__(self, talk: Talk, model_metrics: metrics.ModelMetrics, *, max_unsent_bytes: int) -> None:
        self.talk = talk
        self._metrics = model_metrics
        self.is_open = False
        """Whether messages go in and out: from the handshake to the first reason to close."""
        self.failure_code = ""
        """Why the client was told that it cannot go on, if it was."""
        self._pauses = 0
        """Reasons, as bits."""
        self._frames_left = BURST_FRAMES
        """What may be taken in before reading pauses."""
        self._frames_counted_s = 0.0
        self.last_heard_s = 0.0
        self.last_sent_s = 0.0
        self._max_unsent_bytes = max_unsent_bytes
        self._transport: WSTransport | None = None
        self._fragments = bytearray()
        self._num_fragments = 0
        """Of a message that has not come to its end."""
        self._is_text = False
        self._held: deque[tuple[bytes, bool]] = deque()
        """Came while reading paused: data, and whether it is text."""
        self._task: asyncio.Task[None] | None = None
        self._ending: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        talk.connection = self
        census.note("connection", self)
        census.note("talk", talk)

    # what the WebSocket layer calls

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Begin."""
        self._transport = transport
        transport.underlying_transport.set_write_buffer_limits(high=self._max_unsent_bytes)
        self.is_open = True
        self.last_heard_s = self.last_sent_s = self._frames_counted_s = self._loop.time()
        self._metrics.connections.inc()
        self._guarded(self.talk.begin)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Put messages together and hand them on."""
        kind = frame.msg_type
        if kind == WSMsgType.CLOSE:
            self.is_open = False
            if not transport.is_close_frame_sent:
                code = frame.get_close_code()
                transport.send_close(WSCloseCode.OK if code == WSCloseCode.NO_INFO else code)
            transport.disconnect()
            return
        if kind == WSMsgType.PONG or not self.is_open:
            return
        self.last_heard_s = self._loop.time()
        if kind == WSMsgType.PING:
            self._count_frame()
            transport.send_pong(frame.get_payload_as_bytes())
            return
        data = frame.get_payload_as_bytes()
        if kind != WSMsgType.CONTINUATION:
            self._is_text = kind == WSMsgType.TEXT
        if self._num_fragments or not frame.fin:
            self._count_frame()
            self._num_fragments += 1
            self._fragments += data
            if self._num_fragments > MAX_FRAGMENTS or len(self._fragments) > MAX_MESSAGE_BYTES:
                self.fail(
                    StreamError(
                        "too_large",
                        f"expected messages of at most {MAX_MESSAGE_BYTES} bytes in at most {MAX_FRAGMENTS} fragments",
                    )
                )
                return
            if not frame.fin:
                return
            data, self._fragments, self._num_fragments = bytes(self._fragments), bytearray(), 0
        if self._pauses or self._held:
            self._held.append((data, self._is_text))
        else:
            self._hand_on(data, is_text=self._is_text)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """The end."""
        self.is_open = False
        self._metrics.connections.dec()
        if self._ending is not None:
            self._ending.cancel()
        if self._task is not None:
            self._task.cancel()
        self.talk.lost()
        # Both refer to it, and nothing else is to keep it in memory.
        self._transport = self._task = self._ending = None
        self._held.clear()
        self.talk = OVER

    def pause_writing(self) -> None:
        """More waits to be read than may."""
        self.fail(StreamError("slow_reader", "answers are not being read; read faster and open another stream"))

    def resume_writing(self) -> None:
        """The client reads."""

    # what a talk calls

    @property
    def was_closed_by_client(self) -> bool:
        """Whether the client said that it is done with the connection, or answered that we are."""
        handshake = self._transport.close_handshake if self._transport is not None else None
        return handshake is not None and handshake.recv is not None

    def count_for(self, model_metrics: metrics.ModelMetrics) -> None:
        """Count it among those of another model."""
        if self.is_open:
            self._metrics.connections.dec()
            self._metrics = model_metrics
            self._metrics.connections.inc()

    def send(self, message: bytes) -> None:
        """Send a text message."""
        if self.is_open and self._transport is not None:
            self.last_sent_s = self._loop.time()
            self._transport.send(WSMsgType.TEXT, message)

    def send_json(self, message: dict[str, Any]) -> None:
        """Send a message as JSON."""
        self.send(orjson.dumps(message))

    def fail(self, error: Exception) -> None:
        """Tell of an error and close with its code; calling it again is harmless."""
        if not self.is_open:
            return
        if not isinstance(error, VoiceflowError):
            logger.error("a stream failed", exc_info=error)
        self.failure_code = wire_code(error)
        self._metrics.errors.inc()
        metrics.REFUSALS.labels(self.failure_code).inc()
        self.send_json(self.talk.error_message(error))
        self.close(close_code(error), self.failure_code)

    def close(self, code: int = DONE, reason: str = "") -> None:
        """Say no more, and disconnect once the client has read everything or its time is up."""
        if not self.is_open or self._transport is None:
            return
        self.is_open = False
        self._transport.send_close(code, reason.encode()[:100])
        transport = self._transport.underlying_transport
        self._ending = self._loop.call_later(CLOSE_TIMEOUT_S, transport.abort)
        if self._pauses:  # its close frame is to be read
            transport.resume_reading()

    @property
    def is_paused(self) -> bool:
        """Whether reading pauses."""
        return bool(self._pauses)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what takes time; messages that come meanwhile are taken in order afterwards."""
        assert self._task is None
        self.pause_reading(Pause.TASK)
        self._task = self._loop.create_task(self._run(work))

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as err:
            self.fail(err)
        self._task = None
        self.resume_reading(Pause.TASK)

    def pause_reading(self, why: Pause = Pause.TALK) -> None:
        """Hand on nothing more, and let TCP slow the client down."""
        if not self._pauses and self._transport is not None and not self._transport.is_disconnected:
            self._transport.underlying_transport.pause_reading()
        self._pauses |= why

    def resume_reading(self, why: Pause = Pause.TALK) -> None:
        """A reason to pause is over: where it was the last one, hand on messages again, those held first."""
        if not self._pauses & why:
            return
        self._pauses &= ~why
        while self._held and not self._pauses:
            data, is_text = self._held.popleft()
            self._hand_on(data, is_text=is_text)
        if not self._pauses and self._transport is not None and not self._transport.is_disconnected:
            self._transport.underlying_transport.resume_reading()

    def sweep(self, now_s: float) -> None:
        """See `Talk.sweep`."""
        if self.is_open:
            if self._pauses & Pause.RATE and self._may_take_frames(now_s):
                self.last_heard_s = now_s  # what was held counts from now on: that it waited is the client's doing
                self.resume_reading(Pause.RATE)
            self._guarded(lambda: self.talk.sweep(now_s))

    def _count_frame(self) -> None:
        """Of a bucket that fills with time, looked at only where it is empty."""
        self._frames_left -= 1.0
        if self._frames_left < 0.0 and not self._may_take_frames(self.last_heard_s):
            self.pause_reading(Pause.RATE)

    def _may_take_frames(self, now_s: float) -> bool:
        came = (now_s - self._frames_counted_s) * MAX_FRAMES_PER_S
        self._frames_left, self._frames_counted_s = min(BURST_FRAMES, self._frames_left + came), now_s
        return self._frames_left >= 0.0

    def _hand_on(self, data: bytes, *, is_text: bool) -> None:
        if not self.is_open:
            return
        self._count_frame()
        try:
            if is_text:
                self.talk.on_text(data.decode())
            else:
                self.talk.on_audio(data)
        except UnicodeDecodeError:
            self.fail(StreamError("bad_json", "expected text in UTF-8"))
        except Exception as err:
            self.fail(err)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as err:
            self.fail(err)
