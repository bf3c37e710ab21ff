"""`voiceflow serve` and `voiceflow stream`."""

import asyncio
import base64
import contextlib
import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from voiceflow.cli.console import out, percent
from voiceflow.errors import PlatformError

DEFAULT_URL = "ws://127.0.0.1:8080/v1/stream"
COLORS = ("cyan", "magenta", "green", "yellow", "blue", "red", "white", "bright_black")


def serve(
    model: Annotated[
        str, typer.Option(help="pretrained, a path, or models:/voiceflow-diarizer@champion.")
    ] = "champion",
    host: Annotated[
        str, typer.Option(envvar="VOICEFLOW_HOST", help="Address to listen on; 0.0.0.0 for all of this machine's.")
    ] = "127.0.0.1",
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
    command += ["--host", host, "--http_port", str(http_port), "--grpc_port", str(grpc_port), "--workers", str(workers)]
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
