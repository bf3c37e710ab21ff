"""`python record.py FOLDER`: what users of a release have, written down by that release.

Run it with the Python and in the checkout of the release; tests/golden/0.1.0 is of commit cba5236. It asks the release
itself: real servers, a real Redis, a real MLflow store. tests/e2e/test_compatibility.py holds later code against it:

    params.yaml       the released values
    help.json         what every command says of itself
    talk.flac         the audio of the sessions below
    wire.json         a session of each protocol, message by message
    redis.json        a stream that a server has saved and left
    mlflow.json       tags of registered versions, of the model, and of the run
"""

import asyncio
import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile
import websockets

sys.path.insert(0, str(Path.cwd()))
TOKEN_KEY = "0123456789abcdef0123456789abcdef"
PACKET_SAMPLES = 1600
NATIVE_START = {
    "type": "start",
    "audio": {"encoding": "pcm_s16le", "sample_rate": 16000, "channels": 1},
    "diarization": {"max_speakers": 4, "latency_s": 1.04},
    "ack": True,
}
BAD = ("not json", '{"type": "begin"}', '{"type": "close"}', json.dumps(NATIVE_START | {"colour": 1}))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`python -m serving.transformer` of this checkout."""

    def __init__(self, **env: str) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "serving.transformer", "--model_name", "voiceflow-diarizer"]
        command += ["--http_port", str(self.port), "--grpc_port", str(free_port()), "--speed_limit", "0"]
        self.process = subprocess.Popen(
            command, env=os.environ | env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while True:
            assert self.process.poll() is None, "the server ended"
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/health").status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.1)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()


class Tape:
    """A connection whose messages are written down in order; audio as ranges of samples of talk.flac."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.messages: list[dict[str, Any]] = []

    async def say(self, text: str) -> None:
        self.messages.append({"client": text})
        await self.connection.send(text)

    async def play(self, data: bytes, start: int, end: int, encoding: str) -> None:
        self.messages.append({"client_audio": [start, end], "encoding": encoding})
        await self.connection.send(data)

    async def hear(self) -> dict[str, Any]:
        text = await self.connection.recv()
        self.messages.append({"server": json.loads(text)})
        return json.loads(text)

    async def hear_all(self) -> None:
        try:
            while True:
                await self.hear()
        except websockets.ConnectionClosed as closed:
            self.messages.append({"closed": closed.rcvd.code if closed.rcvd else None})


def pcm16(talk_N: np.ndarray) -> bytes:
    return np.round(talk_N * 32768.0).astype("<i2").tobytes()


async def native(base: str, talk_N: np.ndarray) -> list[dict[str, Any]]:
    """Start, audio, a cut, the way back with the token, finalize, close."""
    address, pcm = f"{base}/v1/stream", pcm16(talk_N)
    half = len(talk_N) // 2 // PACKET_SAMPLES * PACKET_SAMPLES
    tape = Tape(await websockets.connect(address))
    await tape.say(json.dumps(NATIVE_START))
    token = (await tape.hear())["resume_token"]
    for start in range(0, half, PACKET_SAMPLES):
        await tape.play(pcm[2 * start : 2 * (start + PACKET_SAMPLES)], start, start + PACKET_SAMPLES, "pcm_s16le")
    while (await tape.hear()).get("audio_s", 0.0) < half / 16_000 - 1.2:
        pass
    tape.connection.transport.abort()
    tape.messages.append({"cut": True})
    tape.connection = await websockets.connect(address)
    await tape.say(json.dumps(NATIVE_START | {"resume_token": token}))
    started = await tape.hear()
    for start in range(round(started["audio_s"] * 16_000), len(talk_N), PACKET_SAMPLES):
        end = min(len(talk_N), start + PACKET_SAMPLES)
        await tape.play(pcm[2 * start : 2 * end], start, end, "pcm_s16le")
    for kind in ("keepalive", "finalize", "close"):
        await tape.say(json.dumps({"type": kind}))
    await tape.hear_all()
    return tape.messages


async def refused(base: str, text: str) -> list[dict[str, Any]]:
    """What a bad first message gets."""
    tape = Tape(await websockets.connect(f"{base}/v1/stream"))
    await tape.say(text)
    await tape.hear_all()
    return tape.messages


async def reference(base: str, talk_N: np.ndarray) -> list[dict[str, Any]]:
    """The reference system's client: a second of floats, a reply."""
    tape = Tape(await websockets.connect(f"{base}/ws/stream", max_size=2**22))
    for sequence, start in enumerate(range(0, len(talk_N), 16_000)):
        chunk = talk_N[start : start + 16_000]
        text = json.dumps({"type": "audio_chunk", "data": chunk.tolist(), "sequence": sequence})
        tape.messages.append({"client_chunk": [start, start + len(chunk)], "sequence": sequence})
        await tape.connection.send(text)
        await tape.hear()
    await tape.connection.close()
    return tape.messages


