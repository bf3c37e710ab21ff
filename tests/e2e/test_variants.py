"""Models side by side on real servers: who answers a stream, and what happens when one fails or is withdrawn."""

import asyncio
import json
import os
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import websockets

from benchmarks.challengers import write_challenger
from serving.clients.stream import StreamClient
from tests.conftest import eventually
from tests.e2e.test_streams import START, expected, url
from tests.talking import Script, heard
from voiceflow.adapters.splits import notes_at, read_split, write_split
from voiceflow.audio import file_digest
from voiceflow.errors import ConfigError
from voiceflow.split import Served, Split, share_of

pytestmark = pytest.mark.e2e
ROLES = ("champion", "challenger", "previous", "withdrawn")
WORKERS = 2
SHADOW_METRICS = ("voiceflow_shadow_error_seconds_total", "voiceflow_shadow_speech_seconds_total")


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """Challengers by kind."""
    folder = tmp_path_factory.mktemp("challengers")

    def make(kind):
        path = write_challenger(kind, folder)
        return Served(uri=str(path), digest=file_digest(path), version=kind)

    return {kind: make(kind) for kind in ("good", "failing", "flipping")}


@pytest.fixture(scope="module")
def rollout(start_server, tmp_path_factory):
    """A server of two workers that reads a split, and what changes that."""
    path = tmp_path_factory.mktemp("split") / "split.json"
    return Rollout(start_server, path, "--workers", str(WORKERS), workers=WORKERS)


class Rollout:
    """A server that reads a split, and the means to change that."""

    def __init__(self, start_server, path, *arguments, env=None, workers=1):
        self.notes = notes_at(str(path))
        self.port = start_server("serving.transformer", "--split", str(path), *arguments, env=env)[0]
        self.log = Path(start_server.logs[-1])
        self.workers = workers
        self.champion = Served(uri="pretrained", digest=self.model()["variants"][0]["key"])

    def model(self):
        return httpx.get(f"http://127.0.0.1:{self.port}/v1/model").json()

    def split(self, **changes):
        """Change the split, and wait until every worker acts on it."""
        split = Split(**{"champion": self.champion, **changes})
        write_split(self.notes, split)
        eventually(
            lambda: self.values("voiceflow_split_revision") == [float(split.revision)] * self.workers,
            "the split in every worker",
        )

    def values(self, name, *labels):
        text = httpx.get(f"http://127.0.0.1:{self.port}/metrics", timeout=60).text
        lines = [line for line in text.splitlines() if line.startswith(name) and all(one in line for one in labels)]
        return [float(line.rsplit(" ", 1)[1]) for line in lines]

    def metric(self, name, variant):
        return sum(self.values(name, f'variant="{variant}"'))


async def follow(port, samples, client=None):
    """A client's messages; each is of the model that the client was told of last."""
    client, messages, model = client or StreamClient(url(port), speed=0.0), [], None
    async for message in client.run(samples):
        model = model or client.started["model"]
        if message["type"] == "model_changed":
            assert message["from"] == model
            model = message["to"]
        assert message["variant"] == model["variant"]
        messages.append(message)
    return client, messages


@asynccontextmanager
async def held(port, samples, number, *, at_s=4.0):
    """So many clients in the middle of what they say, until what is done meanwhile is done; and what they were told."""
    script = Script(samples)
    script.say(at_s)
    clients = [StreamClient(url(port)) for _ in range(number)]
    tasks = [asyncio.create_task(follow(port, script.audio(), client)) for client in clients]
    await heard(clients, at_s / 2, tasks)
    yield tasks
    script.say()
    await asyncio.gather(*tasks)


def finals(messages):
    known = {}
    for message in messages:
        if message["type"] == "segment":
            known[message["id"]] = message
        for row in message.get("segments", []):
            known[row["id"]] = known[row["id"]] | row
    assert all(row["final"] for row in known.values())
    return sorted((row["start_s"], row["end_s"], row["speaker"]) for row in known.values())


def test_a_share_of_the_streams_goes_to_the_challenger_and_never_more(rollout, served, model, talk):
    rollout.split(challenger=served["good"], weight=0.3)

    async def run():
        return await asyncio.gather(*(follow(rollout.port, talk[:64_000]) for _ in range(60)))

    told = asyncio.run(run())
    by_challenger = [client for client, _ in told if client.started["model"]["variant"] == "challenger"]
    assert 4 <= len(by_challenger) <= 18
    for client, messages in told:
        challenged = client in by_challenger
        assert client.started["model"]["version"] == ("9.0.0+good" if challenged else model.metadata.version)
        assert (share_of(client.started["session_id"], "variant") < 0.3) or not challenged
        assert finals(messages) == expected(model, talk[:64_000])
    assert rollout.metric("voiceflow_opened_streams_total", "challenger") == len(by_challenger)
    assert rollout.model()["variants"][1]["registered_version"] == "good"


