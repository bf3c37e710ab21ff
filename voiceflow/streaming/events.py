"""What is told of a stream while it runs, and what is known of it to tell more.

Shapes: S slots.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy.typing as npt

from voiceflow.turns import Turn


@dataclass(frozen=True)
class Segment:
    """One speaker's span as told to the client; the same id with a higher rev replaces it."""

    id: str
    rev: int
    turn: Turn
    final: bool
    """Whether its times are settled; its speaker may still turn out to be another one, told by a `Revision`."""
    overlap: bool


@dataclass(frozen=True)
class Revision:
    """A speaker turned out to be another one: all his segments, told again under the other's label."""

    merged: str
    into: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class ModelChanged:
    """Another model goes on with the stream."""

    at_s: float
    """From here on turns are its."""
    speakers: tuple[str, ...]
    """Labels of those it recognised; others are new to it when they speak again."""


Event = Segment | Revision | ModelChanged


@dataclass
class Tracked:
    """What a tracker knows of a stream, to be carried elsewhere."""

    num_steps: int
    columns: dict[str, npt.NDArray[Any]]
    """Of its slots, by name, shape (S,)."""
    labels: list[str | None]
    ids: list[str]
    revs: list[int]
    count: int
    """Segments so far."""
    num_named: int
    num_final: Counter[str]
    keep_s: float | None
    final: list[Segment]
    as_told: list[Turn]
    spare: list[str] = field(default_factory=list)
    """Labels to give before new ones are made."""

    def copy(self, *, num_steps: int) -> "Tracked":
        """Another one, to be changed."""
        return replace(
            self, num_steps=num_steps, columns={name: column.copy() for name, column in self.columns.items()}
        )

    def take_turns(self, before: "Tracked") -> None:
        """Have told what another one has, and nothing else."""
        self.count, self.num_named, self.num_final = before.count, before.num_named, Counter(before.num_final)
        self.keep_s, self.final, self.as_told = before.keep_s, list(before.final), list(before.as_told)

    def add_final(self, segment: Segment) -> Segment:
        """A segment ended."""
        self.final.append(segment)
        self.as_told.append(segment.turn)
        self.num_final[segment.turn.speaker] += 1
        return segment
