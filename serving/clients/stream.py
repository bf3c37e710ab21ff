"""A client of /v1/stream: sends audio at its pace, hands out messages as they come, comes back when it is cut off."""

import asyncio
import json
import queue
import random
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import websockets

from voiceflow.errors import PlatformError
from voiceflow.timebase import SAMPLE_RATE_HZ, last_sample_needed_s

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
FIRST_PATIENCE_S = 1.0
"""A server that was never there is not waited for."""
LOST = ("no_resume", "other_model", "bad_snapshot")
"""Errors that say that the stream is gone: another one begins where its last answer was."""
GOING_AWAY = 1001
LASTING_CODES = (4400, 4401, 4408, 4413)
"""Close codes after which trying again would end the same way."""
SAMPLE_BYTES = 2


class _CutOff(Exception):
    """The connection ended before the stream did."""

    def __init__(self, reason: str, *, retry_after_s: float | None = None, is_lost: bool = False) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
        self.is_lost = is_lost
        """Whether the stream cannot be resumed."""


@dataclass
class StreamClient:
    """One stream, over as many connections as it takes.

    A connection that is cut is made again after a pause that doubles each time and is drawn at random, with the
    resume token; audio that the server does not have is sent again. A server that goes without a store leaves no
    token: then another stream begins where the last ended, and its labels are new (`restarts` counts these).
    """

    url: str
    """``ws://host:8080/v1/stream``."""
    latency_s: float = 1.04
    """0.32, 0.64 or 1.04."""
    max_speakers: int | None = None
    packet_s: float = 0.1
    """Audio in one packet."""
    speed: float = 1.0
    """Of a recording: 1 is real time; 0 sends as fast as the server takes it."""
    speakers: Sequence[dict[str, str]] = ()
    """Known voices, as `diarization.speakers` of the protocol."""
    api_key: str | None = None
    """Sent as a bearer token."""
    patience_s: float = 60.0
    """So long it tries to come back before it gives up; 0 never tries."""
    keep_s: float = 120.0
    """How much of live audio is kept to be sent again."""

    emission_ms: list[float] = field(default_factory=list, init=False)
    """For each packet: from when the last sample its answer needs was due, to its acknowledgement."""
    started: dict[str, Any] = field(default_factory=dict, init=False)
    closed: dict[str, Any] = field(default_factory=dict, init=False)
    reconnects: int = field(default=0, init=False)
    restarts: int = field(default=0, init=False)
    answered_s: float = field(default=0.0, init=False)
    """Audio that was acknowledged, of the present stream."""

    async def run(self, audio: np.ndarray | AsyncIterable[np.ndarray]) -> AsyncIterator[dict[str, Any]]:
        """Send mono float32 audio at 16 kHz, a recording or pieces as they are heard; yields `segment`,
        `revision` and `model_changed` messages. A segment is told again with the same `id` and another `rev`.

        Raises:
            PlatformError: No server there for `patience_s`, or the server's error.
        """
        tape = _Recording(audio, self.speed) if isinstance(audio, np.ndarray) else _Live(audio, self.keep_s)
        pause_s, cut_at = FIRST_PAUSE_S, None
        token: str | None = None
        last_seq, offset_s = 0, 0.0
        try:
            while True:
                try:
                    async for message in self._connection(tape, token, last_seq, offset_s):
                        if message["type"] == "started":
                            pause_s, cut_at = FIRST_PAUSE_S, None
                            token = message["resume_token"]
                        elif message["type"] == "go_away":
                            token = message["resume_token"]
                            if token is None:
                                offset_s, last_seq = offset_s + message["audio_s"], 0
                                self.answered_s = 0.0
                                self.restarts += 1
                        else:
                            last_seq = max(last_seq, message["seq"])
                            yield _shifted(message, offset_s, self.restarts)
                    return
                except _CutOff as err:
                    if err.is_lost:
                        token, offset_s, last_seq = None, offset_s + self.answered_s, 0
                        self.answered_s = 0.0
                        self.restarts += 1
                    now_s = time.monotonic()
                    cut_at = now_s if cut_at is None else cut_at
                    is_expected = self.started or err.retry_after_s is not None
                    patience_s = self.patience_s if is_expected else min(FIRST_PATIENCE_S, self.patience_s)
                    if now_s - cut_at >= patience_s:
                        raise PlatformError(f"{self.url}: {err}; is `voiceflow serve` running there?") from err
                    await asyncio.sleep(err.retry_after_s or random.uniform(0.5, 1.0) * pause_s)
                    pause_s = min(LONGEST_PAUSE_S, 2.0 * pause_s)
                    self.reconnects += 1
        finally:
            tape.stop()

    async def _connection(
        self, tape: "_Tape", token: str | None, last_seq: int, offset_s: float
    ) -> AsyncIterator[dict[str, Any]]:
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else None
        sender: asyncio.Task[None] | None = None
        try:
            async with websockets.connect(
                self.url, max_size=2**22, compression=None, open_timeout=20, additional_headers=headers
            ) as socket:
                await socket.send(json.dumps(self._start(token, last_seq)))
                async for text in socket:
                    message = json.loads(text)
                    kind = message["type"]
                    if kind == "error":
                        self._refused(message, is_resumed=token is not None)
                    elif kind == "started":
                        self.started = self.started or message
                        sender = asyncio.create_task(self._send(socket, tape, offset_s, message["audio_s"]))
                        yield message
                    elif kind == "ack":
                        self.answered_s = message["audio_s"]
                        self._acknowledged(tape, message["audio_s"], offset_s)
                    elif kind == "closed":
                        self.closed = {**message, "audio_s": message["audio_s"] + offset_s}
                        return
                    elif kind != "heartbeat":
                        if kind == "go_away" and sender is not None:
                            sender.cancel()
                        yield message
                raise _CutOff("the server closed the stream before it was answered")
        except (OSError, TimeoutError, websockets.WebSocketException) as err:
            code = getattr(getattr(err, "rcvd", None), "code", None)
            if code in LASTING_CODES:
                raise PlatformError(f"{self.url}: the server closed the stream with {code}: {err}") from err
            # A server that goes has another beside it, or soon.
            again_s = random.uniform(0.5, 1.0) * FIRST_PAUSE_S if code == GOING_AWAY else None
            raise _CutOff(str(err) or type(err).__name__, retry_after_s=again_s) from err
        finally:
            if sender is not None:
                sender.cancel()

    def _start(self, token: str | None, last_seq: int) -> dict[str, Any]:
        return {
            "type": "start",
            "audio": {"encoding": "pcm_s16le", "sample_rate": SAMPLE_RATE_HZ, "channels": 1},
            "diarization": {
                "max_speakers": self.max_speakers,
                "latency_s": self.latency_s,
                "speakers": list(self.speakers) if token is None else [],
            },
            "resume_token": token,
            "last_seq": last_seq,
            "ack": True,
        }

    def _refused(self, message: dict[str, Any], *, is_resumed: bool) -> None:
        if is_resumed and message["code"] in LOST:
            raise _CutOff(message["message"], is_lost=True)
        if message.get("retry_after_s") is not None:
            raise _CutOff(message["message"], retry_after_s=message["retry_after_s"] * random.uniform(1.0, 1.5))
        raise PlatformError(f"the server refused the stream ({message['code']}): {message['message']}")

    async def _send(self, socket: Any, tape: "_Tape", offset_s: float, audio_s: float) -> None:
        position = round((offset_s + audio_s) * SAMPLE_RATE_HZ)
        size = max(1, round(self.packet_s * SAMPLE_RATE_HZ))
        try:
            while (pcm := await tape.read(position, size)) is not None:
                position += len(pcm) // SAMPLE_BYTES
                await socket.send(pcm)
            await socket.send(json.dumps({"type": "close"}))
        except websockets.ConnectionClosed:
            pass  # the reader of answers notices

    def _acknowledged(self, tape: "_Tape", audio_s: float, offset_s: float) -> None:
        needed_s = last_sample_needed_s(audio_s, self.latency_s) + offset_s
        due_s = tape.due_s(round(needed_s * SAMPLE_RATE_HZ))
        if due_s is not None:
            self.emission_ms.append(1000.0 * (time.monotonic() - due_s))

    def run_blocking(self, audio: np.ndarray) -> Iterator[dict[str, Any]]:
        """The same for programs without an event loop; it runs in a thread while messages are taken."""
        messages: queue.Queue[Any] = queue.Queue(maxsize=1000)

        async def follow() -> None:
            async for message in self.run(audio):
                messages.put(message)

        def work() -> None:
            try:
                asyncio.run(follow())
                messages.put(None)
            except Exception as err:
                messages.put(err)

        threading.Thread(target=work, daemon=True).start()
        while (message := messages.get()) is not None:
            if isinstance(message, Exception):
                raise message
            yield message


