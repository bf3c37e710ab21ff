"""Load: many paced streams from one process, cheap enough not to be what is measured.

Every packet has the moment at which its last sample would have been spoken. Time to an answer runs from
the moment of the packet that holds the last sample the answer needs, sent late or not: a client or
server that stalls cannot hide the answers it delays (Tene, How not to measure latency, 2013).
"""

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from voiceflow.timebase import SAMPLE_RATE_HZ, last_sample_needed_s

SLOT_S = 0.01
"""Packets of streams that are due within so much time are sent together."""
END_S = 15.0
"""So long the last answers are waited for."""
LATE_MS = 1000.0


@dataclass
class Protocol:
    """How a stream is spoken: what is sent at first, what a packet is, and what an answer tells.

    The three that the server speaks are in `PROTOCOLS`.
    """

    path: str
    first: Callable[[float], str | None]
    """First message for a latency in seconds, if there is one."""
    packet: Callable[[bytes, int], bytes | str]
    """What goes out for s16le audio and the packet's number."""
    last: str | None
    """Message that ends the stream."""
    answered_s: Callable[[dict[str, Any], "Load"], float | None]
    """Audio that a message answers, in seconds from the start."""
    looks_ahead: bool = True
    """Whether an answer needs the latency's look-ahead; else it comes with each packet."""
    answers_packets: bool = True
    """Whether each packet is answered, so that one not answered is lost."""
    ticket: str | None = None
    """Where a URL for each stream is to be had by POST."""


def _native_first(latency_s: float) -> str:
    audio = {"encoding": "pcm_s16le", "sample_rate": SAMPLE_RATE_HZ, "channels": 1}
    return json.dumps({"type": "start", "audio": audio, "diarization": {"latency_s": latency_s}, "ack": True})


def _floats(pcm: bytes, sequence: int) -> str:
    samples_N = np.frombuffer(pcm, "<i2") / 32768.0
    return json.dumps({"type": "audio_chunk", "data": np.round(samples_N, 4).tolist(), "sequence": sequence})


PROTOCOLS = {
    "native": Protocol(
        "/v1/stream",
        _native_first,
        lambda pcm, sequence: pcm,
        '{"type":"close"}',
        lambda message, load: message["audio_s"] if message.get("type") == "ack" else None,
    ),
    "reference": Protocol(
        "/ws/stream",
        lambda latency_s: None,
        _floats,
        None,
        lambda message, load: (message["sequence"] + 1) * load.packet_s if "sequence" in message else None,
        looks_ahead=False,
    ),
    "live": Protocol(
        "",
        lambda latency_s: None,
        lambda pcm, sequence: pcm,
        '{"type":"end_of_stream"}',
        lambda message, load: (
            message["data"]["timestamp"] + load.min_on_s if message.get("type") == "diarization_speaker_start" else None
        ),
        answers_packets=False,
        ticket="/v1/live",
    ),
}


@dataclass(eq=False)
class LoadStream(WSListener):
    """One paced stream and what came back."""

    load: "Load"
    number: int
    started_s: float = 0.0
    """Moment of its first sample."""
    sent: int = 0
    emission_ms: list[float] = field(default_factory=list)
    segments: dict[str, dict[str, Any]] = field(default_factory=dict)
    failure: str | None = None
    is_ready: bool = False
    is_closed: bool = False
    transport: WSTransport | None = None

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Say the first message."""
        self.transport = transport
        first = self.load.protocol.first(self.load.latency_s)
        if first is None:
            self.is_ready = True
        else:
            transport.send(WSMsgType.TEXT, first.encode())

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Note an answer."""
        if frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()
            return
        if frame.msg_type != WSMsgType.TEXT:
            return
        moment_s = time.monotonic()
        message = json.loads(frame.get_payload_as_bytes())
        kind = message.get("type")
        if kind == "started":
            self.is_ready = True
        elif kind == "segment":
            self.segments[message["id"]] = message
        elif kind == "error":
            self.failure = f"{message.get('code')}: {message.get('message')}"
        elif kind == "diarization_speaker_end":
            self.segments[str(len(self.segments))] = message
        answered_s = self.load.protocol.answered_s(message, self.load)
        # The last packets are answered at the end, without the audio their answers would need.
        if answered_s is not None and self.load.needed_s(answered_s) <= self.load.seconds + 1e-6:
            self.emission_ms.append(1000.0 * (moment_s - self.started_s - self.load.needed_s(answered_s)))

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """Note the end."""
        self.is_closed = True

    def send_next(self) -> None:
        """Send the packet that is due."""
        if self.transport is None or self.is_closed or not self.is_ready:
            return
        pcm = self.load.pcm_of(self.number, self.sent)
        packet = self.load.protocol.packet(pcm, self.sent)
        kind = WSMsgType.BINARY if isinstance(packet, bytes) else WSMsgType.TEXT
        self.transport.send(kind, packet if isinstance(packet, bytes) else packet.encode())
        self.sent += 1


