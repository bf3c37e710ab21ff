"""`voiceflow serve`, `voiceflow stream` and `voiceflow bench`."""

import asyncio
import base64
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from voiceflow.cli.console import emit_json, error, out, percent
from voiceflow.errors import PlatformError

DEFAULT_URL = "ws://127.0.0.1:8080/v1/stream"
COLORS = ("cyan", "magenta", "green", "yellow", "blue", "red", "white", "bright_black")
bench_app = typer.Typer(help="Measure the model or a running server.", no_args_is_help=True)


def serve(
    model: Annotated[
        str, typer.Option(help="pretrained, a path, or models:/voiceflow-diarizer@champion.")
    ] = "champion",
    http_port: Annotated[int, typer.Option(help="HTTP and WebSocket port.")] = 8080,
    grpc_port: Annotated[int, typer.Option(help="gRPC port (Open Inference Protocol).")] = 8081,
    workers: Annotated[
        int, typer.Option(help="Processes that share the port; each holds streams of its own.", min=1)
    ] = 1,
    speed_limit: Annotated[
        float | None,
        typer.Option(help="Audio seconds a second that one stream may send in the long run; 0 for no limit.", min=0.0),
    ] = None,
    max_streams: Annotated[int | None, typer.Option(help="Streams that are held at most.", min=1)] = None,
    predictor_host: Annotated[
        str | None, typer.Option(help="host:port of a predictor that holds the model instead.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            envvar="VOICEFLOW_SPLIT",
            help="File or redis:// address that says which models new streams get; `voiceflow rollout` writes it.",
        ),
    ] = None,
    statistics: Annotated[
        str | None,
        typer.Option(
            envvar="VOICEFLOW_STATISTICS",
            help="Folder or redis:// address for statistics of some streams, never audio, for `voiceflow drift`.",
        ),
    ] = None,
    verify_key: Annotated[
        Path | None,
        typer.Option(envvar="VOICEFLOW_VERIFY_KEY", help="Public key that the model must be signed for."),
    ] = None,
) -> None:
    """Serve live streams here: /v1/stream, /ws/stream, /infer, /health, /ready, /metrics."""
    if model == "champion":
        model = _champion_or_pretrained()
    command = [sys.executable, "-m", "serving.transformer", "--model_name", "voiceflow-diarizer", "--model", model]
    command += ["--http_port", str(http_port), "--grpc_port", str(grpc_port), "--workers", str(workers)]
    options = {
        "--speed_limit": speed_limit,
        "--max_streams": max_streams,
        "--predictor_host": predictor_host,
        "--split": split,
        "--statistics": statistics,
    }
    for name, value in options.items():
        if value is not None:
            command += [name, str(value)]
    if verify_key is not None:
        os.environ["VOICEFLOW_VERIFY_KEY"] = str(verify_key.resolve())
    out.print(f"model {model}; streams on ws://127.0.0.1:{http_port}/v1/stream; stop with Ctrl-C", soft_wrap=True)
    sys.stdout.flush()
    os.execv(sys.executable, command)


def _champion_or_pretrained() -> str:
    from voiceflow.adapters.home import home
    from voiceflow.adapters.registry import MODEL_NAME, MlflowRegistry

    if not os.environ.get("MLFLOW_TRACKING_URI") and not (home() / "mlflow.db").is_file():
        return "pretrained"
    champion = MlflowRegistry().version_of("champion")
    return f"models:/{MODEL_NAME}@champion" if champion else "pretrained"


