"""A paced client of /v1/stream: sends audio as if it were spoken now, hands out messages as they come."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import numpy as np

from voiceflow.errors import PlatformError
from voiceflow.timebase import last_sample_needed_s


class StreamClient:
    """One stream.

    Args:
        url: ``ws://host:8080/v1/stream``.
        latency_s: 0.32, 0.64 or 1.04.
        max_speakers: Most speakers to tell apart.
        packet_s: Audio in one packet.
        speed: 1 is real time; 0 sends as fast as the server takes it.
        speakers: Known voices, as `diarization.speakers` of the protocol.
    """

    def __init__(
        self,
        url: str,
        *,
        latency_s: float = 1.04,
        max_speakers: int | None = None,
        packet_s: float = 0.1,
        speed: float = 1.0,
        speakers: Sequence[dict[str, str]] = (),
    ) -> None:
        self.url = url
        self.latency_s = latency_s
        self.max_speakers = max_speakers
        self.packet_s = packet_s
        self.speed = speed
        self.speakers = list(speakers)
        self.emission_ms: list[float] = []
        """For each packet: from when the last sample its answer needs was due, to its acknowledgement."""
        self.started: dict[str, Any] = {}
        self.closed: dict[str, Any] = {}
        self._due: list[tuple[float, float]] = []

    async def run(self, samples_N: np.ndarray) -> AsyncIterator[dict[str, Any]]:
        """Send mono float32 audio at 16 kHz and yield `segment` and `revision` messages.

        Raises:
            PlatformError: No server there, or the server's error.
        """
        import websockets

        pcm = (np.clip(samples_N, -1.0, 1.0) * 32767.0).astype("<i2").tobytes()
        try:
            async with websockets.connect(self.url, max_size=2**22, compression=None, open_timeout=20) as socket:
                await socket.send(json.dumps(self._start()))
                self.started = self._checked(await socket.recv())
                sender = asyncio.create_task(self._send(socket, pcm))
                try:
                    async for text in socket:
                        message = self._checked(text)
                        if message["type"] == "ack":
                            self._acknowledged(message)
                        elif message["type"] == "closed":
                            self.closed = message
                        else:
                            yield message
                    if not self.closed:
                        raise PlatformError(f"{self.url}: the server closed the stream before it was answered")
                finally:
                    sender.cancel()
        except (OSError, TimeoutError, websockets.WebSocketException) as err:
            raise PlatformError(f"{self.url}: {err}; is `voiceflow serve` running there?") from err

    def _start(self) -> dict[str, Any]:
        return {
            "type": "start",
            "audio": {"encoding": "pcm_s16le", "sample_rate": 16000, "channels": 1},
            "diarization": {"max_speakers": self.max_speakers, "latency_s": self.latency_s, "speakers": self.speakers},
            "ack": True,
        }

    def _checked(self, text: str | bytes) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(text)
        if message["type"] == "error":
            raise PlatformError(f"the server refused the stream ({message['code']}): {message['message']}")
        return message

    async def _send(self, socket: Any, pcm: bytes) -> None:
        started = time.monotonic()
        for end_s, packet in _packets(pcm, self.packet_s):
            due = started + (end_s / self.speed if self.speed else 0.0)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            # A late client is not the server's fault, an early due time not its merit.
            self._due.append((end_s, due if self.speed else time.monotonic()))
            await socket.send(packet)
        await socket.send(json.dumps({"type": "close"}))

    def _acknowledged(self, message: dict[str, Any]) -> None:
        needed_s = last_sample_needed_s(message["audio_s"], self.latency_s)
        moment = time.monotonic()
        for end_s, due in self._due:
            if end_s + 1e-6 >= needed_s:
                self.emission_ms.append(1000.0 * (moment - due))
                return


def _packets(pcm: bytes, packet_s: float) -> Iterator[tuple[float, bytes]]:
    size = max(2, int(packet_s * 16_000) * 2)
    for start in range(0, len(pcm), size):
        packet = pcm[start : start + size]
        yield (start + len(packet)) / 32_000, packet
