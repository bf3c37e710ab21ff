"""Real conversations beside simulated ones: turn length, gaps, overlap, backchannels; distances, tables, curves."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voiceflow.corpora.description import Corpus
from voiceflow.corpora.read import read_conversations
from voiceflow.errors import DataError
from voiceflow.rhythm import DISTRIBUTIONS, SHARES, Rhythm, measure_rhythm, rhythm_distances
from voiceflow.stages.data_docs import STYLE
from voiceflow.stages.dataset import is_simulated, read_recordings, read_turns
from voiceflow.stages.plots import new_figure, save_figure
from voiceflow.turns import Turn

Talk = tuple[Sequence[Turn], float]
"""Turns, and length in seconds."""
PAGE, PICTURE, FIGURES = "report.html", "rhythm.png", "report.json"
SHOWN_S = {"turn_s": (0.0, 15.0), "offset_s": (-3.0, 5.0), "pause_s": (0.0, 6.0), "overlap_s": (0.0, 3.0)}
"""Range of each curve."""


@dataclass(frozen=True)
class Compared:
    """Sets of conversations by name, and how far each simulated one is from each real one."""

    real: dict[str, Rhythm]
    simulated: dict[str, Rhythm]
    distances: dict[str, dict[str, dict[str, float]]]
    """By simulated set, then real set, as `rhythm_distances` has them."""
    left_out: list[str]
    """Why recordings were not measured: their turns cannot be read."""

    def nearest(self) -> dict[str, str]:
        """For each real set the simulated one of the smallest mean KS distance."""
        return {
            real: min(self.simulated, key=lambda name: mean_ks(self.distances[name][real]))
            for real in self.real
            if self.simulated
        }


def mean_ks(distances: Mapping[str, float]) -> float:
    """One figure for how far two sets are apart: the mean KS distance of their distributions; infinite without any."""
    values = [value for name, value in distances.items() if name.endswith("_ks")]
    return float(np.mean(values)) if values else float("inf")


def compare_rhythms(dataset: Path | None, real: Sequence[Path]) -> Compared:
    """Measure a prepared dataset and folders of real conversations.

    Args:
        dataset: Its simulated conversations are compared, training ones also by style; recorded ones in it are real.
            None for none.
        real: More folders of conversations: recordings with RTTM files, corpora of `voiceflow data get`, manifests.

    Raises:
        DataError: A folder cannot be read, holds no conversations, or is called like another.
        AudioFormatError: The length of a recording cannot be read.
    """
    recorded: dict[str, list[Talk]] = {}
    made: dict[str, list[Talk]] = {}
    left_out: list[str] = []
    for recording in read_recordings(dataset) if dataset is not None else []:
        assert dataset is not None
        names, sets = [recording.condition], recorded
        if is_simulated(recording):
            names, sets = ["training", recording.style] if recording.split == "train" else ["held-out"], made
        for name in filter(None, names):
            sets.setdefault(name, []).append((read_turns(dataset, recording), recording.duration_s))
    for folder in real:
        name = folder.resolve().name
        if name in recorded:
            raise DataError(f"two sets of real conversations are called {name}; rename a folder")
        recorded[name] = []
        for talk in read_conversations(folder):
            if talk.turns_error:
                left_out.append(talk.turns_error)
            else:
                recorded[name].append((talk.turns, talk.duration_s()))
        if not recorded[name]:
            raise DataError(f"{folder}: none of its conversations has turns that can be read: {left_out[-1]}")
    if not recorded and not made:
        raise DataError("expected a prepared dataset or a folder of conversations to measure, got none")
    right, left = ({name: measure_rhythm(talks) for name, talks in sets.items()} for sets in (recorded, made))
    distances = {
        name: {other: rhythm_distances(rhythm, against) for other, against in right.items()}
        for name, rhythm in left.items()
    }
    return Compared(right, left, distances, left_out)


def write_report(compared: Compared, described: Mapping[str, Corpus], folder: Path) -> dict[str, Any]:
    """Write report.html, report.json and rhythm.png.

    Args:
        compared: What was measured.
        described: Corpora whose published figures are shown beside.
        folder: Where to.

    Returns:
        The content of report.json.
    """
    published = {
        name: corpus.published.model_dump(mode="json") for name, corpus in described.items() if corpus.published
    }
    figures = {
        "real": {name: rhythm.summary() for name, rhythm in compared.real.items()},
        "published": published,
        "simulated": {name: rhythm.summary() for name, rhythm in compared.simulated.items()},
        "distances": compared.distances,
        "nearest": compared.nearest(),
        "left_out": compared.left_out,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FIGURES).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    _plot(compared, folder / PICTURE)
    (folder / PAGE).write_text(_page(compared, published, folder / PICTURE), encoding="utf-8")
    return figures


HEADS = ["", "h", "turn", "gap", "pause", "overlap", "speech%", "over%", "early%", "yes%"]
"""Medians of `DISTRIBUTIONS`, then `SHARES`."""


def table_of(compared: Compared, published: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Rows for people, under `HEADS`: medians and shares of each set, real ones first."""
    rows = []
    for kind, sets in (("real", compared.real), ("simulated", compared.simulated)):
        for name, rhythm in sets.items():
            medians = [f"{np.median(values):.2f}" if len(values) else "" for values in rhythm.distributions.values()]
            shares = [f"{100 * rhythm.shares[share]:.1f}" for share in SHARES]
            rows.append([f"{kind}: {name}", f"{rhythm.hours:.2f}", *medians, *shares])
    for name, told in published.items():
        shares = ["" if told.get(share) is None else f"{100 * told[share]:.1f}" for share in SHARES]
        rows.append([f"published: {name}", "", *[""] * len(DISTRIBUTIONS), *shares])
    return rows


