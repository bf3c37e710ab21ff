"""Streams that outlive their connections, their worker and their server."""

import asyncio
import json
import os
import secrets
import signal
from functools import partial

import httpx
import numpy as np
import pytest
import websockets

from benchmarks.proxy import Proxy
from serving.clients.stream import StreamClient
from tests.conftest import eventually
from tests.e2e.test_streams import START, expected, finals_of, url
from tests.talking import Script, heard

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def workers(start_server):
    """HTTP port of a server of two workers."""
    return start_server("serving.transformer", "--workers", "2")[0]


async def open_stream(port, path="/v1/stream", **start):
    socket = await websockets.connect(url(port, path), max_size=2**22)
    await socket.send(json.dumps(START | start))
    return socket, json.loads(await socket.recv())


def test_cut_connections_lose_nothing_whatever_worker_they_come_back_to(workers, model, talk):
    """Ten streams, a second at a time; after each second three connections are cut."""

    async def run():
        async with Proxy(workers) as proxy:
            script = Script(talk)
            clients = [StreamClient(url(proxy.port)) for _ in range(10)]
            tasks = [asyncio.create_task(finals_of(client, script.audio())) for client in clients]
            for second in range(1, 12):
                script.say(second)
                await heard(clients, second - 1.5, tasks)
                await asyncio.to_thread(eventually, lambda: proxy.num_open == 10, "all connections")
                proxy.cut(3)
            script.say()
            return await asyncio.gather(*tasks), sum(client.reconnects for client in clients)

    answers, reconnects = asyncio.run(run())
    assert answers == [expected(model, talk)] * 10
    assert reconnects > 15


def test_the_last_to_resume_has_the_stream(workers):
    async def run():
        first, started = await open_stream(workers)
        await first.send(bytes(64_000))
        token = started["resume_token"]
        second, again = await open_stream(workers, resume_token=token)
        error = json.loads(await first.recv())
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await first.recv()
        await second.send(bytes(64_000))
        await second.send(json.dumps({"type": "close"}))
        messages = [json.loads(text) async for text in second]
        return started, again, error, closed.value.rcvd.code, messages[-1]

    started, again, error, code, last = asyncio.run(run())
    assert (error["code"], code) == ("taken_over", 4400)
    assert again["session_id"] == started["session_id"]
    assert last == {"type": "closed", "audio_s": again["audio_s"] + 2.0, "speakers": 0}


@pytest.mark.parametrize(
    ("forge", "code"),
    [
        (lambda token: token[:-2] + ("AA" if token[-2:] != "AA" else "BB"), "bad_token"),
        (lambda token: "A" + token[1:] if token[0] != "A" else "B" + token[1:], "bad_token"),
        (lambda token: secrets.token_urlsafe(21), "bad_token"),
        (lambda token: "", "bad_token"),
        (lambda token: token + "==", "bad_token"),
        (lambda token: token[:9] + "\n" + token[9:], "bad_token"),
        (lambda token: token[:-1] + chr(ord(token[-1]) + 1), "bad_token"),  # another spelling of the same bytes
        (lambda token: "é" * 40, "bad_token"),
    ],
)
def test_a_forged_token_is_refused(workers, forge, code):
    async def run():
        first, started = await open_stream(workers)
        second, answer = await open_stream(workers, resume_token=forge(started["resume_token"]))
        await first.send(json.dumps({"type": "keepalive"}))
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await second.recv()
        return answer, closed.value.rcvd.code

    answer, close = asyncio.run(run())
    assert (answer["code"], close) == (code, 4401)


def test_the_token_of_another_process_or_of_a_closed_stream_is_refused(workers, server):
    async def run():
        _, elsewhere = await open_stream(server)
        _, foreign = await open_stream(workers, resume_token=elsewhere["resume_token"])
        socket, started = await open_stream(workers)
        await socket.send(json.dumps({"type": "close"}))
        assert [json.loads(text)["type"] async for text in socket] == ["closed"]
        _, over = await open_stream(workers, resume_token=started["resume_token"])
        return foreign["code"], over["code"]

    assert asyncio.run(run()) == ("bad_token", "no_resume")


def test_a_stream_on_its_way_between_workers_is_waited_for(workers):
    """Who resumes is cut at once, and tries again at once, again and again: the stream is never said to be gone."""

    async def cut(token):
        socket = await websockets.connect(url(workers))
        await socket.send(json.dumps(START | {"resume_token": token}))
        socket.transport.abort()

    async def resume(token):
        for _ in range(3):
            await cut(token)
        socket, answer = await open_stream(workers, resume_token=token)
        socket.transport.abort()
        return answer

    async def run():
        opened = [await open_stream(workers) for _ in range(8)]
        answers = []
        for _ in range(10):
            answers += await asyncio.gather(*(resume(started["resume_token"]) for _, started in opened))
        return answers

    assert {answer["type"] for answer in asyncio.run(run())} == {"started"}


