"""The rhythm of conversations: how long people speak, take turns and talk at once, and how far two sets differ."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from voiceflow.turns import Turn, merge_turns

Array = npt.NDArray[np.float64]

BRIDGED_PAUSE_S = 0.2
"""Pauses of one speaker up to this long stay inside the turn, as transcribers do it."""
MAX_BACKCHANNEL_S = 1.0
"""A turn up to this long, wholly inside somebody else's, is a backchannel: "yes", "mhm", a laugh."""
DISTRIBUTIONS = {
    "turn_s": "length of a turn",
    "offset_s": "from one speaker's end to the next one's start; below zero they overlap",
    "pause_s": "between two turns of one speaker, nobody else between",
    "overlap_s": "length of a stretch in which several speak",
}
SHARES = {
    "speech_share": "of the time in which anybody speaks",
    "overlap_share": "of the speech in which several speak",
    "overlapped_changes": "of the changes of speaker before the first has ended",
    "backchannel_share": "of turns that are backchannels",
}


@dataclass(frozen=True)
class Rhythm:
    """What is measured of a set of conversations."""

    conversations: int
    hours: float
    turns_per_minute: float
    speakers_per_conversation: float
    distributions: dict[str, Array]
    """Seconds, by the names of `DISTRIBUTIONS`."""
    shares: dict[str, float]
    """In [0, 1], by the names of `SHARES`."""

    def summary(self) -> dict[str, Any]:
        """Medians, quartiles and shares, for JSON."""
        quartiles = {
            name: [round(float(value), 3) for value in np.quantile(values_N, [0.25, 0.5, 0.75])]
            if len(values_N)
            else []
            for name, values_N in self.distributions.items()
        }
        return {
            "conversations": self.conversations,
            "hours": round(self.hours, 4),
            "turns_per_minute": round(self.turns_per_minute, 2),
            "speakers_per_conversation": round(self.speakers_per_conversation, 2),
            **{name: {"quartiles": values} for name, values in quartiles.items()},
            **{name: round(value, 4) for name, value in self.shares.items()},
        }


def measure_rhythm(conversations: Iterable[tuple[Sequence[Turn], float]]) -> Rhythm:
    """Measure conversations given as turns and length in seconds.

    A change of speaker is from the end of one turn to the start of the next, backchannels and what lies wholly inside
    another turn left out: who says "yes" has not taken the floor.

    Source:
        Heldner and Edlund, Pauses, gaps and overlaps in conversations, 2010, for gaps, overlaps and pauses.
    """
    found: dict[str, list[float]] = {name: [] for name in DISTRIBUTIONS}
    count = backchannels = speakers = 0
    total_s = speech_s = overlap_s = 0.0
    for turns, duration_s in conversations:
        merged = merge_turns(turns, max_gap_s=BRIDGED_PAUSE_S)
        count += 1
        total_s += duration_s
        speakers += len({turn.speaker for turn in merged})
        floor, inside = _floor(merged)
        backchannels += sum(turn.duration_s <= MAX_BACKCHANNEL_S for turn in inside)
        found["turn_s"] += [turn.duration_s for turn in merged]
        for one, following in pairwise(floor):
            kind = "offset_s" if one.speaker != following.speaker else "pause_s"
            found[kind].append(following.start_s - one.end_s)
        stretches, spoken_s = _overlaps(merged)
        found["overlap_s"] += stretches
        overlap_s += sum(stretches)
        speech_s += spoken_s
    values = {name: np.array(rows, np.float64) for name, rows in found.items()}
    num_turns = len(values["turn_s"])
    return Rhythm(
        conversations=count,
        hours=total_s / 3600,
        turns_per_minute=60 * num_turns / max(total_s, 1e-9),
        speakers_per_conversation=speakers / max(count, 1),
        distributions=values,
        shares={
            "speech_share": speech_s / max(total_s, 1e-9),
            "overlap_share": overlap_s / max(speech_s, 1e-9),
            "overlapped_changes": float(np.mean(values["offset_s"] < 0.0)) if len(values["offset_s"]) else 0.0,
            "backchannel_share": backchannels / max(num_turns, 1),
        },
    )


def _floor(turns: Sequence[Turn]) -> tuple[list[Turn], list[Turn]]:
    """Turns that take the floor, in order, and those that lie wholly inside somebody else's."""
    floor: list[Turn] = []
    inside: list[Turn] = []
    for turn in sorted(turns, key=lambda one: (one.start_s, -one.end_s)):
        if any(turn.end_s <= other.end_s and turn.speaker != other.speaker for other in floor[-4:]):
            inside.append(turn)
        else:
            floor.append(turn)
    return floor, inside


def _overlaps(turns: Sequence[Turn]) -> tuple[list[float], float]:
    """Lengths of stretches in which several speak, and the time in which anybody does."""
    edges = sorted([(turn.start_s, 1) for turn in turns] + [(turn.end_s, -1) for turn in turns])
    stretches, spoken_s, speaking, since_s, several_since_s = [], 0.0, 0, 0.0, 0.0
    for time_s, step in edges:
        before, speaking = speaking, speaking + step
        if before:
            spoken_s += time_s - since_s
        since_s = time_s
        if before == 1 and speaking == 2:
            several_since_s = time_s
        if before == 2 and speaking == 1 and time_s > several_since_s:
            stretches.append(time_s - several_since_s)
    return stretches, spoken_s


def rhythm_distances(one: Rhythm, other: Rhythm) -> dict[str, float]:
    """How far two sets of conversations lie apart.

    Returns:
        For each distribution ``<name>_wasserstein`` in seconds and ``<name>_ks`` in [0, 1] (the largest difference of
        their cumulative shares); for each share the absolute difference. A distribution that one of them lacks is
        left out.
    """
    from scipy.stats import ks_2samp, wasserstein_distance

    distances: dict[str, float] = {}
    for name in DISTRIBUTIONS:
        left, right = one.distributions[name], other.distributions[name]
        if len(left) and len(right):
            distances[f"{name}_wasserstein"] = round(float(wasserstein_distance(left, right)), 4)
            distances[f"{name}_ks"] = round(float(ks_2samp(left, right).statistic), 4)
    for name in SHARES:
        distances[name] = round(abs(one.shares[name] - other.shares[name]), 4)
    return distances