def _plot(compared: Compared, path: Path) -> None:
    figure, axes = new_figure(2, 2)
    for axis, (name, meaning) in zip(axes.ravel(), DISTRIBUTIONS.items(), strict=True):
        for sets, style, width in ((compared.real, "-", 2.2), (compared.simulated, "--", 1.2)):
            for label, rhythm in sets.items():
                values = np.sort(rhythm.distributions[name])
                if len(values):
                    shares = np.arange(1, len(values) + 1) / len(values)
                    axis.plot(values, shares, style, linewidth=width, label=label)
        axis.set(xlim=SHOWN_S[name], ylim=(0, 1), xlabel="s", title=f"{name}: {meaning}")
        axis.title.set_fontsize(8)
    axes[0, 0].set_ylabel("share of them up to here; real ones are solid")
    axes[0, 0].legend(fontsize=8)
    save_figure(figure, path)


def _page(compared: Compared, published: Mapping[str, Mapping[str, Any]], picture: Path) -> str:
    rows = table_of(compared, published)
    data = base64.b64encode(picture.read_bytes()).decode()
    sources = "".join(
        f"<li>{html.escape(name)}: {html.escape(str(told['source']))}</li>" for name, told in published.items()
    )
    names = [f"{name}_{kind}" for name in DISTRIBUTIONS for kind in ("wasserstein", "ks")] + list(SHARES)
    apart = [
        [f"{simulated} - {real}", f"{mean_ks(row):.3f}", *[str(row.get(name, "")) for name in names]]
        for simulated, against in compared.distances.items()
        for real, row in against.items()
    ]
    left_out = "".join(f"<li>{html.escape(why)}</li>" for why in compared.left_out)
    nearest = "".join(
        f"<li>nearest to {html.escape(real)}: <b>{html.escape(name)}</b></li>"
        for real, name in compared.nearest().items()
    )
    meanings = "".join(f"<li><code>{name}</code> {meaning}</li>" for name, meaning in (DISTRIBUTIONS | SHARES).items())
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>VoiceFlow conversations</title><style>{STYLE}</style>"
        f"<h1>Real conversations beside simulated ones</h1><p>Medians and shares.</p>{_table(HEADS, rows)}"
        f"<ul>{meanings}</ul><p><img alt='cumulative shares' src='data:image/png;base64,{data}'></p>"
        f"<h2>Distances</h2><p>Wasserstein in seconds; KS is the largest difference of the curves above; shares by "
        f"their difference.</p>{_table(['', 'mean KS', *names], apart)}<ul>{nearest}</ul>"
        f"<h2>Published figures</h2><ul>{sources}</ul>"
        f"{'<h2>Left out</h2>' if compared.left_out else ''}<ul>{left_out}</ul></html>"
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