def test_a_last_seq_that_was_never_sent_is_refused_and_the_stream_goes_on(workers):
    async def run():
        first, started = await open_stream(workers)
        first.transport.abort()
        _, refused = await open_stream(workers, resume_token=started["resume_token"], last_seq=5)
        _, again = await open_stream(workers, resume_token=started["resume_token"])
        return refused, again

    refused, again = asyncio.run(run())
    assert (refused["code"], again["type"]) == ("bad_message", "started")


@pytest.mark.parametrize("number", range(2))
def test_another_key_is_told_the_same_wherever_the_stream_is(start_server, number):
    keys = {"VOICEFLOW_API_KEYS": "ann:ann-0123456789abcdef,bob:bob-0123456789abcdef"}
    port, _ = start_server("serving.transformer", "--workers", str(number + 1), env=os.environ | keys)

    async def run():
        _, started = await open_stream(f"{port}", path="/v1/stream?token=ann-0123456789abcdef")
        told = []
        for _ in range(8):
            _, answer = await open_stream(
                port, path="/v1/stream?token=bob-0123456789abcdef", resume_token=started["resume_token"]
            )
            told.append(answer["code"])
        return told

    assert set(asyncio.run(run())) == {"not_authorised"}


def test_the_store_says_who_has_the_newest(start_server, redis, model, talk):
    """Resumed on one server, on the other, and on the first again, which still has what it had."""
    environment = {**os.environ, "VOICEFLOW_STORE": redis, "VOICEFLOW_TOKEN_KEY": secrets.token_hex(16)}
    ports = [start_server("serving.transformer", env=environment)[0] for _ in range(2)]
    pcm = (np.clip(talk, -1, 1) * 32767).astype("<i2").tobytes()

    async def run():
        finals, last_seq, position, token = {}, 0, 0, None

        def take(message):
            nonlocal last_seq
            last_seq = max(last_seq, message.get("seq", 0))
            if message["type"] == "segment" and message["final"]:
                finals[message["id"]] = message
            for row in message["segments"] if message["type"] == "revision" else []:
                finals[row["id"]] |= row

        for turn in range(6):
            start = {"ack": True} if token is None else {"ack": True, "resume_token": token, "last_seq": last_seq}
            socket, started = await open_stream(ports[turn % 2], **start)
            assert started["type"] == "started", started
            token, position = started["resume_token"], round(started["audio_s"] * 16_000) * 2
            until = len(pcm) * (turn + 1) // 6 // 2 * 2
            for begin in range(position, until, 3200):
                await socket.send(pcm[begin : min(until, begin + 3200)])
            if turn == 5:
                await socket.send(json.dumps({"type": "close"}))
                async for text in socket:
                    take(json.loads(text))
                break
            saved = checkpoints(ports[turn % 2])
            answered = 0.0
            while answered < until / 32_000 - 1.5:
                message = json.loads(await socket.recv())
                take(message)
                answered = message["audio_s"] if message["type"] == "ack" else answered
            socket.transport.abort()
            await asyncio.to_thread(eventually, partial(was_saved, ports[turn % 2], saved), "a save")
        return sorted((m["start_s"], m["end_s"], m["speaker"]) for m in finals.values())

    assert asyncio.run(run()) == expected(model, talk)


def test_a_live_url_works_once_on_any_worker(workers, model, talk):
    turns = expected(model, talk)

    async def listen(address):
        told = []
        async with websockets.connect(address) as socket:
            pcm = talk.astype("<f4").tobytes()
            for start in range(0, len(pcm), 6400):
                await socket.send(pcm[start : start + 6400])
            await socket.send(json.dumps({"type": "end_of_stream"}))
            async for text in socket:
                told.append(json.loads(text))
        return told

    async def run():
        addresses = [httpx.post(f"http://127.0.0.1:{workers}/v1/live", json={}).json()["url"] for _ in range(6)]
        first = [await listen(address) for address in addresses]
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await listen(addresses[0])
        return first, closed.value.rcvd.code

    answers, code = asyncio.run(run())
    assert code == 4401
    for told in answers:
        ends = [m["data"]["timestamp"] for m in told if m["type"] == "diarization_speaker_end"]
        starts = [m["data"]["timestamp"] for m in told if m["type"] == "diarization_speaker_start"]
        assert sorted(starts) == sorted(start for start, _, _ in turns)
        assert sorted(ends) == pytest.approx(sorted(end for _, end, _ in turns), abs=2e-4)