def _shifted(message: dict[str, Any], offset_s: float, restarts: int) -> dict[str, Any]:
    """A message of a stream that began anew, in the times of the whole; its ids and labels are told apart."""
    if not restarts:
        return message

    def told(row: dict[str, Any]) -> dict[str, Any]:
        row = {**row, "id": f"{restarts}:{row['id']}", "speaker": f"{row['speaker']}~{restarts}"}
        for name in ("start_s", "end_s"):
            if name in row:
                row[name] = round(row[name] + offset_s, 3)
        return row

    if message["type"] == "segment":
        return told(message)
    if message["type"] == "revision":
        merged = [{name: f"{label}~{restarts}" for name, label in row.items()} for row in message["merged"]]
        return {**message, "segments": [told(row) for row in message["segments"]], "merged": merged}
    if message["type"] == "model_changed":
        labels = [f"{label}~{restarts}" for label in message["speakers"]]
        return {**message, "at_s": round(message["at_s"] + offset_s, 3), "speakers": labels}
    return message


class _Tape(ABC):
    """Audio by position, as 16-bit samples, and when it was due."""

    def __init__(self) -> None:
        self._packets: deque[tuple[int, float]] = deque(maxlen=10_000)
        """Where packets ended, and when they were due."""

    @abstractmethod
    async def read(self, position: int, size: int) -> bytes | None:
        """The next samples from a position, when they are due; None at the end."""

    def due_s(self, position: int) -> float | None:
        """When the packet that holds the sample before a position was due."""
        while self._packets and self._packets[0][0] < position:
            self._packets.popleft()
        return self._packets[0][1] if self._packets else None

    @abstractmethod
    def stop(self) -> None:
        """Hear no more."""


