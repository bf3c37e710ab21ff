"""What commands share: printing for people or machines, progress bars, errors."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def error(problem: Exception) -> None:
    """Print an error the way users should see it: one sentence, no traceback."""
    err.print("[red]error:[/red]", end=" ")
    err.print(str(problem), markup=False, soft_wrap=True)


def emit_json(value: Any) -> None:
    """Print one JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def percent(fraction: float) -> str:
    """A DER for people."""
    return f"{100 * fraction:.1f} %"


def progress_bar(console: Console = err) -> Any:
    """A bar with counts, elapsed time and time left."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


@contextmanager
def stage_progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar for each thing that a stage says it does; yields what stages call with it, how many are done, and of how
    many."""
    with progress_bar() as bar:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int | None) -> None:
            task = tasks.get(what)
            if task is None:
                task = tasks[what] = bar.add_task(what, total=total)
            bar.update(task, completed=done, total=total)

        yield progress
