"""Real servers in processes of their own, real sockets."""

import asyncio
import base64
import io
import json

import httpx
import numpy as np
import pytest
import soundfile
import websockets

from serving.clients.stream import StreamClient
from voiceflow.audio import load_audio
from voiceflow.streaming.batch import diarize, stream_recordings
from voiceflow.streaming.session import StreamSettings

pytestmark = pytest.mark.e2e


def url(port, path="/v1/stream"):
    return f"ws://127.0.0.1:{port}{path}"


def quantised(samples):
    """The audio as 16-bit PCM carries it."""
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").astype(np.float32) / np.float32(32768.0)


async def finals_of(client, samples):
    """Turns as they are in the end: start, end, speaker."""
    finals = {}
    async for message in client.run(samples):
        if message["type"] == "segment" and message["final"]:
            finals[message["id"]] = message
        for row in message["segments"] if message["type"] == "revision" else []:
            finals[row["id"]] = finals[row["id"]] | row
    return sorted((m["start_s"], m["end_s"], m["speaker"]) for m in finals.values())


async def stream(port, samples, **options):
    client = StreamClient(url(port), speed=0.0, **options)
    turns = await finals_of(client, samples)
    assert client.closed["audio_s"] == pytest.approx(len(samples) / 16_000)
    return turns


def expected(model, samples, **options):
    turns = diarize([quantised(samples)], model, latency_s=1.04, **options)[0]
    return sorted((round(t.start_s, 3), round(t.end_s, 3), t.speaker) for t in turns)


def as_told(model, samples):
    """The reference protocol has no revisions: a turn keeps the label it was first told with."""
    [session] = stream_recordings([samples], model, StreamSettings("pcm_f32le", latency_s=1.04))
    return session.turns_as_told


def test_a_live_stream_gives_the_turns_of_diarize(server, model, talk):
    assert asyncio.run(stream(server, talk)) == expected(model, talk)


def test_an_enrolled_speaker_is_named_and_a_bad_recording_refused(server, model, talk):
    first = diarize([talk], model, latency_s=1.04)[0][0]
    alone = np.concatenate([talk[int(first.start_s * 16_000) : int(first.end_s * 16_000)]] * 4)
    file = io.BytesIO()
    soundfile.write(file, alone, 16_000, format="WAV")
    speakers = [
        {"label": "Ada", "audio_b64": base64.b64encode(file.getvalue()).decode()},
        {"label": "Bob", "audio_b64": base64.b64encode(b"no audio").decode()},
        {"label": "Cem", "audio_b64": "%%%"},
        {"label": "Ada", "audio_b64": ""},
    ]
    client = StreamClient(url(server), speed=0.0, speakers=speakers)

    async def run():
        return [m async for m in client.run(talk) if m["type"] == "segment"]

    segments = asyncio.run(run())
    assert segments[0]["speaker"] == "Ada"
    reasons = {row["label"]: row["reason"] for row in client.started["speakers_rejected"]}
    assert "cannot be decoded" in reasons["Bob"]
    assert "base64" in reasons["Cem"]
    assert "named twice" in reasons["Ada"]


def test_health_ready_metrics_and_infer(server, model, talk):
    base = f"http://127.0.0.1:{server}"
    assert httpx.get(f"{base}/health").json()["status"] == "ok"
    assert httpx.get(f"{base}/ready").json()["ready"]
    answer = httpx.post(f"{base}/infer", json={"audio": talk.tolist(), "sample_rate_hz": 16000}, timeout=30).json()
    turns = diarize([talk], model, latency_s=1.04)[0]
    assert [(t["start_s"], t["speaker"]) for t in answer["turns"]] == [(round(t.start_s, 3), t.speaker) for t in turns]
    text = httpx.get(f"{base}/metrics", follow_redirects=True).text
    for name in (
        "inference_latency_seconds",
        "inference_requests_total",
        "inference_errors_total",
        "websocket_connections_active",
    ):
        assert f'{name}{"_count" if "latency" in name else ""}{{model_version="' in text


@pytest.mark.parametrize("body", [b"", b"text", b"{}", b'{"audio": "x"}', b'{"audio": []}', b"[1, 2"])
def test_infer_refuses_what_is_not_audio(server, body):
    headers = {"content-type": "application/json" if body[:1] in (b"{", b"[") else "audio/wav"}
    answer = httpx.post(f"http://127.0.0.1:{server}/infer", content=body, headers=headers)
    assert answer.status_code == 400
    assert "expected" in answer.json()["error"]["message"]


def test_the_reference_client_gets_a_reply_for_each_chunk(server):
    async def run():
        async with websockets.connect(url(server, "/ws/stream"), max_size=2**22) as socket:
            replies = []
            for sequence in range(3):
                await socket.send(json.dumps({"type": "audio_chunk", "data": [0.1] * 16000, "sequence": sequence}))
                replies.append(json.loads(await socket.recv()))
            return replies

    replies = asyncio.run(run())
    assert [reply["sequence"] for reply in replies] == [0, 1, 2]
    assert all(reply["segments"] == [] and reply["latency_ms"] > 0 for reply in replies)


