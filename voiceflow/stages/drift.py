"""drift: whether live streams still sound like those that the champion was judged on, and like which slice they do."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from voiceflow.config import DriftConfig
from voiceflow.errors import DataError
from voiceflow.streaming.statistics import NAMES

Row = Mapping[str, Any]
"""Statistics of one stream by name; reference rows also have the `condition` of their recording."""
REPORT, PAGE, EVIDENTLY = "drift.json", "drift.html", "evidently.json"
NOWHERE = "unknown"
"""Slice of streams that sound like no condition of the reference."""


@dataclass(frozen=True)
class Difference:
    """How one statistic differs between two sets of streams."""

    p_value: float
    """Of the two-sample Kolmogorov-Smirnov test."""
    distance: float
    """Wasserstein distance, in standard deviations of the reference."""


class Comparer(Protocol):
    """Whatever compares two tables column by column: Evidently, in `adapters.drift_report`."""

    def compare(
        self, reference: Sequence[Row], window: Sequence[Row], thresholds: Mapping[str, float], *, min_distance: float
    ) -> dict[str, Difference]:
        """Differences by name; each is tested against its threshold of the p-value."""
        ...

    def save(self, page: Path, document: Path) -> None:
        """Write the report of the last comparison as HTML and as JSON."""
        ...


@dataclass(frozen=True)
class Column:
    """The verdict on one statistic."""

    name: str
    p_value: float
    threshold: float
    """What the p-value had to be below, after correction for the number of statistics."""
    distance: float
    reference: float
    """Median."""
    window: float
    """Median."""
    drifted: bool


def drift(
    config: DriftConfig,
    reference: Sequence[Row],
    window: Sequence[Row],
    output: Path | None,
    comparer: Comparer,
    *,
    model: str = "",
) -> dict[str, Any]:
    """Compare the last streams with the reference; writes drift.json, drift.html and evidently.json.

    Args:
        config: Thresholds.
        reference: Statistics logged with the champion.
        window: Statistics of live streams; the last `window_streams` count.
        output: Folder of the reports; None for none.
        comparer: Compares.
        model: Version of the model that the reference belongs to.

    Returns:
        The content of drift.json: `drifted`, `columns`, `slice` (the condition of the reference that the streams
        sound like, and what is different), `num_streams`, and `enough`: False where there are too few streams to say
        anything.

    Raises:
        DataError: No reference.
    """
    if len(reference) < config.min_streams:
        raise DataError(
            f"the reference has {len(reference)} streams, expected {config.min_streams} or more; "
            "make one with `voiceflow drift --set-reference`"
        )
    window = [row for row in window if row.get("audio_s", config.min_audio_s) >= config.min_audio_s]
    window = window[-config.window_streams :]
    verdict: dict[str, Any] = {
        "drifted": False,
        "enough": len(window) >= config.min_streams,
        "model": model,
        "num_streams": len(window),
        "num_reference": len(reference),
        "columns": [],
        "slice": None,
    }
    if verdict["enough"]:
        names = [name for name in NAMES if name in reference[0] and name in window[0]]
        even = dict.fromkeys(names, config.false_alarm / len(names))
        found = comparer.compare(reference, window, even, min_distance=config.min_distance)
        thresholds = holm({name: one.p_value for name, one in found.items()}, config.false_alarm)
        columns = [
            Column(
                name,
                found[name].p_value,
                thresholds[name],
                found[name].distance,
                float(np.median([row[name] for row in reference])),
                float(np.median([row[name] for row in window])),
                found[name].p_value <= thresholds[name] and found[name].distance >= config.min_distance,
            )
            for name in names
        ]
        verdict["drifted"] = any(column.drifted for column in columns)
        verdict["columns"] = [asdict(column) for column in sorted(columns, key=lambda column: -column.distance)]
        if verdict["drifted"]:
            verdict["slice"] = name_slice(reference, window, [column for column in columns if column.drifted])
        if output is not None:
            # Once more, so that its pages show what was decided.
            comparer.compare(reference, window, thresholds, min_distance=config.min_distance)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / REPORT).write_text(json.dumps(verdict, indent=2) + "\n", encoding="utf-8")
        if verdict["enough"]:
            comparer.save(output / PAGE, output / EVIDENTLY)
    return verdict


def holm(p_values: Mapping[str, float], false_alarm: float) -> dict[str, float]:
    """What each p-value must be below, so that the chance of any false alarm is `false_alarm` at most.

    Source:
        Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979.
    """
    thresholds: dict[str, float] = {}
    ordered = sorted(p_values, key=lambda name: p_values[name])
    for index, name in enumerate(ordered):
        thresholds[name] = false_alarm / (len(ordered) - index)
        if p_values[name] > thresholds[name]:
            # The first that holds ends it: those after it have larger p-values, and hold as well.
            return thresholds | dict.fromkeys(ordered[index:], thresholds[name])
    return thresholds


def name_slice(reference: Sequence[Row], window: Sequence[Row], columns: Sequence[Column]) -> dict[str, Any]:
    """Which condition of the reference the streams are most like, and in words what is different.

    A condition is named where it explains more than half of the distance.
    """
    names = [column.name for column in columns]
    table_NC = np.array([[row[name] for name in names] for row in reference], np.float64)
    spread_C = table_NC.std(axis=0) + 1e-9
    middle_C = np.median([[row[name] for name in names] for row in window], axis=0)
    away = float(np.linalg.norm((middle_C - np.median(table_NC, axis=0)) / spread_C))
    conditions = np.array([str(row.get("condition", "")) for row in reference])
    distances = {
        condition: float(np.linalg.norm((middle_C - np.median(table_NC[conditions == condition], axis=0)) / spread_C))
        for condition in sorted(set(conditions) - {""})
    }
    nearest = min(distances, key=lambda condition: distances[condition], default=NOWHERE)
    known = nearest != NOWHERE and distances[nearest] < 0.5 * away
    words = [
        f"{column.name} {'rises' if column.window > column.reference else 'falls'} "
        f"from {column.reference:.3g} to {column.window:.3g}"
        for column in sorted(columns, key=lambda column: -column.distance)
    ]
    return {"name": nearest if known else NOWHERE, "distances": distances, "words": words}


def describe(verdict: Mapping[str, Any]) -> str:
    """One line for people and logs."""
    if not verdict["enough"]:
        return f"too few streams to say anything: {verdict['num_streams']}"
    if not verdict["drifted"]:
        return f"no drift in {verdict['num_streams']} streams"
    return f"drift in {verdict['num_streams']} streams, like {verdict['slice']['name']}: " + ", ".join(
        verdict["slice"]["words"]
    )
