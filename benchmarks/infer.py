"""`POST /infer` of one second of audio: requests a second, by the wall and by the server's CPU time."""

import asyncio
import io
import time
from typing import Any

import numpy as np
import psutil
import soundfile

from benchmarks.items import sized
from benchmarks.server import Server

CONNECTIONS, SECONDS, WARM_S = sized((32, 10.0, 2.0), tiny=(2, 1.0, 0.2))


async def _drive(port: int, request: bytes, until_s: float, times_ms: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.monotonic() < until_s:
        started_s = time.monotonic()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head.split(b"\r\n")[0], head
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        await reader.readexactly(int(length.split(b":")[1]))
        times_ms.append(1000.0 * (time.monotonic() - started_s))
    writer.close()


def requests_per_core(server: Server) -> dict[str, Any]:
    """Keep-alive connections that ask as fast as they are answered."""
    file = io.BytesIO()
    samples_N = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) * 0.05
    soundfile.write(file, samples_N, 16_000, format="WAV", subtype="PCM_16")
    body = file.getvalue()
    request = (
        f"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Type: audio/wav\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    process = psutil.Process(server.process.pid)

    async def run(seconds: float) -> list[float]:
        times_ms: list[float] = []
        until_s = time.monotonic() + seconds
        await asyncio.gather(*(_drive(server.http_port, request, until_s, times_ms) for _ in range(CONNECTIONS)))
        return times_ms

    asyncio.run(run(WARM_S))
    before = process.cpu_times()
    started_s = time.monotonic()
    times_ms = asyncio.run(run(SECONDS))
    wall_s = time.monotonic() - started_s
    after = process.cpu_times()
    cpu_s = after.user + after.system - before.user - before.system
    p50, p99 = np.percentile(times_ms, [50, 99])
    return {
        "requests": len(times_ms),
        "requests_per_s": round(len(times_ms) / wall_s),
        "requests_per_core": round(len(times_ms) / cpu_s),
        "connections": CONNECTIONS,
        "p50_ms": round(float(p50), 1),
        "p99_ms": round(float(p99), 1),
    }