async def reference_turns(port, samples):
    """Feed chunks of a second; segments after `replaces_after_s` replace what was said of that time."""
    turns = []
    async with websockets.connect(url(port, "/ws/stream"), max_size=2**22) as socket:
        for sequence, start in enumerate(range(0, len(samples), 16_000)):
            chunk = samples[start : start + 16_000].tolist()
            await socket.send(json.dumps({"type": "audio_chunk", "data": chunk, "sequence": sequence}))
            reply = json.loads(await socket.recv())
            turns = [turn for turn in turns if turn["end"] <= reply["replaces_after_s"]] + reply["segments"]
    return sorted((turn["start"], turn["end"], turn["speaker"]) for turn in turns)


def test_the_reference_protocol_gives_the_turns_of_diarize(server, model, talk):
    turns = as_told(model, talk)
    assert asyncio.run(reference_turns(server, talk)) == sorted((t.start_s, t.end_s, t.speaker) for t in turns)


def test_the_reference_protocol_on_a_meeting(server, model, meetings):
    samples = load_audio(meetings[0])
    turns = as_told(model, samples)
    assert asyncio.run(reference_turns(server, samples)) == sorted((t.start_s, t.end_s, t.speaker) for t in turns)


def encoded(samples, container):
    """Opus as a browser sends it, 20 ms a packet."""
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        track = output.add_stream("libopus", rate=48_000, layout="mono", bit_rate=64_000)
        upsampled = np.repeat(samples, 3)[None]
        for start in range(0, upsampled.shape[1], 960):
            block = np.ascontiguousarray(upsampled[:, start : start + 960], np.float32)
            piece = av.AudioFrame.from_ndarray(block, format="flt", layout="mono")
            piece.rate, piece.pts = 48_000, start
            output.mux(track.encode(piece))
        output.mux(track.encode(None))
    return file.getvalue()


def decoded(data):
    """The same file at once, mono at 16 kHz."""
    import av

    resampler = av.AudioResampler(format="flt", layout="mono", rate=16_000)
    with av.open(io.BytesIO(data)) as file:
        frames = [piece for frame in file.decode(audio=0) for piece in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray()[0] for frame in frames + resampler.resample(None)])


@pytest.mark.parametrize(("encoding", "container"), [("webm_opus", "webm"), ("ogg_opus", "ogg")])
def test_what_browsers_record_gives_the_turns_of_the_decoded_samples(server, model, talk, encoding, container):
    data = encoded(talk, container)

    async def run():
        async with websockets.connect(url(server)) as socket:
            await socket.send(json.dumps(START | {"audio": {"encoding": encoding}, "ack": True}))
            assert json.loads(await socket.recv())["resume_token"] is None
            for start in range(0, len(data), 777):
                await socket.send(data[start : start + 777])
            await socket.send(json.dumps({"type": "close"}))
            return [json.loads(text) async for text in socket]

    messages = asyncio.run(run())
    samples = decoded(data)
    assert messages[-1]["type"] == "closed"
    assert messages[-1]["audio_s"] == pytest.approx(len(samples) / 16_000)
    finals = {m["id"]: m for m in messages if m["type"] == "segment" and m["final"]}
    for message in messages:
        for row in message["segments"] if message["type"] == "revision" else []:
            finals[row["id"]] |= row
    turns = diarize([samples], model, latency_s=1.04)[0]
    heard = sorted((m["start_s"], m["end_s"], m["speaker"]) for m in finals.values())
    assert heard == sorted((round(t.start_s, 3), round(t.end_s, 3), t.speaker) for t in turns)


