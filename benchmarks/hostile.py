"""`python -m benchmarks.hostile`: one client that means harm, and what the others' answers are late by meanwhile.

The attackers speak over sockets, with frames of their own making; the others are `voiceflow bench streams`.
"""

import argparse
import contextlib
import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.server import Server
from benchmarks.streams import load

P99_MS = 100.0
TEXT, BINARY, CONTINUATION, PING = 1, 2, 0, 9
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
START = b'{"type":"start","ack":true}'
MANY = 1000


def frame(kind: int, data: bytes, *, is_last: bool = True) -> bytes:
    """A masked frame."""
    head = bytes([(0x80 if is_last else 0) | kind])
    size = len(data)
    length = (
        bytes([0x80 | size])
        if size < 126
        else b"\xfe" + struct.pack(">H", size)
        if size < 65536
        else b"\xff" + struct.pack(">Q", size)
    )
    return head + length + bytes(4) + data


def connect(port: int, path: str = "/v1/stream") -> socket.socket:
    """A WebSocket that was taken."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=30.0)
    sock.sendall(
        b"GET %s HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n" % (path.encode(), KEY)
    )
    answer = b""
    while b"\r\n\r\n" not in answer:
        if not (data := sock.recv(4096)):
            raise ConnectionError("no handshake")
        answer += data
    return sock


def pour(port: int, first: bytes, data: bytes, *, path: str = "/v1/stream") -> None:
    """Send the same again and again, as fast as it is taken; connect anew when it is not."""
    while True:
        with contextlib.suppress(OSError), connect(port, path) as sock:
            if first:
                sock.sendall(first)
            while True:
                sock.setblocking(True)
                sock.sendall(data)
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    if not sock.recv(65536):
                        break
        time.sleep(0.01)


def fragments(port: int) -> None:
    """A message in fragments of a byte."""
    pour(port, b"", frame(TEXT, b"{", is_last=False) + frame(CONTINUATION, b" ", is_last=False) * 20_000)


def fragments_within_a_stream(port: int) -> None:
    """Packets in fragments of a byte, as many as are taken."""
    packet = (
        frame(BINARY, b"\0", is_last=False) + frame(CONTINUATION, b"\0", is_last=False) * 500 + frame(CONTINUATION, b"")
    )
    pour(port, frame(TEXT, START), packet)


def tiny_packets(port: int) -> None:
    """A sample in each."""
    pour(port, frame(TEXT, START), frame(BINARY, b"\0\0") * 5000)


def empty_packets(port: int) -> None:
    """Nothing in each."""
    pour(port, frame(TEXT, START), frame(BINARY, b"") * 5000)


def pings(port: int) -> None:
    """Pings without end."""
    pour(port, frame(TEXT, START), frame(PING, b"x" * 100) * 1000)


def audio_flood(port: int) -> None:
    """Audio as fast as it is taken."""
    pour(port, frame(TEXT, START), frame(BINARY, bytes(64_000)) * 10)


def big_texts(port: int) -> None:
    """Sixteen megabytes of JSON."""
    pour(port, b"", frame(TEXT, b'{"type":"start","diarization":{"speakers":[' + b"1," * 8_000_000 + b"1]}}"))


def big_strings(port: int) -> None:
    """A recording of a known speaker that is none."""
    text = b'{"type":"start","diarization":{"speakers":[{"label":"a","audio_b64":"' + b"A" * 15_000_000 + b'"}]}}'
    pour(port, b"", frame(TEXT, text))


def big_chunks(port: int) -> None:
    """The reference protocol's floats, megabytes at a time."""
    pour(
        port,
        b"",
        frame(TEXT, b'{"type":"audio_chunk","sequence":0,"data":[' + b"0.1," * 2_000_000 + b"0]}"),
        path="/ws/stream",
    )


def deep_texts(port: int) -> None:
    """Brackets in brackets."""
    pour(port, b"", frame(TEXT, b"[" * 100_000))


def slow_reads(port: int) -> None:
    """Streams whose answers nobody reads."""
    while True:
        socks = []
        for _ in range(20):
            with contextlib.suppress(OSError):
                sock = connect(port)
                sock.sendall(frame(TEXT, START))
                socks.append(sock)
        for _ in range(300):
            for sock in socks:
                with contextlib.suppress(OSError):
                    sock.setblocking(False)
                    sock.send(frame(BINARY, bytes(320)) * 100)
            time.sleep(0.02)
        for sock in socks:
            sock.close()


def half_open(port: int) -> None:
    """Connections that ask for nothing, or for half of something."""
    while True:
        socks = []
        for number in range(MANY):
            with contextlib.suppress(OSError):
                sock = socket.create_connection(("127.0.0.1", port), timeout=30.0)
                socks.append(sock)
                if number % 2:
                    sock.sendall(b"GET /v1/stream HTTP/1.1\r\nHost:")
        time.sleep(5.0)
        for sock in socks:
            sock.close()


def connections(port: int) -> None:
    """Streams that begin and are cut, one after the other."""
    while True:
        with contextlib.suppress(OSError), connect(port) as sock:
            sock.sendall(frame(TEXT, START) + frame(BINARY, bytes(3200)))


ATTACKS: dict[str, Callable[[int], None]] = {
    one.__name__.replace("_", " "): one
    for one in (
        fragments, fragments_within_a_stream, tiny_packets, empty_packets, pings, audio_flood, big_texts, big_strings,
        big_chunks, deep_texts, slow_reads, half_open, connections,
    )
}  # fmt: skip


@contextlib.contextmanager
def attack(name: str, port: int) -> Iterator[None]:
    """The attacker in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.hostile", "--attack", name, "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measure(streams: int, *, seconds: float, names: list[str]) -> dict[str, dict[str, Any]]:
    """What the others are told late, without anybody and beside each attacker."""
    rows: dict[str, dict[str, Any]] = {}
    for name in ["", *names]:
        with Server("--workers", "2") as server:
            with attack(name, server.http_port) if name else contextlib.nullcontext():
                time.sleep(1.0 if name else 0.0)
                told = load(server, streams, seconds=seconds)
            log = server.log.read_text(errors="replace")
        rows[name or "nobody"] = {
            "p50_ms": told["emission_ms"]["p50"],
            "p99_ms": told["emission_ms"]["p99"],
            "lost": told["lost"],
            "refused": told["refused_streams"],
            "tracebacks": log.count("Traceback"),
        }
        print(f"{name or 'nobody':28} {json.dumps(rows[name or 'nobody'])}", flush=True)
    return rows


def faults(rows: dict[str, dict[str, Any]]) -> list[str]:
    """What must not be."""
    return [
        name
        for name, row in rows.items()
        if row["p99_ms"] >= P99_MS or row["lost"] or row["refused"] or row["tracebacks"]
    ]


def main() -> None:
    """All attacks, or those named; exits 1 where the others were harmed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(ATTACKS)}")
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--attack", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.attack:
        ATTACKS[arguments.attack](arguments.port)
        return
    rows = measure(arguments.streams, seconds=arguments.seconds, names=arguments.names or list(ATTACKS))
    wrong = faults(rows)
    print(f"harmed by: {', '.join(wrong)}" if wrong else "nobody was harmed")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