def test_weights_change_without_touching_open_streams(rollout, served, model, talk):
    rollout.split(challenger=served["good"], weight=1.0)

    async def run():
        async with held(rollout.port, talk, 6) as before:
            await asyncio.to_thread(rollout.split, challenger=served["good"], weight=0.0)
            client, _ = await follow(rollout.port, talk[:32_000])
            assert client.started["model"]["variant"] == "champion"
        return [task.result() for task in before]

    for client, messages in asyncio.run(run()):
        assert client.started["model"]["variant"] == "challenger"
        assert client.reconnects == 0
        assert not any(message["type"] == "model_changed" for message in messages)
        assert finals(messages) == expected(model, talk)


def test_streams_of_a_challenger_that_fails_go_on_with_the_champion(rollout, served, talk):
    rollout.split(challenger=served["failing"], weight=1.0)

    async def run():
        return await asyncio.gather(*(follow(rollout.port, talk) for _ in range(6)))

    changed_s = []
    for client, messages in asyncio.run(run()):
        changes = [message for message in messages if message["type"] == "model_changed"]
        if client.started["model"]["variant"] == "champion":
            continue  # it came when three steps had failed already
        assert len(changes) == 1
        assert changes[0]["to"]["variant"] == "champion"
        changed_s.append(changes[0]["at_s"])
        assert client.reconnects == 0
        turns = finals(messages)
        assert client.closed["speakers"] == len({speaker for _, _, speaker in turns})
        assert turns[-1][1] > changes[0]["at_s"]
    # A step that fails fails for all of its streams, however young.
    assert 2.0 <= max(changed_s) <= 8.0
    assert rollout.metric("voiceflow_failed_steps_total", "challenger") >= 1
    assert rollout.metric("voiceflow_model_changes_total", "challenger") >= 1


def test_streams_of_a_withdrawn_model_go_on_with_the_champion(rollout, served, model, talk):
    good = served["good"]
    rollout.split(challenger=good, weight=1.0)

    async def run():
        async with held(rollout.port, talk, 6) as tasks:
            await asyncio.to_thread(rollout.split, withdrawn=[good.key])
            client, _ = await follow(rollout.port, talk[:32_000])
            assert client.started["model"]["variant"] == "champion"
        return [task.result() for task in tasks]

    whole = expected(model, talk)
    for client, messages in asyncio.run(run()):
        assert client.started["model"]["variant"] == "challenger"
        [change] = [message for message in messages if message["type"] == "model_changed"]
        assert change["from"]["variant"] == "challenger"
        assert (change["to"]["version"], change["to"]["variant"]) == (model.metadata.version, "champion")
        early = [turn for turn in finals(messages) if turn[1] < change["at_s"] - 1.0]
        assert early == [turn for turn in whole if turn[1] < change["at_s"] - 1.0]
        labels = {turn[2] for turn in whole}
        assert set(change["speakers"]) <= labels
    eventually(lambda: rollout.metric("voiceflow_models_held", "withdrawn") == 0, "the end of the withdrawn model")
    assert [row["variant"] for row in rollout.model()["variants"]] == ["champion"]


def test_what_a_shadow_says_is_compared_and_never_sent(rollout, served, model, talk):
    shares, long, num_clients = {}, np.tile(talk, 3), 4
    said = expected(model, long)
    for kind in ("good", "flipping"):
        rollout.split(challenger=served[kind], shadow=1.0)
        before = [rollout.metric(name, "challenger") for name in SHADOW_METRICS]

        async def run(before=before):
            script = Script(long)
            clients = [StreamClient(url(rollout.port)) for _ in range(num_clients)]
            tasks = [asyncio.create_task(follow(rollout.port, script.audio(), client)) for client in clients]
            for at_s in (9.0, 18.0, 27.0):  # a shadow that is far behind is given up
                script.say(at_s)
                # Pieces of 5 s are compared, of what neither will change: a few seconds are always left.
                speech_s = sum(max(0.0, min(end_s, at_s - 8.0) - start_s) for start_s, end_s, _ in said)

                def compared(least_s=num_clients * 0.95 * speech_s):
                    """Seconds of error and of speech, once so much was compared."""
                    counted = np.subtract([rollout.metric(name, "challenger") for name in SHADOW_METRICS], before)
                    return tuple(counted) if counted[1] > least_s else ()

                counted = await asyncio.to_thread(eventually, compared, f"comparisons with the shadow, {at_s} s")
            script.say()
            return counted, await asyncio.gather(*tasks)

        (error_s, speech_s), answers = asyncio.run(run())
        for client, messages in answers:
            assert client.started["model"]["variant"] == "champion"
            assert {message["variant"] for message in messages} == {"champion"}
            assert finals(messages) == said
        shares[kind] = error_s / speech_s
    assert shares["good"] == 0.0
    assert shares["flipping"] > 0.3


