"""`python -m benchmarks.churn`: streams that come and go by the thousand, and what is left of them in memory.

All three protocols, a file at a time, WebM; regular ends, cut connections, resumed ones, refused ones, and some that are
cut in the middle of a message. Memory is shown after every thousand; at the end no object of a stream may be left.
"""

import argparse
import asyncio
import io
import json
import random
import sys
import time
import wave
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import psutil
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from benchmarks.items import IS_TINY
from benchmarks.server import Server
from voiceflow.audio import load_audio
from voiceflow.runtime import pretrained_path

PACKET_BYTES = 3200
PATIENCE_S = 120.0
SETTLED, MOST_GROWTH_MB = 2000, 20.0
"""Memory may not grow by more than so much once so many streams were there."""
LEFT_S = 150.0
"""So long after the last stream objects may be there: those that were cut off wait for their clients."""
Message = dict[str, Any]


class Line(WSListener):
    """One connection: messages as they come."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self.transport: WSTransport | None = None

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Open."""
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """A message, or the end."""
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(1000)
            transport.disconnect()
        elif frame.msg_type == WSMsgType.TEXT:
            self.messages.put_nowait(json.loads(frame.get_payload_as_bytes()))

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """Gone."""
        self.transport = None
        self.messages.put_nowait(None)

    def send(self, message: Message | str | bytes) -> None:
        """Send, if anybody is there."""
        if self.transport is None:
            return
        if isinstance(message, bytes):
            self.transport.send(WSMsgType.BINARY, message)
        else:
            text = message if isinstance(message, str) else json.dumps(message)
            self.transport.send(WSMsgType.TEXT, text.encode())

    async def until(self, *kinds: str) -> Message | None:
        """The next message of a type; None where the connection ends before."""
        while (message := await asyncio.wait_for(self.messages.get(), PATIENCE_S)) is not None:
            if message.get("type") in kinds:
                return message
        return None

    def cut(self) -> None:
        """Gone without a word."""
        if self.transport is not None:
            self.transport.underlying_transport.abort()