async def live(http: str, talk_N: np.ndarray) -> list[dict[str, Any]]:
    """pyannoteAI's: a URL first, then audio."""
    answer = httpx.post(f"{http}/v1/live", json={}).json()
    tape = Tape(await websockets.connect(answer["url"]))
    tape.messages.append({"POST": "/v1/live", "body": {}, "answer_keys": sorted(answer)})
    data = talk_N.astype("<f4").tobytes()
    for start in range(0, len(talk_N), PACKET_SAMPLES):
        end = min(len(talk_N), start + PACKET_SAMPLES)
        await tape.play(data[4 * start : 4 * end], start, end, "pcm_f32le")
    await tape.say(json.dumps({"type": "end_of_stream"}))
    await tape.hear_all()
    return tape.messages


def http_answers(http: str, folder: Path, talk_N: np.ndarray) -> list[dict[str, Any]]:
    """Plain HTTP: what is asked, the status, and the answer."""
    as_json = {"audio": talk_N[:48_000].tolist(), "sample_rate_hz": 16_000}
    wav = folder / "talk.wav"
    soundfile.write(wav, talk_N, 16_000, subtype="PCM_16")
    asked = [
        ("GET", "/health", None, {}),
        ("GET", "/ready", None, {}),
        ("GET", "/v1/model", None, {}),
        ("POST", "/infer", [0, 48_000], {"json": as_json}),
        ("POST", "/infer", [0, len(talk_N)], {"content": wav.read_bytes(), "headers": {"content-type": "audio/wav"}}),
        ("POST", "/infer", None, {"json": {"audio": "x"}}),
    ]
    rows = []
    for method, path, samples, options in asked:
        answer = httpx.request(method, f"{http}{path}", timeout=60, **options)
        row = {"method": method, "path": path, "status": answer.status_code, "answer": answer.json()}
        row["body"] = next(iter(options), None) if samples else options.get("json")
        rows.append(row | {"samples": samples})
    wav.unlink()
    text = httpx.get(f"{http}/metrics", follow_redirects=True).text
    names = sorted({line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")})
    return [*rows, {"method": "GET", "path": "/metrics", "metrics": names}]


def record_wire(folder: Path, talk_N: np.ndarray) -> None:
    """wire.json"""
    with Server(VOICEFLOW_TOKEN_KEY=TOKEN_KEY) as server:
        http, base = f"http://127.0.0.1:{server.port}", f"ws://127.0.0.1:{server.port}"
        sessions = {
            "/v1/stream": asyncio.run(native(base, talk_N)),
            "/ws/stream": asyncio.run(reference(base, talk_N)),
            "/v1/live": asyncio.run(live(http, talk_N)),
            "http": http_answers(http, folder, talk_N),
            "refused": [asyncio.run(refused(base, text)) for text in BAD],
        }
    write(folder / "wire.json", sessions)


def record_redis(folder: Path, talk_N: np.ndarray) -> None:
    """redis.json: half a talk, and a server that was told to go."""
    import redis

    half = len(talk_N) // 2 // PACKET_SAMPLES * PACKET_SAMPLES
    port = free_port()
    with tempfile.TemporaryDirectory() as scratch:
        store = subprocess.Popen(
            ["redis-server", "--port", str(port), "--save", "", "--dir", scratch], stdout=subprocess.DEVNULL
        )
        url = f"redis://127.0.0.1:{port}/0"
        client = redis.Redis.from_url(url)
        while True:
            try:
                client.ping()
                break
            except redis.RedisError:
                time.sleep(0.05)

        async def talk_then_go(server: Server) -> tuple[str, float, list[dict[str, Any]]]:
            socket_ = await websockets.connect(f"ws://127.0.0.1:{server.port}/v1/stream")
            await socket_.send(json.dumps(NATIVE_START))
            token = json.loads(await socket_.recv())["resume_token"]
            for start in range(0, half, PACKET_SAMPLES):
                await socket_.send(pcm16(talk_N[start : start + PACKET_SAMPLES]))
            told, audio_s = [], 0.0
            while audio_s < half / 16_000 - 1.2:
                told.append(json.loads(await socket_.recv()))
                audio_s = told[-1].get("audio_s", audio_s)
            server.process.send_signal(signal.SIGTERM)
            try:
                while True:
                    told.append(json.loads(await socket_.recv()))
            except websockets.ConnectionClosed:
                return token, half / 16_000, told

        with Server(VOICEFLOW_TOKEN_KEY=TOKEN_KEY, VOICEFLOW_STORE=url) as server:
            token, audio_s, told = asyncio.run(talk_then_go(server))
            server.process.wait()
        keys = {key.decode(): base64.b64encode(client.get(key)).decode() for key in sorted(client.scan_iter())}
        client.close()
        store.terminate()
        store.wait()
    assert any(key.startswith("voiceflow:stream:") for key in keys), keys
    saved = {"token_key": TOKEN_KEY, "resume_token": token, "audio_s": audio_s, "told": told, "keys": keys}
    write(folder / "redis.json", saved)


def record_help(folder: Path) -> None:
    """help.json: every command and subcommand."""
    program = str(Path(sys.executable).with_name("voiceflow"))
    env = os.environ | {"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
    texts: dict[str, list[str]] = {}

    def ask(words: list[str]) -> None:
        done = subprocess.run([program, *words, "--help"], capture_output=True, text=True, check=True, env=env)
        lines = [line.rstrip() for line in done.stdout.splitlines()]
        texts[" ".join(["voiceflow", *words])] = lines
        commands = [index for index, line in enumerate(lines) if "Commands" in line and "─" in line]
        for line in lines[commands[0] + 1 :] if commands else []:
            name = line.strip("│ ").split(" ")[0] if line.startswith("│ ") and line[2] != " " else ""
            if name and words != [name]:
                ask([*words, name])

    ask([])
    write(folder / "help.json", texts)


def record_mlflow(folder: Path, talk_N: np.ndarray) -> None:
    """mlflow.json: a first promotion on an empty SQLite store."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["VOICEFLOW_HOME"] = scratch
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        from tests.conftest import small
        from tests.integration.test_registry import candidate
        from voiceflow.adapters.registry import MODEL_NAME, MlflowRegistry
        from voiceflow.config import load_params
        from voiceflow.simulation.voices import synthesise_corpus
        from voiceflow.stages.prepare import prepare
        from voiceflow.stages.promote import promote

        place = Path(scratch)
        synthesise_corpus(place / "corpus", num_speakers=16, sentences_each=4, seed=3)
        params = load_params(Path("params.yaml"))
        prepare(small(params).prepare, place / "prepared", corpus=place / "corpus", revision="test")
        registry = MlflowRegistry()
        changes = {"long_stream_s": 24.0, "long_from_s": 12.0, "max_slowdown": 10.0}
        easy = {"max_der": 0.9, "max_der_per_slice": 1.0, "max_flips_per_minute": 60.0}
        given = candidate(place / "given", version="0.2.0")
        report = promote(
            params.promote.model_copy(update=changes),
            params.evaluate.model_copy(update=easy),
            given,
            place / "prepared",
            place / "out",
            registry,
            by="a test",
            accept_equal=True,
        )
        assert report["becomes"] == "champion", report["reasons"]
        model = registry._client.get_registered_model(MODEL_NAME)
        versions = registry.history()
        runs = {row["run_id"]: registry._client.get_run(row["run_id"]) for row in versions}
        artifacts = {
            row["version"]: sorted(path.name for path in registry.download(row["version"]).iterdir())
            for row in versions
        }
        write(
            folder / "mlflow.json",
            {
                "name": MODEL_NAME,
                "aliases": dict(model.aliases),
                "model_tags": dict(model.tags),
                "versions": [row | {"files": artifacts[row["version"]]} for row in versions],
                "runs": {
                    key: {
                        "params": dict(run.data.params),
                        "tags": {n: v for n, v in run.data.tags.items() if "." not in n},
                    }
                    for key, run in runs.items()
                },
            },
        )


def record_talk(folder: Path) -> np.ndarray:
    """talk.flac: twelve seconds of a held-out conversation of espeak-ng voices."""
    from tests.conftest import small
    from voiceflow.config import load_params
    from voiceflow.simulation.voices import synthesise_corpus
    from voiceflow.stages.dataset import read_recordings
    from voiceflow.stages.prepare import prepare

    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        synthesise_corpus(place / "corpus", num_speakers=16, sentences_each=4, seed=3)
        params = load_params(Path("params.yaml"))
        prepare(small(params).prepare, place / "prepared", corpus=place / "corpus", revision="test")
        recording = read_recordings(place / "prepared", "test")[0]
        shutil.copyfile(place / "prepared" / recording.audio, folder / "talk.flac")
    return soundfile.read(folder / "talk.flac", dtype="float32")[0]


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile("params.yaml", target / "params.yaml")
    record_help(target)
    audio_N = record_talk(target)
    record_wire(target, audio_N)
    record_redis(target, audio_N)
    record_mlflow(target, audio_N)