def test_a_challenger_becomes_champion_and_the_one_before_leaves_when_its_streams_end(rollout, served, model, talk):
    good, before = served["good"], rollout.champion
    rollout.split(challenger=good, weight=0.0, shadow=1.0)

    async def run():
        async with held(rollout.port, talk, 4) as tasks:
            await asyncio.to_thread(rollout.split, champion=good)
            assert rollout.metric("voiceflow_models_held", "previous") >= 1
            # What it heard as a shadow is over.
            await asyncio.to_thread(
                eventually,
                lambda: not any(rollout.metric("voiceflow_shadowed_streams", variant) for variant in ROLES),
                "the end of the shadows",
            )
            client, _ = await follow(rollout.port, talk[:32_000])
            assert client.started["model"]["version"] == "9.0.0+good"
            assert client.started["model"]["variant"] == "champion"
        return [task.result() for task in tasks]

    for client, messages in asyncio.run(run()):
        assert client.started["model"]["version"] == model.metadata.version
        assert not any(message["type"] == "model_changed" for message in messages)
        assert finals(messages) == expected(model, talk)
    eventually(lambda: rollout.metric("voiceflow_models_held", "previous") == 0, "the end of the model before")
    told = rollout.model()
    assert [row["variant"] for row in told["variants"]] == ["champion"]
    assert told["version"] == "9.0.0+good"
    health = httpx.get(f"http://127.0.0.1:{rollout.port}/health").json()
    assert health["model"]["version"] == "9.0.0+good"
    rollout.split(champion=before)
    assert rollout.model()["version"] == model.metadata.version


def test_what_cannot_be_loaded_is_told_and_the_champion_goes_on(rollout, served, talk):
    wrong = served["good"].model_copy(update={"digest": "0" * 64})
    rollout.split(challenger=wrong, weight=1.0)
    [champion, refused] = rollout.model()["variants"]
    assert champion["is_up"]
    assert not refused["is_up"]
    assert "digest" in refused["error"].lower() or "sha-256" in refused["error"].lower()
    assert rollout.metric("voiceflow_variant_up", "challenger") == 0
    client, _ = asyncio.run(follow(rollout.port, talk[:32_000]))
    assert client.started["model"]["variant"] == "champion"
    rollout.notes.put("", '{"champion": {"uri": "pretrained"}, "weigth": 1}')
    eventually(lambda: rollout.log.read_text().count("models stay as they are") >= WORKERS, "what is said of it")
    assert asyncio.run(follow(rollout.port, talk[:32_000]))[0].started["model"]["variant"] == "champion"
    with pytest.raises(ConfigError, match="weigth"):
        read_split(rollout.notes)


def test_a_stream_that_is_resumed_where_its_model_is_not_goes_on_with_the_champion(
    start_server, served, model, talk, tmp_path, redis
):
    env = {**os.environ, "VOICEFLOW_STORE": redis, "VOICEFLOW_TOKEN_KEY": "1" * 32}
    one = Rollout(start_server, tmp_path / "one.json", env=env)
    one.split(challenger=served["good"], weight=1.0)
    other = start_server("serving.transformer", env=env)[0]
    pcm = (np.clip(talk, -1, 1) * 32767).astype("<i2").tobytes()

    async def run():
        socket = await websockets.connect(url(one.port))
        await socket.send(json.dumps(START))
        started = json.loads(await socket.recv())
        assert started["model"]["variant"] == "challenger"
        await socket.send(pcm[: 6 * 32_000])
        [before] = one.values("voiceflow_checkpoints_total")
        await socket.close()

        def saved():
            return one.values("voiceflow_checkpoints_total") > [before]

        await asyncio.to_thread(eventually, saved, "the stream in the store")
        socket = await websockets.connect(url(other))
        await socket.send(json.dumps(START | {"resume_token": started["resume_token"]}))
        again = json.loads(await socket.recv())
        await socket.send(pcm[round(again["audio_s"] * 32_000) :])
        await socket.send('{"type": "close"}')
        messages = [json.loads(message) async for message in socket]
        return again, messages

    again, messages = asyncio.run(run())
    assert again["type"] == "started"
    [change] = [message for message in messages if message["type"] == "model_changed"]
    assert change["from"]["version"] == "9.0.0+good"
    assert change["to"]["version"] == model.metadata.version
    assert messages[-1]["type"] == "closed"
    assert messages[-1]["audio_s"] == pytest.approx(len(talk) / 16_000)