def _pcm(samples_N: np.ndarray) -> bytes:
    return (np.clip(samples_N, -1.0, 1.0) * 32767.0).astype("<i2").tobytes()


class _Recording(_Tape):
    def __init__(self, samples_N: np.ndarray, speed: float) -> None:
        super().__init__()
        self._pcm = _pcm(samples_N)
        self._speed = speed
        self._began_s: float | None = None

    async def read(self, position: int, size: int) -> bytes | None:
        pcm = self._pcm[position * SAMPLE_BYTES : (position + size) * SAMPLE_BYTES]
        if not pcm:
            return None
        if self._began_s is None:
            self._began_s = time.monotonic()
        end = position + len(pcm) // SAMPLE_BYTES
        due_s = time.monotonic()
        if self._speed:
            # A late client is not the server's fault, an early due time not its merit.
            due_s = self._began_s + end / SAMPLE_RATE_HZ / self._speed
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        if not self._packets or end > self._packets[-1][0]:
            self._packets.append((end, due_s))
        return pcm

    def stop(self) -> None:
        """There is nothing that goes on."""


class _Live(_Tape):
    """Audio as it is heard; the last `keep_s` of it can be read again."""

    def __init__(self, pieces: AsyncIterable[np.ndarray], keep_s: float) -> None:
        super().__init__()
        self._begin = 0
        self._kept = bytearray()
        self._most = round(keep_s * SAMPLE_RATE_HZ)
        self._more = asyncio.Event()
        self._is_over = False
        self._failure: Exception | None = None
        self._task = asyncio.create_task(self._hear(pieces))

    async def _hear(self, pieces: AsyncIterable[np.ndarray]) -> None:
        try:
            async for samples_N in pieces:
                self._kept += _pcm(samples_N)
                spare = max(0, len(self._kept) // SAMPLE_BYTES - self._most)
                del self._kept[: spare * SAMPLE_BYTES]
                self._begin += spare
                self._packets.append((self._begin + len(self._kept) // SAMPLE_BYTES, time.monotonic()))
                self._more.set()
        except Exception as err:
            self._failure = err
        finally:
            self._is_over = True
            self._more.set()

    async def read(self, position: int, size: int) -> bytes | None:
        if position < self._begin:
            raise PlatformError(
                f"the stream was cut off for longer than the {self._most / SAMPLE_RATE_HZ:g} s of audio that are kept"
            )
        while True:
            start = (position - self._begin) * SAMPLE_BYTES
            if start < len(self._kept):
                return bytes(self._kept[start : start + size * SAMPLE_BYTES])
            if self._failure is not None:
                raise self._failure
            if self._is_over:
                return None
            self._more.clear()
            await self._more.wait()

    def stop(self) -> None:
        self._task.cancel()
