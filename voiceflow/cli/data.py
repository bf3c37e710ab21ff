"""`voiceflow data`: have the data, and know which version it is."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from voiceflow.cli.console import emit_json, out, stage_progress
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
def check(
    folder: Annotated[Path, typer.Argument(help="A prepared dataset, a corpus, or recordings with RTTM files.")],
    report: Annotated[Path, typer.Option(help="Where reports go.")] = Path("reports/check"),
    summary: Annotated[
        Path | None, typer.Option(help="Write the summary here too, as Markdown for a pull request; - prints it.")
    ] = None,
    quarantine: Annotated[
        bool | None, typer.Option(help="Keep recordings with critical faults out, and accept the rest.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; 0 takes all cores.", min=0)] = None,
    params: Annotated[Path | None, typer.Option(help="Another params.yaml.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
) -> None:
    """Check recordings and their turns for what goes wrong in practice; exits 1 where data is refused."""
    from voiceflow.stages.data_docs import summarise
    from voiceflow.stages.dataset import items_in
    from voiceflow.stages.validate import PAGE
    from voiceflow.stages.validate import check as run

    asked = {"quarantine": quarantine, "num_workers": workers}
    given = {name: value for name, value in asked.items() if value is not None}
    config = load_params(params).validate_.model_copy(update=given)
    with stage_progress() as progress:
        verdict = run(config, items_in(folder), report, progress=progress)
    text = summarise(verdict)
    if summary is not None and str(summary) != "-":
        summary.write_text(text, encoding="utf-8")
    if json_:
        emit_json(verdict)
    elif str(summary) == "-":
        print(text)
    else:
        print_verdict(verdict, report / PAGE)
    if not verdict["passed"]:
        raise typer.Exit(1)


def print_verdict(verdict: dict[str, Any], page: Path) -> None:
    """What was found, for people."""
    from rich.table import Table

    checked = verdict["checked"]
    out.print(f"{checked['recordings']} recordings, {verdict['hours']:.2f} h, {checked['speakers']} speakers")
    findings = [*verdict["faults"], *verdict["warnings"]]
    if findings:
        table = Table("", "check", "rows", "worst", show_lines=True)
        for finding in findings:
            colour = "red" if finding["severity"] == "critical" else "yellow"
            shown = escape("\n".join(finding["details"][:3]))
            table.add_row(
                f"[{colour}]{finding['severity']}[/{colour}]", finding["check"], str(len(finding["rows"])), shown
            )
        out.print(table)
    if verdict["quarantined"]:
        out.print(f"in quarantine: {len(verdict['quarantined'])} recordings, the rest goes on")
    word = "[green]accepted[/green]" if verdict["passed"] else "[red]refused[/red]"
    out.print(f"{word}; with players for the worst rows: {page}")


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
