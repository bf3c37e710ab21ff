"""Evidently's comparison of two tables, column by column."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voiceflow.stages.drift import Difference, Row


class EvidentlyComparer:
    """`stages.drift.Comparer` with Evidently: a Kolmogorov-Smirnov test and a Wasserstein distance for each column."""

    def __init__(self) -> None:
        self._result: Any = None

    def compare(
        self, reference: Sequence[Row], window: Sequence[Row], thresholds: Mapping[str, float], *, min_distance: float
    ) -> dict[str, Difference]:
        """See `Comparer`."""
        import pandas as pd
        from evidently import DataDefinition, Dataset, Report
        from evidently.metrics import ValueDrift

        names = list(thresholds)
        definition = DataDefinition(numerical_columns=names)
        frames = [
            pd.DataFrame([[float(row[name]) for name in names] for row in rows], columns=names)
            for rows in (window, reference)
        ]
        tables = [Dataset.from_pandas(frame, definition) for frame in frames]
        tests = [ValueDrift(column=name, method="ks", threshold=thresholds[name]) for name in names]
        tests += [ValueDrift(column=name, method="wasserstein", threshold=min_distance) for name in names]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # The current data come first.
            self._result = Report(tests, include_tests=True).run(*tables)
        values: dict[tuple[str, str], float] = {}
        for metric in self._result.dict()["metrics"]:
            values[metric["config"]["column"], metric["config"]["method"]] = float(metric["value"])
        return {name: Difference(values[name, "ks"], values[name, "wasserstein"]) for name in names}

    def save(self, page: Path, document: Path) -> None:
        """See `Comparer`."""
        assert self._result is not None
        self._result.save_html(str(page))
        self._result.save_json(str(document))
