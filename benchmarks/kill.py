"""Live streams while sockets are cut, servers are stopped and predictors killed: what each client was told in the end."""

import asyncio
import itertools
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.items import sized
from benchmarks.proxy import Proxy
from benchmarks.server import Server, free_port
from serving.clients.stream import StreamClient
from voiceflow.streaming.batch import Scorer, diarize

STUCK_S = 60.0
RAMP_S = sized(5.0, tiny=1.0)
Turns = list[tuple[float, float, str]]
Trouble = Callable[[Proxy], Awaitable[None]]


@dataclass
class Followed:
    """One client and what it was told."""

    client: StreamClient
    number: int
    turns: Turns
    failure: str | None = None


async def follow(client: StreamClient, number: int, samples_N: np.ndarray) -> Followed:
    """Stream a recording to the end; final turns under the labels they ended with."""
    finals: dict[str, dict[str, Any]] = {}
    failure = None
    try:
        async with asyncio.timeout(len(samples_N) / 16_000 + STUCK_S):
            async for message in client.run(samples_N):
                if message["type"] == "segment" and message["final"]:
                    finals[message["id"]] = message
                for row in message["segments"] if message["type"] == "revision" else []:
                    finals[row["id"]] = finals[row["id"]] | row
    except TimeoutError:
        failure = "stuck"
    except Exception as err:
        failure = str(err)
    turns = sorted((row["start_s"], row["end_s"], row["speaker"]) for row in finals.values())
    return Followed(client, number, turns, failure)


def undisturbed(model: Scorer, recordings: Sequence[np.ndarray]) -> list[Turns]:
    """Turns of the same audio, as 16-bit samples, in this process."""
    audio = [
        (np.clip(samples_N, -1, 1) * 32767).astype("<i2").astype(np.float32) / np.float32(32768.0)
        for samples_N in recordings
    ]
    return [
        sorted((round(turn.start_s, 3), round(turn.end_s, 3), turn.speaker) for turn in turns)
        for turns in diarize(audio, model, latency_s=1.04)
    ]


async def under(
    trouble: Trouble, port: int, recordings: Sequence[np.ndarray], *, streams: int
) -> tuple[list[Followed], Proxy]:
    """So many clients behind a proxy, begun within `RAMP_S`, and the trouble meanwhile."""
    async with Proxy(port) as proxy:

        async def one(number: int) -> Followed:
            await asyncio.sleep(RAMP_S * number / streams)
            client = StreamClient(f"ws://127.0.0.1:{proxy.port}/v1/stream")
            return await follow(client, number, recordings[number % len(recordings)])

        tasks = [asyncio.create_task(one(number)) for number in range(streams)]
        await asyncio.sleep(RAMP_S + 2.0)
        await trouble(proxy)
        proxy.num_open_at_last = proxy.num_open
        return await asyncio.gather(*tasks), proxy


def compare(followed: Sequence[Followed], expected: Sequence[Turns], **told: Any) -> dict[str, Any]:
    """What differs from an undisturbed run."""
    wrong = []
    for one in followed:
        known = set(expected[one.number % len(expected)])
        wrong.append(len(known ^ set(one.turns)))
    failures = [one.failure for one in followed if one.failure]
    reconnects = [one.client.reconnects for one in followed]
    return {
        "streams": len(followed),
        **told,
        "turns": sum(len(expected[one.number % len(expected)]) for one in followed),
        "turns_lost_or_changed": sum(wrong),
        "streams_stuck_or_failed": len(failures),
        "first_failure": failures[0] if failures else None,
        "reconnects_median": float(np.median(reconnects)),
        "begun_anew": sum(one.client.restarts for one in followed),
    }


def cut_sockets(
    model: Scorer, recordings: Sequence[np.ndarray], *, rounds: int, streams: int, every_s: float
) -> dict[str, Any]:
    """A tenth of the sockets, drawn at random, cut in each round, on two workers without a store."""

    async def trouble(proxy: Proxy) -> None:
        for _ in range(rounds):
            proxy.cut(max(1, streams // 10))
            await asyncio.sleep(every_s)

    with Server("--workers", "2") as server:
        followed, proxy = asyncio.run(under(trouble, server.http_port, recordings, streams=streams))
    return compare(followed, undisturbed(model, recordings), rounds=rounds, cut=proxy.num_cut)


def stop_servers(
    model: Scorer, recordings: Sequence[np.ndarray], *, rounds: int, streams: int, how: int = signal.SIGTERM
) -> dict[str, Any]:
    """The server is stopped in each round while another one, with the same store, takes over."""
    if shutil.which("redis-server") is None:
        return {"skipped": "redis-server is missing: apt-get install redis-server"}
    port = free_port()
    folder = tempfile.mkdtemp()
    redis = subprocess.Popen(
        ["redis-server", "--port", str(port), "--save", "", "--dir", folder], stdout=subprocess.DEVNULL
    )
    env = {"VOICEFLOW_STORE": f"redis://127.0.0.1:{port}/0", "VOICEFLOW_TOKEN_KEY": secrets.token_hex(16)}
    stops_s: list[float] = []
    servers = [Server(env=env), Server(env=env)]

    async def trouble(proxy: Proxy) -> None:
        for turn in itertools.islice(itertools.cycle((0, 1)), rounds):
            await asyncio.to_thread(servers[1 - turn].wait)
            proxy.target = servers[1 - turn].http_port
            stops_s.append(await asyncio.to_thread(servers[turn].stop, how))
            servers[turn] = Server(env=env)
            await asyncio.to_thread(servers[turn].wait)

    try:
        servers[0].wait()
        followed, proxy = asyncio.run(under(trouble, servers[0].http_port, recordings, streams=streams))
    finally:
        for server in servers:
            server.stop()
        redis.terminate()
        redis.wait()
        shutil.rmtree(folder, ignore_errors=True)
    told = {"rounds": rounds, "stop_s_max": round(max(stops_s), 1), "live_at_the_last": proxy.num_open_at_last}
    return compare(followed, undisturbed(model, recordings), **told)


def kill_predictors(model: Scorer, recordings: Sequence[np.ndarray], *, rounds: int, streams: int) -> dict[str, Any]:
    """One of two predictors is killed in each round, and started again."""

    predictors = [
        Server("--model", "pretrained", module="serving.predictor", path="/v2/health/ready") for _ in range(2)
    ]
    for one in predictors:
        one.wait()
    hosts = ",".join(f"127.0.0.1:{one.grpc_port}" for one in predictors)

    async def trouble(proxy: Proxy) -> None:
        for turn in itertools.islice(itertools.cycle((0, 1)), rounds):
            await asyncio.to_thread(predictors[turn].stop, signal.SIGKILL)
            await asyncio.sleep(1.0)
            predictors[turn] = predictors[turn].again()
            await asyncio.to_thread(predictors[turn].wait)

    try:
        with Server("--predictor_host", hosts) as server:
            followed, proxy = asyncio.run(under(trouble, server.http_port, recordings, streams=streams))
    finally:
        for one in predictors:
            one.stop()
    told = {"rounds": rounds, "live_at_the_last": proxy.num_open_at_last}
    return compare(followed, undisturbed(model, recordings), **told)


def long_enough(recordings: Sequence[np.ndarray], seconds: float) -> list[np.ndarray]:
    """Recordings repeated to a length."""
    size = int(seconds * 16_000)
    return [np.tile(samples_N, -(-size // len(samples_N)))[:size] for samples_N in recordings]
