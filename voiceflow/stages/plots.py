"""Pictures without a display: matplotlib's Agg canvas, one look."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voiceflow.errors import ConfigError
from voiceflow.timebase import SAMPLE_RATE_HZ, samples_to_seconds
from voiceflow.turns import Turn, speakers_in_order

PICTURES = (".png", ".svg", ".pdf")
ROW_S = 60.0
"""Audio in one row of a picture of turns."""
MAX_ROWS = 30


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
    figure.savefig(path, dpi=100, metadata={"Software": None} if path.suffix == ".png" else None)


def check_plot(path: Path, num_files: int) -> None:
    """Whether pictures can be drawn there.

    Raises:
        ConfigError: No matplotlib, an unknown suffix, or one file for several recordings.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib; run `pip install 'voiceflow[plot]'`")
    if path.suffix and path.suffix not in PICTURES:
        raise ConfigError(f"--plot {path}: expected a folder or a name that ends in {', '.join(PICTURES)}")
    if path.suffix and num_files > 1:
        raise ConfigError(f"--plot {path}: expected a folder for {num_files} recordings, got one file")


def plot_turns(path: Path, samples_N: npt.NDArray[np.float32], turns: Sequence[Turn], *, title: str) -> None:
    """Draw a recording's waveform with the turns over it, a minute a row (longer rows for long recordings).

    Args:
        path: The picture: .png, .svg or .pdf.
        samples_N: Mono float32 audio at 16 kHz.
        turns: Who speaks when.
        title: Shown above.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    duration_s = max(samples_to_seconds(len(samples_N)), 0.1)
    row_s = max(min(ROW_S, duration_s), duration_s / MAX_ROWS)
    num_rows = int(np.ceil(duration_s / row_s - 1e-9))
    speakers = speakers_in_order(turns)
    colors = [f"C{number % 10}" for number in range(len(speakers))]
    figure = Figure(figsize=(12, 0.6 + num_rows * (1.0 + 0.22 * max(1, len(speakers)))), layout="constrained")
    FigureCanvasAgg(figure)
    peak = float(np.abs(samples_N).max(initial=1e-4))
    lane = 0.9
    for row, axis in enumerate(figure.subplots(num_rows, 1, squeeze=False)[:, 0]):
        begin_s, end_s = row * row_s, (row + 1) * row_s
        low, high, times_s = _envelope(samples_N, begin_s, min(end_s, duration_s))
        axis.fill_between(times_s, low / peak, high / peak, color="0.72", linewidth=0)
        for number, speaker in enumerate(speakers):
            spans = [
                (max(turn.start_s, begin_s), min(turn.end_s, end_s) - max(turn.start_s, begin_s))
                for turn in turns
                if turn.speaker == speaker and turn.start_s < end_s and turn.end_s > begin_s
            ]
            bottom = 1.1 + number * lane
            axis.broken_barh(spans, (bottom, 0.8 * lane), color=colors[number])
            if row == 0:
                axis.text(begin_s - 0.003 * row_s, bottom + 0.4 * lane, speaker, ha="right", va="center", fontsize=8)
            else:
                for start_s, _ in spans[:1]:
                    axis.text(start_s, bottom + 0.4 * lane, speaker, va="center", fontsize=6, color="white")
        axis.set(xlim=(begin_s, end_s), ylim=(-1.05, 1.1 + max(1, len(speakers)) * lane), yticks=[])
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    axis.set_xlabel("s")
    figure.suptitle(f"{title}: {len(speakers)} speakers, {len(turns)} turns", fontsize=10)
    save_figure(figure, path)


def _envelope(
    samples_N: npt.NDArray[np.float32], begin_s: float, end_s: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Least and greatest sample of about 1500 stretches, and their times."""
    piece_N = samples_N[int(begin_s * SAMPLE_RATE_HZ) : int(end_s * SAMPLE_RATE_HZ)]
    if len(piece_N) == 0:
        return np.zeros(1, np.float32), np.zeros(1, np.float32), np.array([begin_s])
    size = max(1, len(piece_N) // 1500)
    starts = np.arange(0, len(piece_N), size)
    times_s = begin_s + starts / SAMPLE_RATE_HZ
    return np.minimum.reduceat(piece_N, starts), np.maximum.reduceat(piece_N, starts), times_s
