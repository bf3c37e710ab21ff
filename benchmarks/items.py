"""What the parts of the acceptance list share."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

Row = dict[str, Any]
"""`passed` (None where a figure is only told) and `figures`."""


T = TypeVar("T")
IS_TINY = os.environ.get("VOICEFLOW_TINY") == "1"
"""Whether only to see that it runs: `make smoke` sets it. Figures say nothing then, and nothing fails for them."""


def sized(full: T, *, tiny: T) -> T:
    """A size of a measurement: as it is reported, or tiny."""
    return tiny if IS_TINY else full


def run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command and keep what it printed."""
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def tests_pass(*selection: str) -> Row:
    """A row for a selection of tests."""
    if IS_TINY:
        return {"passed": None, "figures": "`make test` runs them"}
    done = run(sys.executable, "-m", "pytest", *selection)
    last = next((line for line in reversed(done.stdout.splitlines()) if "passed" in line or "failed" in line), "")
    return {"passed": done.returncode == 0, "figures": last}


def chosen(numbers: Mapping[str, Callable[[], Iterator[tuple[str, Row]]]], item: str) -> Iterator[tuple[str, Row]]:
    """Rows of all items, or of one number.

    Raises:
        SystemExit: No such number.
    """
    if item and item not in numbers:
        raise SystemExit(f"expected an item of {', '.join(numbers)}, got {item!r}")
    for number, work in numbers.items():
        if item in ("", number):
            yield from work()
