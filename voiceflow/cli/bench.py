"""`voiceflow bench`: the model's steps, a server under many streams, and what `make run` shows at its end."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from voiceflow.cli.console import emit_json, error, out
from voiceflow.cli.live import stream
from voiceflow.errors import PlatformError

DEMO_S = 30.0
"""So much of a conversation is streamed."""
START_S = 300.0
"""A server that is not broken is there before, on any machine."""
bench_app = typer.Typer(help="Measure the model or a running server.", no_args_is_help=True)


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
    load.on_sent = watch.look
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

    for number in (port, port + 1):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", number)) == 0:
                raise PlatformError(f"port {number} is taken by another server; `make run PORT=9000` takes other ports")
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
                    raise PlatformError(f"the server ended at once; `voiceflow serve --http-port {port}` says why")
                try:
                    health = httpx.get(f"http://127.0.0.1:{port}/health").json()
                    break
                except (httpx.HTTPError, ValueError):
                    if time.monotonic() > deadline_s:
                        raise PlatformError(f"no server on port {port} after {START_S:g} s") from None
                    time.sleep(0.2)
            told = health["model"]
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
