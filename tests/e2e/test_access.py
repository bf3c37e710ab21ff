"""Keys, limits and clients that misbehave, against a real server."""

import asyncio
import contextlib
import json
import os
import socket
import time

import httpx
import jwt
import pytest
import websockets

from serving.clients.stream import StreamClient
from tests.conftest import PATIENCE_S, eventually
from tests.e2e.test_streams import START, url
from voiceflow.errors import PlatformError

pytestmark = pytest.mark.e2e
ADA, BOB, SECRET = "ada-0123456789abcdef", "bob-0123456789abcdef", "a secret of at least thirty-two bytes"


@pytest.fixture(scope="module")
def locked(start_server):
    """HTTP port of a server that asks for keys."""
    keys = {"VOICEFLOW_API_KEYS": f"ada:{ADA},bob:{BOB}", "VOICEFLOW_JWT_KEY": SECRET}
    return start_server("serving.transformer", "--workers", "2", env={**os.environ, **keys})[0]


async def first_answer(address, **options):
    async with websockets.connect(address, **options) as stream:
        with contextlib.suppress(websockets.ConnectionClosed):  # refused before it has said anything
            await stream.send(json.dumps(START))
        answer = json.loads(await stream.recv())
        if answer["type"] == "error":
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await stream.recv()
            return answer, closed.value.rcvd.code
        return answer, stream.subprotocol


def bearer(value):
    return {"additional_headers": {"Authorization": f"Bearer {value}"}}


def token(**claims):
    return jwt.encode({"sub": "eve", "exp": time.time() + 60} | claims, SECRET, algorithm="HS256")


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("/v1/stream", bearer(ADA)),
        (f"/v1/stream?token={BOB}", {}),
        ("/v1/stream", {"subprotocols": ["voiceflow", ADA]}),
        ("/v1/stream", bearer(token(exp=time.time() + 7200))),  # made when tests are collected
    ],
)
def test_a_key_opens_a_stream_wherever_it_is_put(locked, path, options):
    answer, subprotocol = asyncio.run(first_answer(url(locked, path), **options))
    assert answer["type"] == "started"
    assert subprotocol == ("voiceflow" if "subprotocols" in options else None)


@pytest.mark.parametrize(
    "options",
    [{}, bearer("wrong"), bearer(ADA[:-1]), bearer(token(exp=time.time() - 5)), bearer(token() + "x"), bearer("a.b.c")],
)
def test_no_other_key_does(locked, options):
    for path in ("/v1/stream", "/ws/stream"):
        answer, code = asyncio.run(first_answer(url(locked, path), **options))
        assert (answer["code"], code) == ("not_authorised", 4401)


def test_http_asks_for_keys_too_but_not_for_health(locked):
    base = f"http://127.0.0.1:{locked}"
    for _ in range(4):
        assert httpx.get(f"{base}/health").status_code == 200
        assert httpx.post(f"{base}/v1/live").status_code == 401
        assert httpx.post(f"{base}/infer", json={"audio": [0.0]}).status_code == 401
    assert httpx.post(f"{base}/v1/live", headers={"Authorization": f"Bearer {ADA}"}).status_code == 200


def test_nobody_resumes_the_stream_of_another_key(locked):
    async def run():
        async with websockets.connect(url(locked), **bearer(ADA)) as mine:
            await mine.send(json.dumps(START))
            token_of_ada = json.loads(await mine.recv())["resume_token"]
            async with websockets.connect(url(locked), **bearer(BOB)) as other:
                await other.send(json.dumps(START | {"resume_token": token_of_ada}))
                answer = json.loads(await other.recv())
            await mine.send(json.dumps({"type": "close"}))
            return answer, json.loads(await mine.recv())

    for _ in range(4):  # on whatever workers they are
        answer, undisturbed = asyncio.run(run())
        assert answer["code"] in ("not_authorised", "no_resume")
        assert undisturbed["type"] == "closed"


