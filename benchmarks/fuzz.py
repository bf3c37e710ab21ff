"""Malformed messages, packets and frames over the three stream protocols, against a running server."""

import asyncio
import base64
import contextlib
import json
import os
import random
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

PATIENCE_S, ANSWER_S = 120.0, 3.0
"""Only a server that hangs takes so long; and after so long it may be waiting for the rest of a frame."""
PATHS = ("/v1/stream", "/ws/stream", "/v1/live/stream?token=x", "/v1/live/stream")
START: dict[str, Any] = {
    "type": "start",
    "audio": {"encoding": "pcm_s16le", "sample_rate": 16000, "channels": 1},
    "diarization": {"max_speakers": 4, "latency_s": 1.04, "speakers": [{"label": "a", "audio_b64": "AAAA"}]},
    "resume_token": None,
    "last_seq": 0,
    "ack": True,
}
WORDS = [
    START,
    {"type": "finalize"},
    {"type": "keepalive"},
    {"type": "close"},
    {"type": "update", "diarization": {"max_speakers": 2}},
    {"type": "audio_chunk", "data": [0.0, 0.1], "sequence": 0},
    {"type": "end_of_stream"},
]
ODD = [
    None, True, -1, 0, 1e308, -1e308, 2**63, 2**70, 0.5, "", "x" * 70_000, "é\u0000\ud83d", [], {}, [[]], [None],
    {"type": "start"}, "pcm_f32le", "ogg_opus", "webm_opus", [1e39], ["a"], [[0.1], [0.2, 0.3]], float("nan"),
]  # fmt: skip
FINE_CODES = {1000, 1001, 1002, 1007, 1009, 4400, 4401, 4408, 4413, 4429}
"""1011 and 4500 would be our own failures."""


@dataclass
class Report:
    """What came back."""

    sent: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    """Errors by their code, and connections by their close code."""
    faults: list[str] = field(default_factory=list)
    """What must not be: a traceback, a close code of our own failures, an error without words, a hang."""