START = {"type": "start", "audio": {"encoding": "pcm_s16le", "sample_rate": 16000, "channels": 1}}
BAD = [
    (["not json"], "bad_json", 4400),
    (["[1]"], "bad_json", 4400),
    ([b"\0\0"], "audio_before_start", 4400),
    ([{"type": "begin"}], "unknown_type", 4400),
    ([{"type": "close"}], "no_start", 4400),
    ([START, START], "started_already", 4400),
    ([START, {"type": "shout"}], "unknown_type", 4400),
    ([START, "{"], "bad_json", 4400),
    ([START | {"colour": 1}], "bad_message", 4400),
    ([START | {"audio": {"sample_rate": 7000}}], "bad_rate", 4400),
    ([START | {"audio": {"sample_rate": 96000}}], "bad_rate", 4400),
    ([START | {"audio": {"channels": 2}}], "bad_channels", 4400),
    ([START | {"audio": {"encoding": "mp3"}}], "bad_encoding", 4400),
    ([START | {"diarization": {"latency_s": 5.0}}], "bad_latency", 4400),
    ([START | {"diarization": {"max_speakers": 0}}], "bad_max_speakers", 4400),
    ([START | {"audio": {"encoding": "pcm_f32le"}}, np.array([np.nan], "<f4").tobytes()], "bad_audio", 4400),
    ([START | {"audio": {"encoding": "webm_opus"}}, b"no webm" * 999, {"type": "close"}], "bad_audio", 4400),
    ([START | {"audio": {"encoding": "ogg_opus"}}, {"type": "close"}], "bad_audio", 4400),
    ([START, {"type": "update", "diarization": {"latency_s": 0.32}}], "bad_update", 4400),
    ([START, bytes(1_048_578)], "too_large", 4413),
    (["[" * 100_000], "bad_message", 4400),
    (["[" * 900], "bad_json", 4400),
    (["[" + "1," * 5000 + "1]"], "bad_message", 4400),
    ([START | {"audio": {"sample_rate": float("nan")}}], "bad_message", 4400),
    ([START | {"audio": {"sample_rate": float("inf")}}], "bad_message", 4400),
    ([START | {"diarization": {"latency_s": float("nan")}}], "bad_message", 4400),
    ([START | {"last_seq": -1}], "bad_message", 4400),
    ([{"type": "x" * 1_000_000}], "unknown_type", 4400),
    ([START | {"audio": {"encoding": "x" * 1_000_000}}], "bad_encoding", 4400),
    ([START | {"x" * 1_000_000: 1}], "bad_message", 4400),
]


def test_bad_messages_get_their_error_and_disturb_nobody(server, model, talk):
    async def misbehave(messages):
        async with websockets.connect(url(server), max_size=2**22) as socket:
            for message in messages:
                await socket.send(json.dumps(message) if isinstance(message, dict) else message)
            while True:
                answer = json.loads(await socket.recv())
                if answer["type"] == "error":
                    with pytest.raises(websockets.ConnectionClosed) as closed:
                        await socket.recv()
                    return answer, closed.value.rcvd.code

    async def run():
        good = asyncio.create_task(stream(server, talk))
        answers = [await misbehave(messages) for messages, _, _ in BAD]
        return answers, await good

    answers, turns = asyncio.run(run())
    for (answer, close), (messages, code, close_code) in zip(answers, BAD, strict=True):
        assert (answer["code"], close) == (code, close_code), messages
        assert "Traceback" not in answer["message"]
        assert "expected" in answer["message"]
        assert len(answer["message"]) < 1000
    assert turns == expected(model, talk)


def test_predictor_and_transformer_apart_answer_as_one_process(start_server, model, talk):
    """Two KServe processes, gRPC, one batched call a tick; 8 clients at once on streams of 60 s."""
    _, grpc = start_server("serving.predictor", "--model", "pretrained", path="/v2/health/ready")
    apart, _ = start_server("serving.transformer", "--predictor_host", f"127.0.0.1:{grpc}")
    long = np.tile(talk, 5)
    audios = [np.roll(long, 16_000 * index) * np.float32(0.9 - 0.05 * index) for index in range(8)]

    async def run():
        return await asyncio.gather(*(stream(apart, audio) for audio in audios))

    answers = asyncio.run(run())
    assert answers == [expected(model, audio) for audio in audios]
    text = httpx.get(f"http://127.0.0.1:{apart}/metrics", follow_redirects=True).text
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("voiceflow_batch_size_"))
    mean_batch = float(figures["voiceflow_batch_size_sum"]) / float(figures["voiceflow_batch_size_count"])
    assert mean_batch > 2.0, "steps of several streams share a call"


def test_the_predictor_answers_plain_rest_and_refuses_wrong_shapes(start_server, model):
    port, _ = start_server("serving.predictor", "--model", "pretrained", path="/v2/health/ready")
    state_dims = model.metadata.state_dims

    def infer(num_features):
        values = {
            "features": ("FP32", [1, num_features], [-8.0] * num_features),
            "state": ("FP32", [1, state_dims], [0.0] * state_dims),
            "lookahead_steps": ("INT64", [1], [7]),
        }
        inputs = [{"name": n, "datatype": t, "shape": s, "data": d} for n, (t, s, d) in values.items()]
        address = f"http://127.0.0.1:{port}/v2/models/voiceflow-diarizer/infer"
        return httpx.post(address, json={"inputs": inputs}, timeout=30)

    outputs = {row["name"]: row for row in infer(640).json()["outputs"]}
    assert outputs["activity"]["shape"] == [1, 8]
    expected_state = model.step(np.full((1, 640), -8, np.float32), model.initial_state()[None], np.array([7]))[1]
    assert outputs["new_state"]["data"] == pytest.approx(expected_state[0].tolist(), abs=1e-5)
    refused = infer(10)
    assert refused.status_code == 400
    assert "expected features of shape (1, 640)" in refused.text