def stream(
    source: Annotated[
        str, typer.Argument(help="An audio file, mic, or - for raw 16 kHz 16-bit mono on standard input as it comes.")
    ],
    url: Annotated[str, typer.Option(help="The server's stream.")] = DEFAULT_URL,
    latency: Annotated[float, typer.Option(help="Latency in seconds: 0.32, 0.64 or 1.04.")] = 1.04,
    max_speakers: Annotated[int | None, typer.Option(help="Most speakers to tell apart.")] = None,
    speakers: Annotated[
        Path | None,
        typer.Option(help="Folder of known voices: <name>.wav or <name>/*.wav, 5 to 60 s of each."),
    ] = None,
    speed: Annotated[float, typer.Option(help="1 is real time; 0 is as fast as the server takes it.", min=0.0)] = 1.0,
    api_key: Annotated[
        str | None, typer.Option(envvar="VOICEFLOW_API_KEY", help="Where the server asks for one.")
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="RTTM of the file: prints the DER at the end.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print messages as JSON lines, then the figures.")] = False,
) -> None:
    """Send audio to a server at the pace of speech and show turns as they come."""
    from serving.clients.sources import microphone, standard_input
    from serving.clients.stream import StreamClient
    from voiceflow.audio import load_audio
    from voiceflow.cli.voices import tell_refused
    from voiceflow.turns import Turn, read_rttm

    audio: Any = load_audio(Path(source)) if source not in ("-", "mic") else None
    if audio is None:
        audio = standard_input() if source == "-" else microphone()
    client = StreamClient(
        url, latency_s=latency, max_speakers=max_speakers, speed=speed, speakers=_enrolment(speakers), api_key=api_key
    )
    turns: dict[str, Turn] = {}
    colors: dict[str, str] = {}

    async def follow() -> None:
        async for message in client.run(audio):
            if json_:
                print(json.dumps(message), flush=True)
            if message["type"] == "revision":
                for row in message["segments"]:
                    turns[row["id"]] = replace(turns[row["id"]], speaker=row["speaker"])
                for row in () if json_ else message["merged"]:
                    out.print(f"{'':17}  {row['from']} was {row['into']}")
            if message["type"] == "model_changed" and not json_:
                named = {name: f"{message[name]['version']} ({message[name]['variant']})" for name in ("from", "to")}
                out.print(f"{message['at_s']:7.2f}            model {named['from']} gave way to {named['to']}")
            if message["type"] != "segment":
                continue
            turns[message["id"]] = Turn(message["start_s"], message["end_s"], message["speaker"], message["confidence"])
            if not json_ and (message["final"] or message["rev"] == 0):
                color = colors.setdefault(message["speaker"], COLORS[len(colors) % len(COLORS)])
                span = (
                    f"{message['start_s']:7.2f} - {message['end_s']:7.2f}"
                    if message["final"]
                    else f"{message['start_s']:7.2f} -     ..."
                )
                out.print(f"{span}  [{color}]{message['speaker']}[/{color}]" + ("" if message["final"] else " speaks"))
                sys.stdout.flush()

    with contextlib.suppress(KeyboardInterrupt):  # how one stops speaking
        asyncio.run(follow())
    if not client.started:
        raise PlatformError(f"{url}: the server did not answer")
    for row in client.started["speakers_rejected"]:
        tell_refused(row["reason"])
    figures: dict[str, Any] = {
        "turns": len(turns),
        "speakers": client.closed.get("speakers"),
        "audio_s": client.closed.get("audio_s"),
    }
    if client.emission_ms:
        p50, p99 = np.percentile(client.emission_ms, [50, 99])
        figures |= {
            "emission_p50_ms": round(float(p50), 1),
            "emission_p99_ms": round(float(p99), 1),
            "packets": len(client.emission_ms),
        }
    if reference and client.closed:
        from voiceflow.metrics import score

        truth = [turn for rows in read_rttm(reference).values() for turn in rows]
        figures["der"] = round(score(truth, list(turns.values()), duration_s=client.closed["audio_s"]).der, 4)
    if json_:
        print(json.dumps({"type": "figures", **figures}))
        return
    if client.closed:
        out.print(f"{figures['turns']} turns of {figures['speakers']} speakers in {figures['audio_s']:.1f} s")
    if "emission_p50_ms" in figures:
        out.print(
            f"emission latency p50 {figures['emission_p50_ms']} ms, p99 {figures['emission_p99_ms']} ms "
            f"over {figures['packets']} packets"
        )
    if "der" in figures:
        out.print(f"DER against the reference: {percent(figures['der'])} (no collar, overlap scored)")


def _enrolment(folder: Path | None) -> list[dict[str, str]]:
    """A folder of voices as `diarization.speakers` of the protocol."""
    import soundfile

    from voiceflow.cli.voices import read_voices

    rows = []
    for label, samples_N in (read_voices(folder) if folder else {}).items():
        file = io.BytesIO()
        soundfile.write(file, samples_N, 16_000, format="FLAC")
        rows.append({"label": label, "audio_b64": base64.b64encode(file.getvalue()).decode()})
    return rows