class Fuzzer:
    """Sends so many malformed things.

    Args:
        port: Of a server on this machine.
        seed: Of what is drawn.
    """

    def __init__(self, port: int, seed: int) -> None:
        self.port = port
        self.random = random.Random(seed)
        self.report = Report()

    async def run(self, count: int, *, at_once: int = 16) -> Report:
        """Open connections until so many messages, packets and frames were sent."""

        async def work() -> None:
            while self.report.sent < count:
                await self._connection()

        await asyncio.gather(*(work() for _ in range(at_once)))
        return self.report

    async def _connection(self) -> None:
        path = self.random.choice(PATHS)
        frames: list[bytes] = []
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            if self.random.random() < 0.05:
                await self._broken_request(reader, writer)
                return
            key = base64.b64encode(os.urandom(16)).decode()
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
            )
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
            if b" 101 " not in head:
                self.report.faults.append(f"no handshake: {head[:60]!r}")
                return
            frames = [self._frame() for _ in range(self.random.randint(1, 4))]
            if self.random.random() < 0.6:
                frames.insert(0, _framed(1, json.dumps(START | {"diarization": {}}).encode()))
            for frame in frames:
                self.report.sent += 1
                writer.write(frame)
                await asyncio.sleep(0)
            writer.write(_framed(1, b'{"type": "close"}') + _framed(8, struct.pack(">H", 1000)))
            try:
                await self._answers(reader, ANSWER_S)
            except TimeoutError:  # it waits for the rest of what looked like a long frame
                writer.write_eof()
                await self._answers(reader, PATIENCE_S)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.report.codes["cut"] += 1
        except TimeoutError:
            told = [frame[:40].hex() for frame in frames]
            self.report.faults.append(f"{path}: neither answered nor closed within {PATIENCE_S:g} s: {told}")
        finally:
            writer.transport.abort()

    async def _broken_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.report.sent += 1
        writer.write(
            self.random.choice(
                [
                    os.urandom(300),
                    b"GET /v1/stream HTTP/1.1\r\nUpgrade: websocket\r\n\r\n",
                    b"GET /v1/stream HTTP/1.1\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 1\r\n\r\n",
                    b"GET / HTTP/9\r\n\r\n",
                    b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
                    b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n\x00\x01\x02",
                    b"GET " + b"/x" * 20_000 + b" HTTP/1.1\r\n\r\n",
                ]
            )
        )
        writer.write_eof()
        data = await asyncio.wait_for(reader.read(), PATIENCE_S)
        if b"Traceback" in data:
            self.report.faults.append(f"a traceback: {data[:200]!r}")
        self.report.codes[f"http {data[9:12].decode('latin-1') or 'cut'}"] += 1

    def _frame(self) -> bytes:
        kind = self.random.random()
        if kind < 0.45:
            return _framed(1, self._text())
        if kind < 0.7:
            return _framed(2, self._packet())
        return self._broken_frame()

    def _text(self) -> bytes:
        text = json.dumps(self._mutant(self.random.choice(WORDS)))
        cut = self.random.random()
        if cut < 0.1:
            text = text[: self.random.randint(0, len(text))]
        data = text.encode(errors="surrogatepass")
        if cut > 0.9:
            position = self.random.randint(0, len(data))
            data = data[:position] + os.urandom(self.random.randint(1, 8)) + data[position:]
        return data

    def _mutant(self, value: Any) -> Any:
        if self.random.random() < 0.1:
            return self.random.choice(ODD)
        if isinstance(value, dict):
            changed = {key: self._mutant(one) for key, one in value.items() if self.random.random() > 0.05}
            if self.random.random() < 0.1:
                changed[self.random.choice(["type", "colour", "", "audio"])] = self.random.choice(ODD)
            return changed
        if isinstance(value, list):
            return [self._mutant(one) for one in value] * self.random.choice([1, 1, 1, 40])
        return value

    def _packet(self) -> bytes:
        size = self.random.choice([0, 1, 2, 3, 5, 639, 3200, 65_536, 1_048_577])
        return self.random.choice([os.urandom(size), bytes(size), b"\xff" * size, b"OggS" + os.urandom(size)])

    def _broken_frame(self) -> bytes:
        return self.random.choice(
            [
                bytes([0x83, 0x80]) + os.urandom(4),  # reserved opcode
                bytes([0x81, 0x05]) + b"plain",  # not masked
                bytes([0xF1, 0x80]) + os.urandom(4),  # reserved bits
                bytes([0x81, 0xFF]) + struct.pack(">Q", 2**62) + os.urandom(4),  # huge
                bytes([0x89, 0xFE]) + struct.pack(">H", 126) + bytes(130),  # a long ping
                bytes([0x09, 0x80]) + os.urandom(4),  # a ping in fragments
                bytes([0x80, 0x80]) + os.urandom(4),  # a continuation of nothing
                bytes([0x01, 0x81]) + bytes(4) + b"{",  # a beginning without an end
                bytes([0x88, 0x81]) + bytes(4) + b"x",  # a close of one byte
                bytes([0x88, 0x82]) + bytes(4) + struct.pack(">H", 5),  # a close code there is not
                _framed(1, b"\xff\xfe\xfd"),
                os.urandom(self.random.randint(1, 40)),
            ]
        )

    async def _answers(self, reader: asyncio.StreamReader, patience_s: float) -> None:
        while True:
            try:
                opcode, payload = await asyncio.wait_for(_read_frame(reader), patience_s)
            except asyncio.IncompleteReadError:
                self.report.codes["cut"] += 1
                return
            if opcode == 8:
                code = struct.unpack(">H", payload[:2])[0] if len(payload) >= 2 else 1005
                self.report.codes[str(code)] += 1
                if code not in FINE_CODES:
                    self.report.faults.append(f"closed with {code}: {payload[2:]!r}")
                return
            if opcode == 1:
                self._check(payload)

    def _check(self, payload: bytes) -> None:
        if b"Traceback" in payload:
            self.report.faults.append(f"a traceback: {payload[:200]!r}")
        message: Any = None
        with contextlib.suppress(ValueError):
            message = json.loads(payload)
        if not isinstance(message, dict):
            self.report.faults.append(f"no JSON object: {payload[:80]!r}")
        elif message.get("type") == "error":
            self.report.codes[message.get("code", "live")] += 1
            if not message.get("message") or message.get("code") == "internal":
                self.report.faults.append(f"an error of ours: {payload[:200]!r}")


def _framed(opcode: int, payload: bytes) -> bytes:
    """A frame with a mask of zeros."""
    size = len(payload)
    if size < 126:
        head = bytes([0x80 | opcode, 0x80 | size])
    elif size < 65_536:
        head = bytes([0x80 | opcode, 0xFE]) + struct.pack(">H", size)
    else:
        head = bytes([0x80 | opcode, 0xFF]) + struct.pack(">Q", size)
    return head + bytes(4) + payload


async def _read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    first, second = await reader.readexactly(2)
    size = second & 0x7F
    if size == 126:
        [size] = struct.unpack(">H", await reader.readexactly(2))
    elif size == 127:
        [size] = struct.unpack(">Q", await reader.readexactly(8))
    return first & 0x0F, await reader.readexactly(size)
