"""Streams that come and go, in every way they can: nothing of them is left, and one client cannot harm the others."""

import asyncio
import json

import pytest
import websockets

from benchmarks.churn import Churn, objects, spoken
from benchmarks.hostile import CONTINUATION, START, TEXT, connect, frame
from benchmarks.server import Server
from tests.conftest import eventually
from tests.e2e.test_streams import expected, stream, url

pytestmark = pytest.mark.e2e


def test_nothing_is_left_of_streams_that_ended():
    """Cut, resumed, refused, in the middle of a message, compressed, of all protocols."""
    with Server("--workers", "2", "--speed_limit", "0") as server:
        churn = Churn(server, spoken(), leaves=False)
        asyncio.run(churn.run(200, at_once=12, on_thousand=lambda count: None))
        assert churn.faults == {}
        assert set(churn.done) >= {"regular", "resumed", "refused", "mid message", "webm", "reference", "live", "infer"}
        eventually(lambda: objects(server) and not any(objects(server).values()), "the end of all objects")
        assert "Traceback" not in server.log.read_text()


def is_told(sock, what):
    """Whether the other side says it before it is done."""
    told = b""
    while what not in told and (data := sock.recv(65536)):
        told += data
    return what in told


def test_a_message_in_thousands_of_fragments_is_refused(server):
    with connect(server) as sock:
        sock.sendall(frame(TEXT, b"{", is_last=False) + frame(CONTINUATION, b" ", is_last=False) * 20_000)
        assert is_told(sock, b'"too_large"')


def test_tiny_packets_and_fragments_lose_nothing(server, model, talk):
    """Samples one by one are slowed down, and all of them heard; others are not disturbed."""

    async def speak():
        async with websockets.connect(url(server)) as socket:
            await socket.send(START.decode())
            for _ in range(3000):
                await socket.send(b"\0\0")
            await socket.send([b"\0\0"] * 500)  # one message in so many fragments
            await socket.send('{"type":"close"}')
            return [json.loads(text) async for text in socket][-1]

    async def run():
        return await asyncio.gather(speak(), stream(server, talk))

    closed, turns = asyncio.run(run())
    assert closed["type"] == "closed"
    assert closed["audio_s"] == pytest.approx(3500 / 16_000)
    assert turns == expected(model, talk)


def test_long_chunks_of_floats_are_read_in_pieces(server):
    """As others wait for nothing longer than a piece; what is no list of numbers is told."""

    async def ask(text):
        async with websockets.connect(url(server, "/ws/stream"), max_size=2**24) as socket:
            await socket.send(text)
            return json.loads(await socket.recv())

    numbers = ",".join(["0.25"] * 200_000)
    told = asyncio.run(ask(f'{{"type": "audio_chunk", "data": [{numbers}], "sequence": 7}}'))
    assert told["sequence"] == 7
    for wrong in (f"[{numbers}, [1]]", f'[{numbers}, "a"]', f"[{numbers}"):
        assert asyncio.run(ask(f'{{"type": "audio_chunk", "data": {wrong}, "sequence": 7}}'))["code"] == "bad_json"
    assert asyncio.run(ask(f'{{"type": "audio_chunk", "dada": [{numbers}]}}'))["code"] == "bad_json"
