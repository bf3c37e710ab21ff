"""`voiceflow data`: have the data, and know which version it is."""

from pathlib import Path
from typing import Annotated

import typer

from voiceflow.cli.console import emit_json, out
from voiceflow.config import load_params

app = typer.Typer(help="Have the data, and know which version it is.", no_args_is_help=True)


@app.command()
def ensure(json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Get the configured data from DVC or $VOICEFLOW_SHARED, or make the embedded voices."""
    from dataclasses import asdict

    from voiceflow.adapters.data_versions import ensure_data

    version = ensure_data(load_params().prepare, (lambda sentence: None) if json_ else out.print)
    if json_:
        emit_json(asdict(version))
    else:
        out.print(f"corpus {version.corpus}, recorded {version.recorded or 'none'}, revision {version.revision}")


@app.command()
def synth(
    folder: Annotated[Path, typer.Argument(help="Where to write the corpus.")],
    speakers: Annotated[int, typer.Option(help="Number of voices.", min=8)] = 72,
    sentences: Annotated[int, typer.Option(help="Utterances of each voice.", min=1, max=16)] = 12,
    seed: Annotated[int, typer.Option(help="The same seed gives the same corpus.")] = 20,
) -> None:
    """Make a corpus of espeak-ng voices."""
    from voiceflow.simulation.voices import synthesise_corpus

    synthesise_corpus(folder, num_speakers=speakers, sentences_each=sentences, seed=seed)
    out.print(f"{speakers} voices in {folder}")
