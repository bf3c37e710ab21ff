"""Users of 0.1.0 are not broken: what that release wrote down (tests/golden/0.1.0), against the code of today."""

import asyncio
import base64
import json
import re
import shutil

import httpx
import numpy as np
import pytest
import soundfile
import websockets

from tests.conftest import REPO
from voiceflow.adapters.registry import MlflowRegistry
from voiceflow.audio import file_digest
from voiceflow.config import load_params
from voiceflow.metrics import score
from voiceflow.runtime import StepModel, pretrained_path
from voiceflow.stages.promote import rollback
from voiceflow.streaming.batch import diarize
from voiceflow.turns import Turn

pytestmark = pytest.mark.e2e

GOLDEN = REPO / "tests" / "golden" / "0.1.0"
MAX_DER = 0.02
"""Between turns that the same model gave then and gives now: processors round differently."""
MAX_OTHER_DER = 0.2
"""Between turns as they are told and as they are in the end: some protocols have no revisions."""


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def recorded_talk():
    return soundfile.read(GOLDEN / "talk.flac", dtype="float32")[0]


@pytest.fixture(scope="module")
def unlimited(start_server):
    """HTTP port of a server that takes audio as fast as it comes."""
    return start_server("serving.transformer", "--speed_limit", "0")[0]


def pcm(samples, encoding):
    return np.round(samples * 32768.0).astype("<i2").tobytes() if encoding == "pcm_s16le" else samples.tobytes()


def same_model():
    versions = next(row for row in golden("wire")["http"] if row["path"] == "/v1/model")["answer"]["variants"]
    return versions[0]["key"] == file_digest(pretrained_path())


def same_turns(then, now, samples):
    """Whether what is told now is what was told then or, by another model, what that says of the samples at once."""
    assert then
    assert now
    if same_model():
        return score(then, now, duration_s=12.0).der <= MAX_DER
    [today] = diarize([samples], StepModel(pretrained_path()), latency_s=1.04)
    return score(today, now, duration_s=12.0).der <= MAX_OTHER_DER


def finals(messages):
    """Turns of the native protocol as they are in the end."""
    rows = {}
    for message in messages:
        if message["type"] == "segment" and message["final"]:
            rows[message["id"]] = message
        for row in message["segments"] if message["type"] == "revision" else []:
            rows[row["id"]] = rows[row["id"]] | row
    return [Turn(row["start_s"], row["end_s"], row["speaker"]) for row in rows.values()]


def shapes(messages):
    """Keys of each type of message."""
    found = {}
    for message in messages:
        found.setdefault(message.get("type"), set()).update(message)
    return found


def told(session):
    return [row["server"] for row in session if "server" in row]


def keeps_shapes(then, now):
    """Nothing that was told is missing; more may be told."""
    new = shapes(now)
    return all(keys <= new.get(kind, set()) for kind, keys in shapes(then).items() if kind != "revision")


async def play(socket, session, samples):
    """The client's half of a session up to a cut, or to its end; what is left, and what the server told before."""
    heard = []
    for number, row in enumerate(session):
        if "cut" in row:
            # As much as it was told then; acknowledgements may cover more audio, or come later.
            known_s = max(message.get("audio_s", 0.0) for message in told(session[:number]))
            while heard[-1].get("audio_s", 0.0) < known_s:
                heard.append(json.loads(await socket.recv()))
            socket.transport.abort()
            return session[number + 1 :], heard
        if "client" in row:
            await socket.send(row["client"])
        elif "client_audio" in row:
            start, end = row["client_audio"]
            await socket.send(pcm(samples[start:end], row["encoding"]))
        elif "client_chunk" in row:
            start, end = row["client_chunk"]
            chunk = {"type": "audio_chunk", "data": samples[start:end].tolist(), "sequence": row["sequence"]}
            await socket.send(json.dumps(chunk))
            heard.append(json.loads(await socket.recv()))
        elif row.get("server", {}).get("type") == "started":
            heard.append(json.loads(await socket.recv()))
    return [], heard


async def rest_of(socket):
    heard = []
    try:
        while True:
            heard.append(json.loads(await socket.recv()))
    except websockets.ConnectionClosed as closed:
        return heard, closed.rcvd.code if closed.rcvd else None