def test_a_key_has_so_many_requests_a_minute_on_all_workers_together(start_server):
    locked, _ = start_server(
        "serving.transformer", "--workers", "2", env={**os.environ, "VOICEFLOW_API_KEYS": f"ada:{ADA},bob:{BOB}"}
    )

    async def run():
        answers = await asyncio.gather(*(first_answer(url(locked), **bearer(ADA)) for _ in range(130)))
        return answers, await first_answer(url(locked), **bearer(BOB))

    answers, other = asyncio.run(run())
    refused = [answer for answer, _ in answers if answer["type"] == "error"]
    assert len(refused) == 30
    assert all(answer["code"] == "too_many" and answer["retry_after_s"] > 0 for answer in refused)
    assert other[0]["type"] == "started"


@pytest.fixture(scope="module")
def small(start_server):
    """HTTP port of a server that holds three streams."""
    return start_server("serving.transformer", "--max_streams", "3", "--speed_limit", "4")[0]


def test_a_stream_too_many_is_refused_and_let_in_when_there_is_room(small):
    async def run():
        held = []
        for _ in range(3):
            one = await websockets.connect(url(small))
            await one.send(json.dumps(START))
            assert json.loads(await one.recv())["type"] == "started"
            held.append(one)
        refused, code = await first_answer(url(small))
        ready = httpx.get(f"http://127.0.0.1:{small}/ready")
        live = httpx.post(f"http://127.0.0.1:{small}/v1/live")
        for one in held:
            await one.send(json.dumps({"type": "close"}))
            async for _ in one:
                pass
        return refused, code, ready, live, await first_answer(url(small))

    refused, code, ready, live, then = asyncio.run(run())
    assert (refused["code"], code) == ("too_many", 4429)
    assert refused["retry_after_s"] > 0
    assert ready.status_code == 503
    assert (live.status_code, int(live.headers["retry-after"]) > 0) == (429, True)
    assert then[0]["type"] == "started"


def test_who_does_not_read_is_told_and_closed(server, talk):
    """Audio at twice the speed of speech, thousands of acknowledgements a second, nothing read."""
    pcm = (talk * 32767).astype("<i2").tobytes()

    async def run():
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.connect(("127.0.0.1", server))
        reader, writer = await asyncio.open_connection(sock=narrow, limit=1024)
        writer.write(
            b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        writer.write(frame(1, json.dumps(START | {"ack": True}).encode()))
        packets = b"".join(frame(2, pcm[i : i + 16]) for i in range(0, 16_000, 16))

        def is_told():
            return "slow_reader" in httpx.get(f"http://127.0.0.1:{server}/metrics", timeout=60).text

        for _ in range(60):  # seconds at most; what the server does not take waits here
            if await asyncio.to_thread(is_told):
                break
            writer.write(packets)
            await asyncio.sleep(0.2)
        await asyncio.to_thread(eventually, is_told, "what the server says of it")
        everything = b""
        with contextlib.suppress(ConnectionError):  # it is closed on what was still to be sent
            while data := await asyncio.wait_for(reader.read(65_536), PATIENCE_S):
                everything += data
        writer.transport.abort()
        return everything

    assert b"slow_reader" in asyncio.run(run())[-400:]


def frame(opcode, payload):
    """A masked WebSocket frame."""
    length = len(payload)
    head = bytes([0x80 | opcode]) + (
        bytes([0x80 | length]) if length < 126 else bytes([0x80 | 126]) + length.to_bytes(2, "big")
    )
    return head + b"\0\0\0\0" + payload


def test_a_stream_far_ahead_of_time_is_slowed_down(small, talk):
    """60 s of credit, then four times the speed of speech."""
    import numpy as np

    client = StreamClient(url(small), speed=0.0)
    long = np.tile(talk, 7)

    async def run():
        started = time.monotonic()
        async for _ in client.run(long):
            pass
        return time.monotonic() - started

    took_s = asyncio.run(run())
    assert took_s > 0.8 * (len(long) / 16_000 - 60.0) / 4.0


def test_nobody_there_is_said_in_time():
    client = StreamClient("ws://127.0.0.1:9/v1/stream", patience_s=0.5)

    async def run():
        import numpy as np

        async for _ in client.run(np.zeros(1600, np.float32)):
            pass

    with pytest.raises(PlatformError, match="voiceflow serve"):
        asyncio.run(run())
