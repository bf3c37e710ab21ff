"""`voiceflow diarize` and `voiceflow score`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from voiceflow.cli.console import emit_json, error, out, percent
from voiceflow.errors import ConfigError, DataError, VoiceflowError


def diarize(
    files: Annotated[list[Path], typer.Argument(help="WAV, FLAC, Ogg/Opus or MP3; any rate, any number of channels.")],
    rttm: Annotated[str | None, typer.Option(help="Write <file>.rttm into this folder; - prints them.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print turns as JSON.")] = False,
    diarized_json: Annotated[bool, typer.Option(help="Print OpenAI's diarized_json shape.")] = False,
    srt: Annotated[bool, typer.Option(help="Print turns as subtitles.")] = False,
    latency: Annotated[float, typer.Option(help="Latency in seconds: 0.32, 0.64 or 1.04.")] = 1.04,
    max_speakers: Annotated[int | None, typer.Option(help="Most speakers to tell apart.")] = None,
    speakers: Annotated[
        Path | None,
        typer.Option(help="Folder of known voices: <name>.wav or <name>/*.wav, 5 s or more of one person each."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the turns over the waveform: a .png, .svg or .pdf, or a folder.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="pretrained, a path, or models:/voiceflow-diarizer@champion.")
    ] = "pretrained",
) -> None:
    """Say who speaks when in recordings, with the code that serves live streams."""
    from voiceflow.adapters.registry import resolve_model
    from voiceflow.audio import load_audio
    from voiceflow.runtime import StepModel
    from voiceflow.stages.plots import check_plot, plot_turns
    from voiceflow.streaming.batch import diarize as run
    from voiceflow.timebase import lookahead_steps, samples_to_seconds
    from voiceflow.turns import to_diarized_json, to_json, to_rttm, to_srt

    try:
        lookahead_steps(latency)
    except ValueError as err:
        raise ConfigError(f"--latency: {err}") from err
    scorer = StepModel(resolve_model(model))
    if max_speakers is not None and not 1 <= max_speakers <= scorer.metadata.num_slots:
        raise ConfigError(f"--max-speakers: expected 1 to {scorer.metadata.num_slots}, got {max_speakers}")
    voices = _enrolled(speakers, scorer, max_speakers) if speakers else []
    if plot:
        check_plot(plot, len(files))
    answers: list[dict[str, Any]] = []
    failed = False
    for path in files:
        try:
            samples_N = load_audio(path)
        except VoiceflowError as problem:
            # One bad file does not cost the others.
            error(problem)
            failed = True
            continue
        turns = run([samples_N], scorer, latency_s=latency, max_speakers=max_speakers, enrolled=voices)[0]
        duration_s = samples_to_seconds(len(samples_N))
        if plot:
            picture = plot if plot.suffix else plot / f"{path.stem}.png"
            plot_turns(picture, samples_N, turns, title=path.name)
        if rttm and rttm != "-":
            Path(rttm).mkdir(parents=True, exist_ok=True)
            (Path(rttm) / f"{path.stem}.rttm").write_text(to_rttm(turns, path.stem), encoding="utf-8")
        if json_:
            answers.append(
                {"file": str(path), "duration_s": duration_s, **to_json(turns, model=scorer.metadata.summary())}
            )
        elif diarized_json:
            answers.append(to_diarized_json(turns, duration_s=duration_s))
        elif srt:
            print(to_srt(turns))
        elif rttm is None or rttm == "-":
            print(to_rttm(turns, path.stem), end="")
        else:
            count = len({turn.speaker for turn in turns})
            out.print(f"{path.name}: {len(turns)} turns of {count} speakers -> {Path(rttm) / path.stem}.rttm")
    if answers:
        emit_json(answers[0] if len(files) == 1 else answers)
    if failed:
        raise typer.Exit(1)


def _enrolled(folder: Path, scorer: Any, max_speakers: int | None) -> list[Any]:
    """Voices of a folder; a voice that cannot be used is told, and the others are."""
    from voiceflow.cli.voices import read_voices, tell_refused
    from voiceflow.streaming.batch import enrol

    recordings = read_voices(folder)
    most = max_speakers or scorer.metadata.num_slots
    if len(recordings) > most:
        raise DataError(f"--speakers {folder}: expected at most {most} voices, got {len(recordings)}")
    voices, refused = enrol(recordings, scorer)
    for reason in refused.values():
        tell_refused(reason)
    return voices


def score(
    reference: Annotated[Path, typer.Argument(help="RTTM file, or a folder of them.")],
    hypothesis: Annotated[Path, typer.Argument(help="RTTM file, or a folder of them with the same recordings.")],
    collar: Annotated[float, typer.Option(help="Seconds not scored on each side of a reference boundary.")] = 0.0,
    json_: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
) -> None:
    """DER and JER of answers against reference turns, overlap scored."""
    from voiceflow.metrics import as_row, summarise
    from voiceflow.metrics import score as judge
    from voiceflow.turns import read_rttm

    def read(path: Path) -> dict[str, Any]:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder; expected RTTM")
        files = sorted(path.glob("*.rttm")) if path.is_dir() else [path]
        if not files:
            raise DataError(f"{path}: holds no .rttm files")
        found: dict[str, Any] = {}
        for file in files:
            # A recording in which nobody speaks has an empty file: its stem is its name.
            found.update(read_rttm(file) or {file.stem: []})
        return found

    references, hypotheses = read(reference), read(hypothesis)
    missing = sorted(set(references) - set(hypotheses))
    if missing:
        raise DataError(f"{hypothesis}: has no answer for {missing}; an empty {missing[0]}.rttm says nobody speaks")
    scores = {}
    for name, turns in references.items():
        end_s = max((turn.end_s for turn in [*turns, *hypotheses[name]]), default=0.0)
        scores[name] = judge(turns, hypotheses[name], duration_s=end_s, collar_per_side_s=collar)
    total = summarise(scores.values())
    if json_:
        emit_json({"overall": total, "recordings": [as_row(name, result) for name, result in scores.items()]})
        return
    from rich.table import Table

    table = Table(title=f"strict DER, collar {collar:g} s per side, overlap scored")
    for column in ("recording", "DER", "missed", "false alarm", "confusion", "JER", "speakers (true/found)"):
        table.add_column(column, justify="left" if column == "recording" else "right")
    for name, result in scores.items():
        speech_s = max(result.reference_s, 1e-9)
        table.add_row(
            name,
            percent(result.der),
            *(percent(part / speech_s) for part in (result.missed_s, result.false_alarm_s, result.confusion_s)),
            percent(result.jer),
            f"{result.num_speakers}/{result.num_speakers_found}",
        )
    table.add_row(
        "all", *(percent(total[key]) for key in ("der", "missed", "false_alarm", "confusion", "jer")), "", style="bold"
    )
    out.print(table)