class Load:
    """Many streams at once.

    Args:
        url: ``ws://host:8080``; the protocol's path is added.
        protocol: A key of `PROTOCOLS`.
        samples_N: Mono float32 audio at 16 kHz; each stream begins elsewhere in it.
        streams: How many.
        seconds: Audio of each.
        packet_s: Audio in one packet.
        latency_s: 0.32, 0.64 or 1.04.
    """

    def __init__(
        self,
        url: str,
        protocol: str,
        samples_N: np.ndarray,
        *,
        streams: int,
        seconds: float,
        packet_s: float = 0.1,
        latency_s: float = 1.04,
    ) -> None:
        self.protocol = PROTOCOLS[protocol]
        self.url = url.rstrip("/") + self.protocol.path
        self._http = "http" + url.rstrip("/").removeprefix("ws")
        self.min_on_s = 0.0
        """Speech after which somebody is said to speak; the server tells it of its model."""
        self.latency_s = latency_s
        self.packet_s = packet_s
        self.num_packets = round(seconds / packet_s)
        self.seconds = self.num_packets * packet_s
        self.streams = [LoadStream(self, number) for number in range(streams)]
        self.on_sent: Callable[[], object] = lambda: None
        """Called when all audio was sent and all streams are there still."""
        self._packet_bytes = int(packet_s * SAMPLE_RATE_HZ) * 2
        pcm = (np.clip(samples_N, -1.0, 1.0) * 32767.0).astype("<i2").tobytes()
        self._pcm = pcm + pcm[: self._packet_bytes]
        self._length = len(pcm)

    def pcm_of(self, number: int, packet: int) -> bytes:
        """Audio of one packet of one stream."""
        start = (number * 7919 * 2 * 160 + packet * self._packet_bytes) % self._length // 2 * 2
        return self._pcm[start : start + self._packet_bytes]

    def needed_s(self, answered_s: float) -> float:
        """When the last sample that an answer needs was spoken and its packet full, from the stream's start."""
        if self.protocol.looks_ahead:
            answered_s = last_sample_needed_s(answered_s, self.latency_s)
        return float(np.ceil(round(answered_s / self.packet_s, 6))) * self.packet_s

    @property
    def num_expected(self) -> int:
        """Answers to expect of one stream while it sends."""
        if not self.protocol.answers_packets:
            return 0
        ends_s = ((packet + 1) * self.packet_s for packet in range(self.num_packets))
        return sum(self.needed_s(end_s) <= self.seconds + 1e-6 for end_s in ends_s)

    async def run(self) -> None:
        """Connect all, send everything at its time, and wait for what is owed."""
        gate = asyncio.Semaphore(64)
        if self.protocol.ticket is not None:
            model = await asyncio.to_thread(_ask, f"{self._http}/v1/model", None)
            self.min_on_s = model["metadata"]["decision"]["min_on_s"]

        async def connect(stream: LoadStream) -> None:
            async with gate:
                try:
                    url = self.url
                    if self.protocol.ticket is not None:
                        body = {"encoding": "pcm_s16le"}
                        url = (await asyncio.to_thread(_ask, self._http + self.protocol.ticket, body))["url"]
                    await ws_connect(lambda: stream, url, websocket_handshake_timeout=20)
                except Exception as err:
                    stream.failure, stream.is_closed = f"no connection: {err}", True

        await asyncio.gather(*(connect(stream) for stream in self.streams))
        await self._until(lambda stream: stream.is_ready or stream.is_closed or stream.failure is not None)
        await self._send_all()
        self.on_sent()
        if self.protocol.last is not None:
            for stream in self.streams:
                if stream.transport is not None and not stream.is_closed:
                    stream.transport.send(WSMsgType.TEXT, self.protocol.last.encode())
            await self._until(lambda stream: stream.is_closed)
        else:
            await self._until(lambda stream: stream.is_closed or len(stream.emission_ms) >= self.num_expected)
        for stream in self.streams:
            if stream.transport is not None and not stream.is_closed:
                stream.transport.disconnect(graceful=False)

    async def _until(self, condition: Callable[[LoadStream], bool]) -> None:
        deadline_s = time.monotonic() + END_S
        while time.monotonic() < deadline_s and not all(condition(stream) for stream in self.streams):
            await asyncio.sleep(0.05)

    async def _send_all(self) -> None:
        """Packets in slots: streams begin spread over the length of a packet."""
        per_packet = max(1, round(self.packet_s / SLOT_S))
        slots: list[list[LoadStream]] = [[] for _ in range(per_packet)]
        for stream in self.streams:
            slots[stream.number % per_packet].append(stream)
        begin_s = time.monotonic() + 0.1
        for index, slot in enumerate(slots):
            for stream in slot:
                stream.started_s = begin_s + index * self.packet_s / per_packet
        for tick in range(self.num_packets * per_packet):
            due_s = begin_s + self.packet_s + tick * self.packet_s / per_packet
            pause_s = due_s - time.monotonic()
            if pause_s > 0:
                await asyncio.sleep(pause_s)
            elif tick % 8 == 0:
                await asyncio.sleep(0.0)
            for stream in slots[tick % per_packet]:
                stream.send_next()

    def result(self) -> dict[str, Any]:
        """What came back, in figures."""
        emission_ms = np.array([value for stream in self.streams for value in stream.emission_ms])
        expected = self.num_expected
        held = [stream for stream in self.streams if stream.is_ready]
        lost = sum(max(0, expected - len(stream.emission_ms)) for stream in held)
        failures = [stream.failure for stream in held if stream.failure]
        refused = [stream.failure or "no answer" for stream in self.streams if not stream.is_ready]
        row: dict[str, Any] = {
            "answers": len(emission_ms),
            "lost": lost,
            "late": int((emission_ms > LATE_MS).sum()),
            "failed_streams": len(failures),
            "refused_streams": len(refused),
            "first_failure": next(iter([*failures, *refused]), None),
            "segments": sum(len(stream.segments) for stream in self.streams),
        }
        if len(emission_ms):
            p50, p95, p99 = (round(float(value), 2) for value in np.percentile(emission_ms, [50, 95, 99]))
            row["emission_ms"] = {"p50": p50, "p95": p95, "p99": p99, "max": round(float(emission_ms.max()), 2)}
        return row