@bench_app.command("model")
def bench_model(
    model: Annotated[str, typer.Option(help="pretrained, a path, or models:/...")] = "pretrained",
    provider: Annotated[str, typer.Option(help="cpu, cuda or tensorrt.")] = "cpu",
    repeats: Annotated[int, typer.Option(help="Timed steps at each batch size.", min=10)] = 300,
    json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """p50, p95 and p99 of one model step at batch 1 to 256, one thread."""
    from voiceflow.adapters.registry import resolve_model
    from voiceflow.runtime import StepModel
    from voiceflow.stages.latency import device_name, measure

    scorer = StepModel(resolve_model(model), provider=provider)
    rows = {
        str(batch): measure(scorer, batch, repeats=repeats, warmup=30) for batch in (1, 2, 4, 8, 16, 32, 64, 128, 256)
    }
    device = device_name(provider)[1]
    if json_:
        emit_json({"device": device, "load_average": os.getloadavg()[0], "batches": rows})
        return
    from rich.table import Table

    table = Table(
        "batch",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "us a stream",
        "streams in real time",
        title=f"one 80 ms step on {device}",
    )
    for batch, row in rows.items():
        values = (row["p50_ms"], row["p95_ms"], row["p99_ms"], row["us_per_stream"], row["streams_in_real_time"])
        table.add_row(batch, *(f"{value:.2f}" for value in values))
    out.print(table)


@bench_app.command("streams")
def bench_streams(
    url: Annotated[str, typer.Option(help="The server; a path is not needed.")] = "ws://127.0.0.1:8080",
    streams: Annotated[int, typer.Option(help="Clients at once.", min=1)] = 20,
    seconds: Annotated[float, typer.Option(help="Audio each client sends.", min=2)] = 20.0,
    packet_ms: Annotated[float, typer.Option(help="Audio in one packet.", min=10)] = 100.0,
    latency: Annotated[float, typer.Option(help="Latency in seconds.")] = 1.04,
    protocol: Annotated[str, typer.Option(help="native, reference or live.")] = "native",
    source: Annotated[Path | None, typer.Option(help="Audio to send; by default noise bursts.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Drive a server with paced clients; prints p50, p95 and p99 of emission_ms, and what was lost.

    Times run from when the audio an answer needs was due, sent late or not. Where the server is on this
    machine, its CPU time and memory are told, and the CPU time that the machine had left.
    """
    from urllib.parse import urlsplit

    from serving.clients.load import PROTOCOLS, Load, Watch
    from voiceflow.audio import load_audio

    if protocol not in PROTOCOLS:
        raise typer.BadParameter(f"expected one of {sorted(PROTOCOLS)}, got {protocol!r}", param_hint="--protocol")
    if source:
        samples_N = load_audio(source)
    else:
        rng = np.random.default_rng(0)
        envelope = np.repeat(rng.random(241) > 0.4, 4000)
        samples_N = (rng.standard_normal(len(envelope)) * 0.05 * envelope).astype(np.float32)
    parts = urlsplit(url)
    load = Load(
        f"{parts.scheme}://{parts.netloc}",
        protocol,
        samples_N,
        streams=streams,
        seconds=seconds,
        packet_s=packet_ms / 1000.0,
        latency_s=latency,
    )
    watch = Watch(parts.port or 80)
    with asyncio.Runner(loop_factory=_fast_loop()) as runner:
        runner.run(load.run())
    row = load.result()
    machine = watch.result((streams - row["refused_streams"]) * seconds)
    if not row["answers"]:
        raise PlatformError(f"no answers from {url}: {row['first_failure'] or 'the server was silent'}")
    result = {"streams": streams, "seconds": seconds, "protocol": protocol, **row, **machine}
    result["load_average"] = round(os.getloadavg()[0], 2)
    if json_:
        emit_json(result)
    else:
        times = row["emission_ms"]
        out.print(
            f"{streams} streams of {seconds:g} s: emission p50 {times['p50']} ms, p95 {times['p95']} ms, "
            f"p99 {times['p99']} ms; {row['lost']} of {row['answers'] + row['lost']} answers lost, {row['late']} late"
        )
        if "server_cores" in machine:
            out.print(
                f"server: {machine['server_cores']} cores, {machine['server_us_per_stream_second']} us a "
                f"stream-second, {machine['server_pss_mb']} MB; clients {machine['client_cores']} cores, "
                f"idle {machine['cores_idle']}, stolen {machine['cores_stolen']}"
            )
    if row["failed_streams"] or row["refused_streams"]:
        told = f"{row['failed_streams']} streams failed, {row['refused_streams']} were refused"
        error(PlatformError(f"{told}: {row['first_failure']}"))
        raise typer.Exit(1)


def _fast_loop() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


DEMO_S = 30.0
"""So much of a conversation is streamed."""
START_S = 300.0
"""A server that is not broken is there before, on any machine."""


@bench_app.command("demo", hidden=True)
def demo(
    dataset: Annotated[Path | None, typer.Option(help="A prepared dataset; by default that of the last run.")] = None,
    port: Annotated[int, typer.Option(help="HTTP port.")] = 8080,
) -> None:
    """What `make run` shows after the pipeline: a server, and half a minute of a held-out conversation streamed to it.

    Where no run has come to its end, the shipped model hears the conversation that ships with it.
    """
    import httpx

    from voiceflow.adapters.home import home

    last = home() / "last-run.json"
    if dataset is None and last.is_file():
        dataset = Path(json.loads(last.read_text(encoding="utf-8"))["dataset"])
    command = [sys.executable, "-m", "voiceflow.cli", "serve", "--http-port", str(port), "--grpc-port", str(port + 1)]
    command += ["--model", "champion" if dataset is not None else "pretrained"]
    with (
        tempfile.TemporaryDirectory() as scratch,
        Path(os.devnull).open("wb") as null,
        subprocess.Popen(command, stdout=null, stderr=null) as server,
    ):
        try:
            name, audio, turns = _demo_talk(dataset, Path(scratch))
            deadline_s = time.monotonic() + START_S
            while True:
                if server.poll() is not None:
                    raise PlatformError(
                        f"the server ended at once; is port {port} or {port + 1} taken? `make run PORT=9000` takes "
                        f"others, `voiceflow serve --http-port {port}` says why"
                    )
                try:
                    health = httpx.get(f"http://127.0.0.1:{port}/health").json()
                    break
                except (httpx.HTTPError, ValueError):
                    if time.monotonic() > deadline_s:
                        raise PlatformError(f"no server on port {port} after {START_S:g} s") from None
                    time.sleep(0.2)
            told = health.get("model") if isinstance(health, dict) else None
            if told is None:
                raise PlatformError(f"another server answers on port {port}; `make run PORT=9000` takes another port")
            out.print(
                f"\nserving {told['name']} {told['version']} ({told['precision']}); streaming {name} as if spoken now\n"
            )
            stream(
                str(audio),
                url=f"ws://127.0.0.1:{port}/v1/stream",
                latency=1.04,
                max_speakers=None,
                speed=1.0,
                api_key=None,
                reference=turns,
                json_=False,
            )
        finally:
            server.terminate()


def _demo_talk(dataset: Path | None, scratch: Path) -> tuple[str, Path, Path]:
    """Name, audio and turns of what is streamed."""
    from voiceflow.audio import write_flac
    from voiceflow.runtime import pretrained_path
    from voiceflow.stages.dataset import read_recordings, read_samples, read_turns
    from voiceflow.timebase import seconds_to_samples
    from voiceflow.turns import to_rttm, turns_within

    if dataset is None:
        audio = pretrained_path().with_name("sample.flac")
        return "a conversation of two espeak-ng voices", audio, audio.with_suffix(".rttm")
    recordings = read_recordings(dataset, "test")
    recording = next((row for row in recordings if len(row.speakers) == 2), recordings[0])
    audio = scratch / f"{recording.name}.flac"
    write_flac(audio, read_samples(dataset, recording)[: seconds_to_samples(DEMO_S)])
    turns = turns_within(read_turns(dataset, recording), 0.0, DEMO_S)
    audio.with_suffix(".rttm").write_text(to_rttm(turns, recording=recording.name), encoding="utf-8")
    return recording.name, audio, audio.with_suffix(".rttm")
