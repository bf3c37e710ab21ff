"""Folders that are filled over time: beside their place until they are whole, and gone on with after a crash."""

import shutil
from pathlib import Path

STATE = "unfinished.txt"


def begin(final: Path, state: str) -> Path:
    """The folder in which `final` is made: what an earlier run of the same `state` left, or empty.

    Raises:
        OSError: It cannot be written.
    """
    partial = final.with_name(final.name + ".partial")
    note = partial / STATE
    if partial.exists() and (not note.is_file() or note.read_text(encoding="utf-8") != state):
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    note.write_text(state, encoding="utf-8")
    return partial


def finish(partial: Path, final: Path) -> None:
    """Put a folder that is whole into its place, instead of what was there."""
    (partial / STATE).unlink()
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
