"""Checkpoints from which a run goes on exactly where it was."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs; random draws follow from the step, so no generator state is kept."""

    step: int
    elapsed_s: float
    best_der: float
    best_step: int
    without_gain: int
    net: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write last.pt whole or not at all: a killed run never leaves half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "last.pt.partial"
    torch.save({field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}, partial)
    partial.replace(folder / "last.pt")


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint of a run in this folder, or None."""
    path = folder / "last.pt"
    if not path.is_file():
        return None
    return Checkpoint(**torch.load(path, weights_only=True))
