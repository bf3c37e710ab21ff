"""`voiceflow data`: have the data, and know which version it is."""

import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.markup import escape

from voiceflow.cli.console import emit_json, out, stage_progress
from voiceflow.config import load_params
from voiceflow.errors import ConfigError, DataRefusedError


class Split(StrEnum):
    """What conversations of a corpus are for."""

    TRAIN = "train"
    DEV = "dev"
    TEST = "test"
    RECORDED = "recorded"


app = typer.Typer(help="Get corpora, check them, and know which version they are.", no_args_is_help=True)
Descriptions = Annotated[Path, typer.Option(help="Folder of corpus descriptions.")]
DESCRIBED = Path("data/corpora")


@app.command("list")
def list_(
    corpora: Descriptions = DESCRIBED,
    json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Corpora by name: what they are, their licences and sizes, and whether they are here."""
    from rich.table import Table

    from voiceflow.corpora.description import read_descriptions
    from voiceflow.corpora.get import stored_path
    from voiceflow.corpora.read import ABOUT

    described = read_descriptions(corpora)
    here = {name: (stored_path(corpus) / ABOUT).is_file() for name, corpus in described.items()}
    if json_:
        emit_json([corpus.model_dump(mode="json") | {"here": here[name]} for name, corpus in described.items()])
        return
    table = Table("name", "kind", "hours", "download", "licence", "here")
    for column in table.columns[:4]:
        column.no_wrap = True
    for name, corpus in described.items():
        size = "" if corpus.download_gb is None else f"{corpus.download_gb:g} GB"
        table.add_row(
            name,
            corpus.kind,
            "" if corpus.hours is None else f"{corpus.hours:g}",
            size if corpus.access in ("open", "local") else corpus.access,
            corpus.licence,
            "yes" if here[name] else "",
        )
    out.print(table)


@app.command()
def get(
    names: Annotated[list[str], typer.Argument(help="Names of `voiceflow data list`.")],
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Licences are accepted, sizes are fine: do not ask.")
    ] = False,
    mirror: Annotated[
        str | None, typer.Option(help="URL or folder with <corpus>/<file>, instead of the publishers.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="The unpacked corpus is in this folder already.")
    ] = None,
    corpora: Descriptions = DESCRIBED,
    downloads: Annotated[
        Path | None, typer.Option(help="Where downloads go; by default $VOICEFLOW_HOME/downloads.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes; 0 takes all cores.", min=0)] = 0,
) -> None:
    """Download corpora, verify them, and store them under data/, versioned by DVC.

    Run it again after anything that went wrong: it goes on from there.
    """
    from voiceflow.adapters.data_versions import track
    from voiceflow.adapters.home import home
    from voiceflow.corpora.description import find_corpus
    from voiceflow.corpora.get import get_corpus, stored_path

    if source is not None and len(names) != 1:
        raise ConfigError(f"--from holds one corpus, {len(names)} were named")
    wanted = [find_corpus(name, corpora) for name in names]
    for corpus in wanted:
        size = f"{corpus.download_gb:.3g} GB to download" if corpus.download_gb and source is None else "no download"
        out.print(f"{corpus.name}: {corpus.title}; {size}; licence: {corpus.licence}", markup=False)
        if corpus.licence_url:
            out.print(f"  {corpus.licence_url}", markup=False)
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError("nobody is there to accept licences and sizes; pass --yes if you do")
        typer.confirm("Do you accept the licences, and shall these be downloaded?", abort=True)
    for corpus in wanted:
        with stage_progress() as progress:
            stored = get_corpus(
                corpus,
                downloads=downloads or home() / "downloads",
                descriptions=corpora,
                mirror=mirror,
                source=source,
                num_workers=workers,
                progress=progress,
            )
        for split, row in stored["splits"].items():
            counts = f"{row['recordings']} recordings, {row['hours']:.2f} h, {row['num_speakers']} speakers"
            out.print(f"{corpus.name} {split}: {counts}", markup=False)
        track(stored_path(corpus), lambda sentence: out.print(sentence, markup=False))
    folders = {corpus.kind: stored_path(corpus).parent for corpus in wanted}
    flags = {"conversations": "--recorded", "voices": "--corpus", "noises": "--noises", "rooms": "--rooms"}
    used = " ".join(f"{flags[kind]} {folder}" for kind, folder in folders.items())
    out.print(f"train with them: voiceflow run {used}")


@app.command()
def add(
    folder: Annotated[Path, typer.Argument(help="Recordings with RTTM files, utterances, or lhotse manifests.")],
    name: Annotated[str, typer.Option(help="What to call the corpus.")],
    licence: Annotated[str, typer.Option(help="Under what terms it may be used.")],
    title: Annotated[str, typer.Option(help="What it is.")] = "",
    language: Annotated[str, typer.Option(help="What is spoken.")] = "unknown",
    split: Annotated[
        Split, typer.Option(help="train, dev, test, or recorded: tested on, apart from the test set.")
    ] = Split.RECORDED,
    own_names: Annotated[
        bool, typer.Option("--own-names", help="Speakers' names mean somebody else in every recording.")
    ] = False,
    quarantine: Annotated[bool, typer.Option(help="Leave recordings with critical faults out.")] = False,
    corpora: Descriptions = DESCRIBED,
    workers: Annotated[int, typer.Option(help="Processes; 0 takes all cores.", min=0)] = 0,
) -> None:
    """Check a folder of your own and take it in as a corpus, described and versioned like the others."""
    from voiceflow.adapters.data_versions import track
    from voiceflow.corpora.description import Corpus
    from voiceflow.corpora.get import get_corpus, stored_path
    from voiceflow.stages.dataset import items_in, kind_of
    from voiceflow.stages.validate import PAGE
    from voiceflow.stages.validate import check as run

    config = load_params().validate_.model_copy(update={"quarantine": quarantine, "num_workers": workers})
    report = Path("reports/check") / name
    items = items_in(folder)
    with stage_progress() as progress:
        verdict = run(config, items, report, progress=progress)
    print_verdict(verdict, report / PAGE)
    if not verdict["passed"]:
        raise DataRefusedError([fault["message"] for fault in verdict["faults"]], str(report / PAGE))
    kind = kind_of(folder)
    corpus = Corpus(
        name=name,
        title=title or name,
        kind=kind,
        source=str(folder),
        licence=licence,
        language=language,
        access="local",
        recipe="utterances" if kind == "voices" else "conversations",
        options={"without": sorted(verdict["quarantined"])},
        splits={"all": split.value} if kind == "conversations" else {},
        speakers="recording" if own_names else "corpus",
    )
    with stage_progress() as progress:
        get_corpus(
            corpus, downloads=folder, descriptions=corpora, source=folder, num_workers=workers, progress=progress
        )
    text = yaml.safe_dump(corpus.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True)
    corpora.mkdir(parents=True, exist_ok=True)
    (corpora / f"{name}.yaml").write_text(text, encoding="utf-8")
    track(stored_path(corpus), lambda sentence: out.print(sentence, markup=False))


@app.command()
def ensure(json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Get the configured data from DVC or $VOICEFLOW_SHARED, or make the embedded voices."""
    from dataclasses import asdict

    from voiceflow.adapters.data_versions import ensure_data

    version = ensure_data(load_params().prepare, (lambda sentence: None) if json_ else out.print)
    if json_:
        emit_json(asdict(version))
    else:
        told = ", ".join(f"{name} {path}" for name, path in version.folders.items())
        out.print(f"{told}, revision {version.revision}", markup=False)


@app.command()
def diff(
    before: Annotated[str, typer.Argument(help="A git revision, or a folder.")],
    after: Annotated[str, typer.Argument(help="Another; the working tree by default.")] = ".",
    path: Annotated[str, typer.Option(help="Which data, where revisions are given.")] = "data/prepared",
    json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Say what changed between two versions of data: hours, speakers, overlap, what came, went and was relabelled."""
    from voiceflow.stages.data_diff import compare_versions, describe_changes, read_version

    with tempfile.TemporaryDirectory(prefix="voiceflow-diff-") as scratch:
        talks = [
            read_version(_version(name, path, Path(scratch) / side))
            for side, name in (("before", before), ("after", after))
        ]
    changes = compare_versions(*talks)
    if json_:
        emit_json(changes)
    else:
        for line in describe_changes(changes):
            out.print(line, markup=False, soft_wrap=True)


def _version(name: str, path: str, scratch: Path) -> Path:
    """The folder of a version: one that is here, or what a revision has, but for its audio."""
    from voiceflow.adapters.data_versions import fetch_labels

    if name == ".":
        return Path(path)
    if Path(name).is_dir():
        return Path(name)
    fetch_labels(path, scratch, rev=name)
    return scratch


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
def report(
    real: Annotated[
        list[Path] | None, typer.Argument(help="Folders of real conversations, beside those in the dataset.")
    ] = None,
    dataset: Annotated[Path, typer.Option(help="The prepared dataset.")] = Path("data/prepared"),
    corpora: Descriptions = DESCRIBED,
    output: Annotated[Path, typer.Option(help="Where report.html, report.json and rhythm.png go.")] = Path(
        "reports/data"
    ),
    json_: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Compare simulated conversations with real ones: turn length, gaps, overlap, backchannels, and their distances."""
    from rich.table import Table

    from voiceflow.corpora.description import read_descriptions
    from voiceflow.stages.data_report import HEADS, PAGE, compare_rhythms, mean_ks, table_of, write_report

    here = (dataset / "recordings.jsonl").is_file()
    if not here and not real:
        raise ConfigError(
            f"{dataset} is no prepared dataset; run `voiceflow stage prepare`, or name a folder to measure"
        )
    compared = compare_rhythms(dataset if here else None, real or [])
    figures = write_report(compared, read_descriptions(corpora) if corpora.is_dir() else {}, output)
    if json_:
        emit_json(figures)
        return
    table = Table(*HEADS, box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.columns[0].no_wrap = True
    for row in table_of(compared, figures["published"]):
        table.add_row(row[0].replace("simulated: ", "").replace("published: ", "paper: "), *row[1:])
    out.print(table)
    out.print("medians in s, shares in %; early: changes of speaker before the first has ended; yes: backchannels")
    if compared.left_out:
        out.print(f"[yellow]{len(compared.left_out)} recordings left out[/yellow]; {escape(compared.left_out[0])}")
    for name, simulated in figures["nearest"].items():
        distance = mean_ks(compared.distances[simulated][name])
        out.print(f"nearest to {name}: {simulated}, mean KS distance {distance:.3f}", markup=False)
    out.print(f"curves and all distances: {output / PAGE}", markup=False)


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
