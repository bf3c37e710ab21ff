"""`python -m benchmarks.rounds`: rounds of streams whose client is as unlucky and as hasty as can be.

A client of its own, over plain sockets, that shares nothing with ours: it is cut at random, tries again at once, is cut while
it resumes, and goes to another server each time. What it was told in the end, by id, must be what an undisturbed stream is.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.churn import spoken
from benchmarks.server import Server, free_port
from voiceflow.runtime import StepModel, pretrained_path
from voiceflow.streaming.lanes import Lanes
from voiceflow.streaming.session import StreamSettings

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
STUCK_S = 120.0
Known = dict[str, tuple[float, float, str]]
"""Turns by id: start, end, speaker."""


class Cut(Exception):
    """The connection is gone."""


class Wire:
    """A WebSocket by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> "Wire":
        """Connect and shake hands."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            key = base64.b64encode(os.urandom(16)).decode()
            writer.write(
                f"GET /v1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
            )
            head = await reader.readuntil(b"\r\n\r\n")
        except (OSError, asyncio.IncompleteReadError) as err:
            raise Cut from err
        if b" 101 " not in head:
            raise Cut
        return cls(reader, writer)

    def send(self, kind: int, data: bytes) -> None:
        """One frame."""
        size = len(data)
        head = bytes([0x80 | kind, 0x80 | size]) if size < 126 else bytes([0x80 | kind, 0xFE]) + struct.pack(">H", size)
        self.writer.write(head + bytes(4) + data)

    async def next(self) -> dict[str, Any]:
        """The next message.

        Raises:
            Cut: There is none.
        """
        try:
            while True:
                head = await self.reader.readexactly(2)
                kind, size = head[0] & 15, head[1] & 127
                if size == 126:
                    [size] = struct.unpack(">H", await self.reader.readexactly(2))
                elif size == 127:
                    [size] = struct.unpack(">Q", await self.reader.readexactly(8))
                data = await self.reader.readexactly(size)
                if kind == TEXT:
                    message: dict[str, Any] = json.loads(data)
                    return message
                if kind == PING:
                    self.send(PONG, data)
                elif kind == CLOSE:
                    self.send(CLOSE, data)
                    raise Cut
        except (OSError, asyncio.IncompleteReadError) as err:
            raise Cut from err

    def cut(self) -> None:
        """Gone without a word."""
        self.writer.transport.abort()


class Unlucky:
    """One stream over many connections.

    Args:
        ports: Of servers; each connection is to another one.
        pcm: What is said, 16-bit samples at 16 kHz.
        seed: Of its luck.
        cut_every_s: How long a connection lives, on average.
    """

    def __init__(self, ports: Sequence[int], pcm: bytes, seed: int, *, cut_every_s: float) -> None:
        self.ports, self.pcm = ports, pcm
        self.luck = random.Random(seed)
        self.cut_every_s = cut_every_s
        self.token: str | None = None
        self.last_seq = 0
        self.known: Known = {}
        self.told: Counter[str] = Counter()
        self.faults: list[str] = []
        self._began_s = 0.0
        self._seqs: dict[int, str] = {}

    async def run(self) -> None:
        """To its end."""
        self._began_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(len(self.pcm) / 32_000 + STUCK_S):
                while not await self._connection():
                    self.told["connections"] += 1
        except TimeoutError:
            self.faults.append("stuck")

    async def _connection(self) -> bool:
        """One connection; whether the stream is over."""
        speaking: asyncio.Task[None] | None = None
        cutting: asyncio.TimerHandle | None = None
        loop = asyncio.get_running_loop()
        try:
            wire = await Wire.open(self.luck.choice(self.ports))
        except Cut:
            await asyncio.sleep(0.05)
            return False
        try:
            start: dict[str, Any] = {"type": "start", "ack": True}
            if self.token is not None:
                start |= {"resume_token": self.token, "last_seq": self.last_seq}
            wire.send(TEXT, json.dumps(start).encode())
            if self.token is not None and self.luck.random() < 0.3:  # cut while it resumes, and tries again at once
                await wire.writer.drain()
                wire.cut()
                return False
            while True:
                message = await wire.next()
                kind = message["type"]
                if kind == "started":
                    self.token = message["resume_token"]
                    position = round(message["audio_s"] * 16_000) * 2
                    speaking = asyncio.create_task(self._speak(wire, position))
                    cutting = loop.call_later(self.luck.expovariate(1.0 / self.cut_every_s), wire.cut)
                elif kind == "error":
                    self.told[message["code"]] += 1
                    if message.get("retry_after_s"):
                        await asyncio.sleep(message["retry_after_s"] * self.luck.uniform(0.5, 1.0))
                        return False
                    if message["code"] not in ("taken_over", "draining"):
                        self.faults.append(f"{message['code']}: {message['message']}")
                        return True
                elif kind == "closed":
                    return True
                else:
                    self._take(message)
        except (Cut, OSError):
            return False
        finally:
            if cutting is not None:
                cutting.cancel()
            if speaking is not None:
                speaking.cancel()
            wire.cut()

    async def _speak(self, wire: Wire, position: int) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while position < len(self.pcm):
                size = self.luck.choice((320, 1281, 3200, 6400))  # samples are split between packets too
                await asyncio.sleep(max(0.0, self._began_s + (position + size) / 32_000 - loop.time()))
                wire.send(BINARY, self.pcm[position : position + size])
                await wire.writer.drain()
                position += size
            wire.send(TEXT, b'{"type":"close"}')

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind not in ("segment", "revision", "model_changed"):
            return
        self.last_seq = max(self.last_seq, message["seq"])
        if "variant" not in message:
            self.faults.append(f"{kind} without variant")
        if kind == "segment" and message["final"]:
            self.known[message["id"]] = message["start_s"], message["end_s"], message["speaker"]
        for row in message["segments"] if kind == "revision" else []:
            if row["id"] not in self.known:
                self.faults.append(f"revision of {row['id']}, which was never told")
                continue
            self.known[row["id"]] = (*self.known[row["id"]][:2], row["speaker"])


def undisturbed(model: StepModel, pcm: bytes) -> Known:
    """What a stream of the same audio is told in the end."""
    lanes = Lanes(model.metadata, capacity=1)
    lane = lanes.open(StreamSettings())
    lane.receive_audio(pcm)
    lane.close()
    while (batch := lanes.gather(max_batch=1)) is not None:
        lanes.scatter(*model.step(*batch))
    lane.events_to_send()
    end_s = lane.received_s
    return {
        one.id: (round(one.turn.start_s, 3), round(min(end_s, one.turn.end_s), 3), one.turn.speaker)
        for one in lane.ended
    }


Disturb = Callable[[], Awaitable[None]]


@contextlib.contextmanager
def two_workers() -> Iterator[tuple[list[int], Disturb]]:
    """One server, a connection to either of its workers."""
    with Server("--workers", "2") as server:
        yield [server.http_port], _nothing


@contextlib.contextmanager
def two_servers() -> Iterator[tuple[list[int], Disturb]]:
    """Two servers of two workers that share a store."""
    folder, port = tempfile.mkdtemp(), free_port()
    redis = subprocess.Popen(
        ["redis-server", "--port", str(port), "--save", "", "--dir", folder], stdout=subprocess.DEVNULL
    )
    env = {"VOICEFLOW_STORE": f"redis://127.0.0.1:{port}/0", "VOICEFLOW_TOKEN_KEY": secrets.token_hex(16)}
    try:
        with Server("--workers", "2", env=env) as one, Server(env=env) as other:
            yield [one.http_port, other.http_port], _nothing
    finally:
        redis.kill()
        redis.wait()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def predictors(how: signal.Signals) -> Iterator[tuple[list[int], Disturb]]:
    """A transformer with two predictors, of which one ends in the middle and comes back."""
    ready = "/v2/health/ready"
    first = Server("--model", "pretrained", module="serving.predictor", path=ready)
    second = Server("--model", "pretrained", module="serving.predictor", path=ready)
    hosts = f"127.0.0.1:{first.grpc_port},127.0.0.1:{second.grpc_port}"
    again: list[Server] = []

    async def disturb() -> None:
        await asyncio.sleep(4.0)
        await asyncio.to_thread(first.stop, how)
        again.append(await asyncio.to_thread(first.again))
        await asyncio.to_thread(again[0].wait)
        await asyncio.to_thread(second.stop, how)

    with contextlib.ExitStack() as stack:
        for one in (first, second):
            stack.callback(one.stop)
        first.wait()
        second.wait()
        server = stack.enter_context(Server("--predictor_host", hosts))
        stack.callback(lambda: [one.stop() for one in again])
        yield [server.http_port], disturb


async def _nothing() -> None:
    """Cuts are enough."""


PLACES: dict[str, Callable[[], Any]] = {
    "two workers": two_workers,
    "two servers": two_servers,
    "a predictor stopped in order": lambda: predictors(signal.SIGTERM),
    "a predictor killed": lambda: predictors(signal.SIGKILL),
}


def measure(samples_N: np.ndarray, *, rounds: int, streams: int, seconds: float, cut_every_s: float) -> dict[str, Any]:
    """Rounds, in each place in turn; what was lost, changed or told under another id."""
    model = StepModel(pretrained_path())
    size = int(seconds * 16_000) * 2
    pcm = samples_N.astype("<i2").tobytes()
    pieces = [pcm[start : start + size] for start in range(0, len(pcm) - size + 1, size)]
    expected = [undisturbed(model, piece) for piece in pieces]
    rows = {}
    for number in range(rounds):
        name = list(PLACES)[number % len(PLACES)]
        if name == "two servers" and shutil.which("redis-server") is None:
            rows[f"{number + 1} {name}"] = {"skipped": "redis-server is missing: apt-get install redis-server"}
            continue
        with PLACES[name]() as (ports, disturb):
            clients = [
                Unlucky(ports, pieces[index % len(pieces)], number * 1000 + index, cut_every_s=cut_every_s)
                for index in range(streams)
            ]

            async def run(clients: list[Unlucky] = clients, disturb: Disturb = disturb) -> None:
                await asyncio.gather(disturb(), *(client.run() for client in clients))

            asyncio.run(run())
        wrong = [
            sum(client.known.get(name) != turn for name, turn in known.items())
            + len(client.known.keys() - known.keys())
            for client, known in ((client, expected[index % len(pieces)]) for index, client in enumerate(clients))
        ]
        told = sum((client.told for client in clients), Counter())
        faults = Counter(fault for client in clients for fault in client.faults)
        rows[f"{number + 1} {name}"] = {
            "streams": streams,
            "turns": sum(len(expected[index % len(pieces)]) for index in range(streams)),
            "turns_lost_changed_or_under_another_id": sum(wrong),
            "connections": told["connections"],
            "told": {code: count for code, count in told.items() if code != "connections"},
            "faults": dict(faults.most_common(5)),
        }
        print(f"{number + 1:3d} {name:30} {json.dumps(rows[f'{number + 1} {name}'])}", flush=True)
    return rows


def failed(rows: dict[str, Any]) -> list[str]:
    """Rounds in which anything was lost."""
    return [
        name for name, row in rows.items() if row.get("turns_lost_changed_or_under_another_id") or row.get("faults")
    ]


def main() -> None:
    """Run them; exits 1 where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--cut-every-s", type=float, default=4.0)
    arguments = parser.parse_args()
    rows = measure(
        spoken(),
        rounds=arguments.rounds,
        streams=arguments.streams,
        seconds=arguments.seconds,
        cut_every_s=arguments.cut_every_s,
    )
    wrong = failed(rows)
    print(f"lost in: {', '.join(wrong)}" if wrong else "nothing was lost")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
