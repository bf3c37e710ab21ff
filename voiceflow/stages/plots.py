"""Figures without a display: matplotlib's Agg canvas, one look."""

from pathlib import Path
from typing import Any


def new_figure(num_rows: int, num_columns: int) -> tuple[Any, Any]:
    """A figure and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * num_columns, 3.8 * num_rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(num_rows, num_columns)


def save_figure(figure: Any, path: Path) -> None:
    """Write a PNG without a date, so that the same figure gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})
