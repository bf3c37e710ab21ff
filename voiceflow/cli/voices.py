"""Folders of known voices, as `diarize` and `stream` take them."""

from pathlib import Path

import numpy as np

from voiceflow.audio import FloatArray, load_audio
from voiceflow.cli.console import err
from voiceflow.corpora.read import AUDIO_SUFFIXES
from voiceflow.errors import DataError, VoiceflowError


def read_voices(folder: Path) -> dict[str, FloatArray]:
    """Recordings of a folder by speaker: <name>.wav, or <name>/*.wav joined; mono float32 at 16 kHz, shape (N,).

    A file that cannot be read is told, and the others are used.

    Raises:
        DataError: No such folder, or no audio in it.
    """
    if not folder.is_dir():
        raise DataError(f"--speakers {folder}: expected a folder with <name>.wav or <name>/*.wav")
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in AUDIO_SUFFIXES]
    if not files:
        raise DataError(f"--speakers {folder}: holds no audio; expected <name>.wav or <name>/*.wav")
    pieces: dict[str, list[FloatArray]] = {}
    for path in files:
        parts = path.relative_to(folder).parts
        try:
            pieces.setdefault(parts[0] if len(parts) > 1 else path.stem, []).append(load_audio(path))
        except VoiceflowError as problem:
            tell_refused(str(problem))
    return {label: np.concatenate(found) for label, found in pieces.items() if found}


def tell_refused(reason: str) -> None:
    """Say on standard error that a voice is not used, and why."""
    err.print("[yellow]not enrolled:[/yellow]", end=" ")
    err.print(reason, markup=False, soft_wrap=True)