def _ask(url: str, body: dict[str, Any] | None) -> dict[str, Any]:
    """The JSON answer to a GET, or to a POST of JSON."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=20) as reply:
        answer: dict[str, Any] = json.load(reply)
        return answer


class Watch:
    """CPU time and memory of a server on this machine, and what the machine had to give.

    Args:
        port: Where the server listens; a server elsewhere is not watched.
    """

    def __init__(self, port: int) -> None:
        import psutil

        self._processes = [one for one in psutil.process_iter() if _listens(one, port)]
        for process in tuple(self._processes):
            self._processes += [child for child in process.children(recursive=True) if child not in self._processes]
        self._before = self._full = self._read()

    def look(self) -> None:
        """The server holds as much as it ever will."""
        self._full = self._read()

    def result(self, stream_seconds: float) -> dict[str, Any]:
        """What was used since the watch began."""
        before, after = self._before, self._read()
        wall_s = after["wall_s"] - before["wall_s"]
        row: dict[str, Any] = {
            "cores_stolen": round((after["steal_s"] - before["steal_s"]) / wall_s, 3),
            "cores_idle": round((after["idle_s"] - before["idle_s"]) / wall_s, 3),
            "client_cores": round((after["client_s"] - before["client_s"]) / wall_s, 3),
        }
        if self._processes:
            server_s = after["server_s"] - before["server_s"]
            row["server_cores"] = round(server_s / wall_s, 3)
            row["server_us_per_stream_second"] = round(1e6 * server_s / stream_seconds, 1)
            row["server_pss_mb"] = round(max(after["pss_mb"], self._full["pss_mb"]), 1)
            row["server_empty_mb"], row["server_full_mb"] = (round(one["uss_mb"], 1) for one in (before, self._full))
            row["server_processes"] = len(self._processes)
        return row

    def _read(self) -> dict[str, float]:
        import psutil

        machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
        times = [process.cpu_times() for process in self._processes if process.is_running()]
        memory = [process.memory_full_info() for process in self._processes if process.is_running()]
        return {
            "wall_s": time.monotonic(),
            "steal_s": getattr(machine, "steal", 0.0),
            "idle_s": machine.idle,
            "client_s": own.user + own.system,
            "server_s": sum(one.user + one.system for one in times),
            "pss_mb": sum(one.pss for one in memory) / 2**20,
            "uss_mb": sum(one.uss for one in memory) / 2**20,
        }


def _listens(process: Any, port: int) -> bool:
    import psutil

    try:
        return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in process.connections("inet"))
    except psutil.Error:
        return False
