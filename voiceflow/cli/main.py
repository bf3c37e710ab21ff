"""`voiceflow`: the commands, and what becomes of errors (exit 0 done, 1 refused or failed, 2 wrong usage)."""

import sys

import typer

import voiceflow
from voiceflow.cli import audio, bench, data, drift, live, pipeline, registry, rollout, stages, t4
from voiceflow.cli.console import error
from voiceflow.errors import ConfigError, VoiceflowError

app = typer.Typer(
    name="voiceflow",
    help="Real-time speaker diarization: who speaks when, from versioned data to live streams.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(pipeline.run)
app.command("diarize")(audio.diarize)
app.command("stream")(live.stream)
app.command("serve")(live.serve)
app.command("score")(audio.score)
bench.bench_app.command("t4")(t4.bench_t4)
app.add_typer(bench.bench_app, name="bench")
app.command("stage")(stages.stage)
app.add_typer(data.app, name="data")
app.command("promote")(registry.promote)
app.command("rollout")(rollout.rollout)
app.command("rollback")(registry.rollback)
app.command("history")(registry.history)
app.command("drift")(drift.drift)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"voiceflow {voiceflow.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    try:
        app()
    except VoiceflowError as err:
        error(err)
        sys.exit(2 if isinstance(err, ConfigError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