@dataclass
class Churn:
    """Streams against a server.

    Args:
        server: It.
        samples_N: What is said, 16-bit samples at 16 kHz; each stream is a piece of it.
        seconds: Of audio in a stream, at most.
        seed: Of what is drawn.
        leaves: Whether some are cut off and never come back; the server waits a minute for these.
    """

    server: Server
    samples_N: np.ndarray
    seconds: float = 1.5
    seed: int = 0
    leaves: bool = True
    done: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._pcm = self.samples_N.astype("<i2").tobytes()
        self._webm = webm(self.samples_N[: int(16_000 * self.seconds)])
        self._kinds: dict[str, tuple[int, Callable[[bytes], Awaitable[None]]]] = {
            "regular": (16, self._regular),
            "resumed": (6, self._resumed),
            "refused": (4, self._refused),
            "mid message": (2, self._mid_message),
            "webm": (2, self._compressed),
            "reference": (4, self._reference),
            "live": (4, self._live),
            "infer": (2, self._infer),
        }
        if self.leaves:
            self._kinds["cut off"] = 1, self._cut_off

    async def run(self, number: int, *, at_once: int, on_thousand: Callable[[int], None]) -> None:
        """So many streams, some at once."""
        names, weights = list(self._kinds), [weight for weight, _ in self._kinds.values()]
        drawn = self._random.choices(names, weights, k=number)
        ends = iter(range(1, number + 1))
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.server.http_port}", timeout=PATIENCE_S
        ) as self._http:

            async def work() -> None:
                while drawn:
                    name = drawn.pop()
                    start = self._random.randrange(0, len(self._pcm) // 2 - int(16_000 * self.seconds)) * 2
                    pcm = self._pcm[start : start + int(self._random.uniform(0.3, 1.0) * self.seconds * 16_000) * 2]
                    try:
                        while not await self._tried(name, pcm):
                            self.done["told to come again"] += 1
                            await asyncio.sleep(self._random.uniform(0.5, 1.5))
                    except Exception as err:
                        self.faults[f"{name}: {type(err).__name__}: {str(err)[:80]}"] += 1
                    self.done[name] += 1
                    if (count := next(ends)) % 1000 == 0 or count == number:
                        on_thousand(count)

            await asyncio.gather(*(work() for _ in range(at_once)))

    async def _tried(self, name: str, pcm: bytes) -> bool:
        """One stream; False where the server has no room now."""
        try:
            await self._kinds[name][1](pcm)
        except Exception as err:
            if not any(told in str(err) for told in ("too_many", "429", "cannot hold more")):
                raise
            return False
        return True

    async def _line(self, path: str = "/v1/stream", *, url: str = "") -> Line:
        line = Line()
        await ws_connect(lambda: line, url or f"{self.server.url}{path}", websocket_handshake_timeout=PATIENCE_S)
        return line

    async def _started(self, **start: Any) -> tuple[Line, Message]:
        line = await self._line()
        line.send({"type": "start", "ack": True} | start)
        started = await line.until("started", "error")
        if started is None or started["type"] != "started":
            raise RuntimeError(f"not started: {started}")
        return line, started

    async def _say(self, line: Line, pcm: bytes) -> None:
        for start in range(0, len(pcm), PACKET_BYTES):
            line.send(pcm[start : start + PACKET_BYTES])
            await asyncio.sleep(0)

    async def _end(self, line: Line, what: Message, *kinds: str) -> None:
        line.send(what)
        if kinds and await line.until(*kinds) is None:
            raise RuntimeError(f"no {kinds[0]}")
        while (message := await asyncio.wait_for(line.messages.get(), PATIENCE_S)) is not None:
            if message.get("type") == "error":
                raise RuntimeError(str(message))

    async def _regular(self, pcm: bytes) -> None:
        line, _ = await self._started()
        await self._say(line, pcm)
        await self._end(line, {"type": "close"}, "closed")

    async def _cut_off(self, pcm: bytes) -> None:
        line, _ = await self._started()
        await self._say(line, pcm)
        line.cut()

    async def _resumed(self, pcm: bytes) -> None:
        line, started = await self._started()
        await self._say(line, pcm[: len(pcm) // 2])
        line.cut()
        line, again = await self._started(resume_token=started["resume_token"])
        await self._say(line, pcm[round(again["audio_s"] * 16_000) * 2 :])
        await self._end(line, {"type": "close"}, "closed")

    async def _refused(self, pcm: bytes) -> None:
        line = await self._line()
        wrong: list[Message | str | bytes] = [
            pcm,
            "{",
            {"type": "no such"},
            {"type": "start", "audio": {"sample_rate": 1}},
        ]
        line.send(self._random.choice(wrong))
        if await line.until("error") is None:
            raise RuntimeError("no error")

    async def _mid_message(self, pcm: bytes) -> None:
        line, started = await self._started()
        await self._say(line, pcm)
        line.send({"type": "close"})
        if line.transport is not None:  # begins a packet that never ends
            line.transport.underlying_transport.write(b"\x82\xfe\x10\x00abcd" + pcm[:100])
        await line.until("closed")
        line.cut()
        if not self.leaves:  # it was told all, but has not said so
            line, _ = await self._started(resume_token=started["resume_token"])
            await self._end(line, {"type": "keepalive"}, "closed")

    async def _compressed(self, pcm: bytes) -> None:
        line, _ = await self._started(audio={"encoding": "webm_opus"})
        await self._say(line, self._webm)
        await self._end(line, {"type": "close"}, "closed")

    async def _reference(self, pcm: bytes) -> None:
        line = await self._line("/ws/stream")
        for number, start in enumerate(range(0, len(pcm), 5 * PACKET_BYTES)):
            samples_N = np.frombuffer(pcm[start : start + 5 * PACKET_BYTES], "<i2") / 32768.0
            line.send({"type": "audio_chunk", "data": np.round(samples_N, 4).tolist(), "sequence": number})
            reply = await asyncio.wait_for(line.messages.get(), PATIENCE_S)
            if reply is None or "segments" not in reply:
                raise RuntimeError(f"no reply: {reply}")
        if line.transport is not None:
            line.transport.send_close(1000)
            line.transport.disconnect()

    async def _live(self, pcm: bytes) -> None:
        answer = (await self._http.post("/v1/live", json={"encoding": "pcm_s16le"})).raise_for_status().json()
        line = await self._line(url=answer["url"])
        await self._say(line, pcm)
        await self._end(line, {"type": "end_of_stream"})

    async def _infer(self, pcm: bytes) -> None:
        file = io.BytesIO()
        with wave.open(file, "wb") as output:
            output.setnchannels(1)
            output.setsampwidth(2)
            output.setframerate(16_000)
            output.writeframes(pcm)
        (
            await self._http.post("/infer", content=file.getvalue(), headers={"content-type": "audio/wav"})
        ).raise_for_status()


def webm(samples_N: np.ndarray) -> bytes:
    """Opus in WebM, as browsers record it."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="webm") as output:
        stream: Any = output.add_stream("libopus", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples_N.astype("<i2")[None], format="s16", layout="mono")
        frame.sample_rate = 16_000
        resampler = av.AudioResampler(format="s16", layout="mono", rate=48_000)
        for resampled in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(resampled))
        output.mux(stream.encode(None))
    return file.getvalue()


def memory_mb(server: Server) -> float:
    """Of all processes of a server: what each has alone (USS); libraries that others have mapped too come and go with them."""
    process = psutil.Process(server.process.pid)
    return sum(one.memory_full_info().uss for one in [process, *process.children(recursive=True)]) / 1e6


def objects(server: Server) -> dict[str, int]:
    """Objects of streams in memory, by kind."""
    return {
        name.split('kind="')[1].split('"')[0]: int(value)
        for name, value in server.metrics().items()
        if name.startswith("voiceflow_stream_objects")
    }


def measure(samples_N: np.ndarray, number: int, *, at_once: int, workers: int = 2) -> dict[str, Any]:
    """Streams through a server of its own, and what is left."""
    marks: dict[int, float] = {}
    with Server("--workers", str(workers), "--speed_limit", "0") as server:
        churn = Churn(server, samples_N, leaves=not IS_TINY)
        marks[0] = memory_mb(server)
        print(f"{0:6d} streams  {marks[0]:7.1f} MB", flush=True)

        def mark(count: int) -> None:
            marks[count] = memory_mb(server)
            print(f"{count:6d} streams  {marks[count]:7.1f} MB", flush=True)

        began_s = time.monotonic()
        asyncio.run(churn.run(number, at_once=at_once, on_thousand=mark))
        seconds = time.monotonic() - began_s
        left = objects(server)
        while any(left.values()) and time.monotonic() - began_s - seconds < LEFT_S:
            time.sleep(1.0)
            left = objects(server)
        log = server.log.read_text(errors="replace")
        settled = [marks[count] for count in marks if count >= SETTLED] or [marks[max(marks)]]
        return {
            "streams": number,
            "by_kind": dict(churn.done),
            "seconds": round(seconds, 1),
            "memory_mb": {count: round(value, 1) for count, value in marks.items()},
            "growth_mb": round(max(settled) - settled[0], 1),
            "memory_at_the_end_mb": round(memory_mb(server), 1),
            "objects_left": left,
            "faults": dict(churn.faults),
            "tracebacks": log.count("Traceback"),
        }


def failed(figures: dict[str, Any]) -> bool:
    """Whether the server grew, kept anything, or failed a stream."""
    wrong = figures["faults"] or figures["tracebacks"] or any(figures["objects_left"].values())
    return bool(wrong) or figures["growth_mb"] > MOST_GROWTH_MB


def spoken() -> np.ndarray:
    """The conversation that comes with the shipped model, 16-bit samples at 16 kHz."""
    return np.clip(load_audio(pretrained_path().with_name("sample.flac")), -1.0, 1.0) * 32767.0


def main() -> None:
    """Run it and print figures; exits 1 where they are not good."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=20_000)
    parser.add_argument("--at-once", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    figures = measure(spoken(), arguments.streams, at_once=arguments.at_once, workers=arguments.workers)
    print(json.dumps(figures, indent=1))
    sys.exit(1 if failed(figures) else 0)


if __name__ == "__main__":
    main()