def test_a_client_that_missed_more_than_is_kept_is_told_all_turns_as_they_are(start_server, model, talk):
    """It comes back with nothing, after more messages than are remembered one by one."""
    server, _ = start_server("serving.transformer", "--speed_limit", "0")
    long = np.tile(talk, 14)

    async def run():
        first, started = await open_stream(server)
        pcm = (np.clip(long, -1, 1) * 32767).astype("<i2").tobytes()
        for start in range(0, len(pcm), 64_000):
            await first.send(pcm[start : start + 64_000])
        seen = 0
        while seen < 200:
            seen = json.loads(await first.recv()).get("seq", seen)
        first.transport.abort()
        second, again = await open_stream(server, resume_token=started["resume_token"])
        for start in range(round(again["audio_s"] * 16_000) * 2, len(pcm), 64_000):
            await second.send(pcm[start : start + 64_000])
        await second.send(json.dumps({"type": "close"}))
        finals = {}
        async for text in second:
            message = json.loads(text)
            if message["type"] == "segment" and message["final"]:
                finals[message["id"]] = message
            for row in message["segments"] if message["type"] == "revision" else []:
                finals[row["id"]] |= row
        return sorted((m["start_s"], m["end_s"], m["speaker"]) for m in finals.values())

    assert asyncio.run(run()) == expected(model, long)


def checkpoints(port):
    """How often streams were saved."""
    lines = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("voiceflow_checkpoints_total"))


def was_saved(port, before):
    return checkpoints(port) > before


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_another_server_goes_on_with_the_streams_of_one_that_ends(start_server, redis, model, talk, how, tmp_path):
    environment = {**os.environ, "VOICEFLOW_STORE": redis, "VOICEFLOW_TOKEN_KEY": secrets.token_hex(16)}
    first, _ = start_server("serving.transformer", env=environment)
    process = start_server.processes[-1]
    second, _ = start_server("serving.transformer", env=environment)

    async def run():
        async with Proxy(first) as proxy:
            script = Script(talk)
            script.say(8.0)
            clients = [StreamClient(url(proxy.port)) for _ in range(6)]
            tasks = [asyncio.create_task(finals_of(client, script.audio())) for client in clients]
            await heard(clients, 5.0, tasks)
            saved = checkpoints(first)
            # Each stream in its turn: twice as many are all of them, with what was heard.
            await asyncio.to_thread(eventually, lambda: checkpoints(first) >= saved + 12, "all streams in the store")
            proxy.target = second
            async with websockets.connect(url(first)) as waiting:  # nothing has begun on it yet
                process.send_signal(how)
                with pytest.raises(websockets.ConnectionClosed) as closed:
                    await waiting.recv()
            script.say()
            return await asyncio.gather(*tasks), clients, closed.value

    answers, clients, closed = asyncio.run(run())
    assert answers == [expected(model, talk)] * 6
    # Told to go away without a token it would have begun anew elsewhere.
    assert how == signal.SIGKILL or closed.rcvd.code == 1001
    assert all(client.reconnects == 1 for client in clients) or how == signal.SIGKILL
    assert all(client.restarts == 0 for client in clients)


def test_a_server_without_a_store_says_where_the_next_stream_begins(start_server, model, talk):
    first, _ = start_server("serving.transformer")
    process = start_server.processes[-1]
    second, _ = start_server("serving.transformer")

    async def run():
        async with Proxy(first) as proxy:
            script = Script(talk)
            script.say(6.0)
            client = StreamClient(url(proxy.port))
            following = asyncio.create_task(finals_of(client, script.audio()))
            await heard([client], 4.0, [following])
            proxy.target = second
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(eventually, lambda: client.restarts == 1, "another stream")
            script.say()
            return await following, client

    turns, client = asyncio.run(run())
    assert client.restarts == 1
    assert client.closed["audio_s"] == pytest.approx(len(talk) / 16_000)
    assert max(end for _, end, _ in turns) == pytest.approx(max(end for _, end, _ in expected(model, talk)), abs=0.3)
    assert np.any([speaker.endswith("~1") for _, _, speaker in turns])


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_predictor_that_ends_costs_a_pause(start_server, model, talk, how):
    """In order it unloads its model first, and says for a while that it knows none."""
    ports, processes = [], []
    for _ in range(2):
        ports.append(start_server("serving.predictor", "--model", "pretrained", path="/v2/health/ready")[1])
        processes.append(start_server.processes[-1])
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    transformer, _ = start_server("serving.transformer", "--predictor_host", hosts)

    async def run():
        script = Script(talk)
        script.say(6.0)
        clients = [StreamClient(url(transformer)) for _ in range(6)]
        tasks = [asyncio.create_task(finals_of(client, script.audio())) for client in clients]
        await heard(clients, 4.0, tasks)
        processes[0].send_signal(how)
        script.say()
        return await asyncio.gather(*tasks), sum(client.reconnects for client in clients)

    answers, reconnects = asyncio.run(run())
    assert answers == [expected(model, talk)] * 6
    assert reconnects == 0