@pytest.mark.parametrize("profile", [None, "quick", "check", "acceptance", "full"])
def test_its_parameters_are_read(profile):
    assert load_params(GOLDEN / "params.yaml", profile=profile).prepare.seed == 2611


def test_its_commands_and_options_are_there():
    """By name: sentences may change."""
    from typer.main import get_command

    from voiceflow.cli.main import app

    num_named = 0
    for words, lines in golden("help").items():
        command = get_command(app)
        for word in words.split()[1:]:
            command = command.commands[word]
        options = {name for param in command.params for name in [*param.opts, *param.secondary_opts]}
        named = {name for line in lines for name in re.findall(r"^│ \*?\s*(--[a-z][a-z-]*)", line)}
        assert named <= options | {"--help", "--install-completion", "--show-completion"}, words
        num_named += len(named)
    assert num_named > 100


def test_its_native_client_gets_what_it_got(unlimited, recorded_talk):
    """A stream with a cut and a way back by token."""
    session = golden("wire")["/v1/stream"]

    async def run():
        address = f"ws://127.0.0.1:{unlimited}/v1/stream"
        first = await websockets.connect(address)
        session_rest, heard = await play(first, session, recorded_talk)
        start = json.loads(session_rest[0]["client"]) | {"resume_token": heard[0]["resume_token"]}
        second = await websockets.connect(address)
        await second.send(json.dumps(start))
        again = json.loads(await second.recv())
        assert again["session_id"] == heard[0]["session_id"]
        await second.send(pcm(recorded_talk[round(again["audio_s"] * 16_000) :], "pcm_s16le"))
        for row in session_rest[1:]:
            if "client" in row:
                await second.send(row["client"])
        more, code = await rest_of(second)
        return [*heard, again, *more], code

    heard, code = asyncio.run(run())
    assert code == session[-1]["closed"] == 1000
    assert keeps_shapes(told(session), heard)
    assert same_turns(finals(told(session)), finals(heard), recorded_talk)
    assert heard[-1]["audio_s"] == told(session)[-1]["audio_s"]


def test_its_reference_client_gets_what_it_got(unlimited, recorded_talk):
    session = golden("wire")["/ws/stream"]

    def turns_of(replies):
        turns = []
        for reply in replies:
            turns = [turn for turn in turns if turn["end"] <= reply["replaces_after_s"]] + reply["segments"]
        return [Turn(turn["start"], turn["end"], turn["speaker"]) for turn in turns]

    async def run():
        async with websockets.connect(f"ws://127.0.0.1:{unlimited}/ws/stream", max_size=2**22) as socket:
            return (await play(socket, session, recorded_talk))[1]

    replies = asyncio.run(run())
    assert keeps_shapes(told(session), replies)
    assert [reply["sequence"] for reply in replies] == [reply["sequence"] for reply in told(session)]
    assert same_turns(turns_of(told(session)), turns_of(replies), recorded_talk)


def test_its_pyannoteai_client_gets_what_it_got(unlimited, recorded_talk):
    opened, *session = golden("wire")["/v1/live"]

    def turns_of(messages):
        begun, turns = {}, []
        for message in messages:
            data = message["data"]
            if message["type"] == "diarization_speaker_start":
                begun.setdefault(data["speaker"], []).append(data["timestamp"])
            else:
                turns.append(Turn(begun[data["speaker"]].pop(0), data["timestamp"], data["speaker"]))
        return turns

    async def run():
        answer = httpx.post(f"http://127.0.0.1:{unlimited}{opened['POST']}", json=opened["body"]).json()
        assert set(opened["answer_keys"]) <= set(answer)
        socket = await websockets.connect(answer["url"])
        await play(socket, session, recorded_talk)
        return await rest_of(socket)

    messages, code = asyncio.run(run())
    assert code == session[-1]["closed"]
    assert keeps_shapes(told(session), messages)
    assert same_turns(turns_of(told(session)), turns_of(messages), recorded_talk)


def test_its_bad_messages_are_refused_as_they_were(unlimited):
    async def run(session):
        socket = await websockets.connect(f"ws://127.0.0.1:{unlimited}/v1/stream")
        await play(socket, session, None)
        return await rest_of(socket)

    for session in golden("wire")["refused"]:
        [error], code = asyncio.run(run(session))
        assert (error["code"], code) == (told(session)[0]["code"], session[-1]["closed"])


