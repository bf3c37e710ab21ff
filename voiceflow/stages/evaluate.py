"""evaluate: DER and JER of a trained network in true streaming mode, by recording and by slice, and the DER gate."""

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from voiceflow.config import EvaluateConfig
from voiceflow.export import make_metadata
from voiceflow.gates import der_gate
from voiceflow.metrics import Score, as_row, by_slice, der_interval, summarise
from voiceflow.models.step import TorchStep
from voiceflow.stages.dataset import read_recordings
from voiceflow.stages.plots import new_figure, save_figure
from voiceflow.stages.scoring import SplitScores, held_out, slices_of
from voiceflow.stages.train import load_trained
from voiceflow.turns import Turn, to_rttm

Progress = Callable[[str, int, int], None]


def evaluate(
    config: EvaluateConfig,
    trained: Path,
    dataset: Path,
    output: Path,
    *,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Score on held-out simulated speakers and, where the dataset has them, on recorded conversations.

    Writes metrics.json, headline.json, recordings.csv, slices.csv, hypotheses/*.rttm and plots/*.png.

    Args:
        config: Latency, collars and gate.
        trained: Output of `train`.
        dataset: Output of `prepare`.
        output: Folder of the results.
        progress: Called as splits are scored.

    Returns:
        The content of metrics.json; its `gate` tells whether the model passes.
    """
    net, decision = load_trained(trained)
    metadata = make_metadata(net, version="0", decision=decision, data_revision="", git_commit="", run_id="")
    scorer = TorchStep(net, metadata)
    output.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, Any] = {"latency_s": config.latency_s}
    rows: list[dict[str, Any]] = []
    for number, split in enumerate(("test", "recorded")):
        recordings = held_out(dataset) if split == "test" else read_recordings(dataset, split)
        progress("stream " + split, number, 2)
        if not recordings:
            metrics[split] = None
            continue
        scored = SplitScores(dataset, recordings, scorer, latency_s=config.latency_s)
        metrics[split] = {
            f"collar_{collar_s:g}": summarise(scored.score(collar_s).values()) for collar_s in config.collars_per_side_s
        } | {
            "overall": summarise(scored.scores.values()) | _interval(scored.scores.values()),
            "revised": summarise(scored.score(0.0, revised=True).values()),
        }
        if split == "test":
            members = slices_of(recordings)
            slices = {
                name: row | _interval(scored.scores[one] for one in members[name])
                for name, row in by_slice(scored.scores, members).items()
            }
            metrics["slices"] = slices
            metrics["gate"] = der_gate(metrics["test"]["overall"], slices, config).as_dict()
            _plot_slices(slices, output / "plots" / "slices.png")
            _write_table(output / "slices.csv", [{"slice": name, **figures} for name, figures in slices.items()])
        rows += [{"split": split, **as_row(name, result)} for name, result in scored.scores.items()]
        _write_hypotheses(output / "hypotheses" / split, scored.hypotheses)
        _plot_worst(scored, output / "plots" / f"{split}.png")
    _write_table(output / "recordings.csv", rows)
    progress("stream recorded", 2, 2)
    headline = {split: metrics[split] and metrics[split]["overall"] for split in ("test", "recorded")}
    for name, figures in (("metrics", metrics), ("headline", headline)):
        (output / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return metrics


def _interval(scores: Iterable[Score]) -> dict[str, float]:
    low, high = der_interval(scores)
    return {"der_low": low, "der_high": high}


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _write_hypotheses(folder: Path, hypotheses: dict[str, list[Turn]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, turns in hypotheses.items():
        (folder / f"{name}.rttm").write_text(to_rttm(turns, name), encoding="utf-8")


def _plot_slices(slices: dict[str, dict[str, float]], path: Path) -> None:
    figure, axes = new_figure(1, 1)
    names = list(slices)
    left = [0.0] * len(names)
    for part in ("missed", "false_alarm", "confusion"):
        widths = [100 * slices[name][part] for name in names]
        axes.barh(names, widths, left=left, label=part.replace("_", " "))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set(xlabel="DER on held-out speakers, % (no collar, overlap scored)")
    axes.legend()
    save_figure(figure, path)


def _plot_worst(scored: SplitScores, path: Path) -> None:
    """Reference and answer of the middling and the worst recording, as bars over time."""
    ordered = sorted(scored.scores, key=lambda name: scored.scores[name].der)
    chosen = list(dict.fromkeys((ordered[len(ordered) // 2], ordered[-1])))
    figure, axes = new_figure(len(chosen), 1)
    for axis, name in zip([axes] if len(chosen) == 1 else axes, chosen, strict=True):
        draw_turns(axis, scored.references[name], scored.hypotheses[name], scored.scores[name], name)
    save_figure(figure, path)


def draw_turns(axis: Any, reference: list[Turn], hypothesis: list[Turn], result: Score, name: str) -> None:
    """Bars of both over seconds: reference speakers below, answered ones above."""
    labels = sorted({turn.speaker for turn in reference}) + sorted({turn.speaker for turn in hypothesis})
    for color, turns in (("tab:gray", reference), ("tab:blue", hypothesis)):
        for turn in turns:
            axis.broken_barh([(turn.start_s, turn.duration_s)], (labels.index(turn.speaker) - 0.4, 0.8), color=color)
    axis.set(yticks=range(len(labels)), yticklabels=labels, xlabel="s", title=f"{name}: DER {100 * result.der:.1f} %")