def test_its_http_clients_get_what_they_got(unlimited, recorded_talk, tmp_path):
    soundfile.write(tmp_path / "talk.wav", recorded_talk, 16_000, subtype="PCM_16")
    base = f"http://127.0.0.1:{unlimited}"
    *rows, metrics = golden("wire")["http"]
    for row in rows:
        options, samples = {}, recorded_talk
        if row["body"] == "json":
            samples = recorded_talk[slice(*row["samples"])]
            options = {"json": {"audio": samples.tolist(), "sample_rate_hz": 16_000}}
        elif row["body"] == "content":
            options = {"content": (tmp_path / "talk.wav").read_bytes(), "headers": {"content-type": "audio/wav"}}
        elif row["body"] is not None:
            options = {"json": row["body"]}
        answer = httpx.request(row["method"], base + row["path"], timeout=60, **options)
        assert answer.status_code == row["status"], row["path"]
        assert set(row["answer"]) <= set(answer.json())
        if "turns" in row["answer"]:
            then, now = (
                [Turn(turn["start_s"], turn["end_s"], turn["speaker"]) for turn in turns]
                for turns in (row["answer"]["turns"], answer.json()["turns"])
            )
            assert same_turns(then, now, samples)
    text = httpx.get(f"{base}/metrics", follow_redirects=True).text
    assert set(metrics["metrics"]) <= set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))


def test_a_stream_that_it_saved_goes_on(start_server, redis, recorded_talk, monkeypatch):
    """A rolling upgrade: the old server has gone, the new one finds the stream in Redis."""
    from redis import Redis

    saved = golden("redis")
    with Redis.from_url(redis) as client:
        for key, value in saved["keys"].items():
            client.set(key, base64.b64decode(value), ex=600)
    monkeypatch.setenv("VOICEFLOW_STORE", redis)
    monkeypatch.setenv("VOICEFLOW_TOKEN_KEY", saved["token_key"])
    port, _ = start_server("serving.transformer", "--speed_limit", "0")

    async def run():
        socket = await websockets.connect(f"ws://127.0.0.1:{port}/v1/stream")
        start = json.loads(golden("wire")["/v1/stream"][0]["client"])
        last_seq = max(message.get("seq", 0) for message in saved["told"])
        await socket.send(json.dumps(start | {"resume_token": saved["resume_token"], "last_seq": last_seq}))
        started = json.loads(await socket.recv())
        assert started["type"] == "started", started
        await socket.send(pcm(recorded_talk[round(started["audio_s"] * 16_000) :], "pcm_s16le"))
        await socket.send(json.dumps({"type": "close"}))
        messages, code = await rest_of(socket)
        return started, messages, code

    started, messages, code = asyncio.run(run())
    assert started["audio_s"] == saved["audio_s"]
    assert (code, messages[-1]["audio_s"]) == (1000, 12.0)
    assert same_turns(finals(told(golden("wire")["/v1/stream"])), finals([*saved["told"], *messages]), recorded_talk)


def test_versions_that_it_registered_are_read_and_rolled_back(tmp_path, monkeypatch):
    """Aliases, tags and log as its first promotion left them."""
    monkeypatch.setenv("VOICEFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    left, registry = golden("mlflow"), MlflowRegistry()
    files = tmp_path / "files"
    files.mkdir()
    shutil.copyfile(pretrained_path(), files / "diarizer.onnx")
    for row in reversed(left["versions"]):
        assert registry.register(files, tags=row["tags"], run_id=None) == row["version"]
        for alias in row["aliases"]:
            registry.set_alias(alias, row["version"])
    for name, text in left["model_tags"].items():
        registry._client.set_registered_model_tag(left["name"], name, text)
    assert [entry["action"] for entry in registry.audit_log()] == ["begin", "promote"]
    assert [(row["version"], row["aliases"], row["tags"]) for row in registry.history()] == [
        (row["version"], row["aliases"], row["tags"]) for row in left["versions"]
    ]
    assert registry.find_digest(left["versions"][0]["tags"]["digest"]) == "2"
    rollback(registry, to=None, why="upgraded", by="a test")
    assert registry.version_of("champion") == "1"
