"""Who speaks when in a training conversation: turns of a style, in samples, before any voice is chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from voiceflow.config import StyleConfig, VarietyConfig
from voiceflow.timebase import seconds_to_samples

Generator = np.random.Generator

SHORTEST_S, LONGEST_S = 0.3, 30.0
MAX_EARLY_S, MAX_GAP_S = 2.5, 3.0
"""Nobody begins earlier than this before the other has ended; later only after a silence."""
OWN_GAP_S = 0.25
"""Least pause between two turns of one speaker."""
LAST_WORDS_S = 3.0
"""Whatever comes, somebody speaks so long before the end: a conversation without turns is a fault in the data."""
UNHEARD_FIRST = 0.4
"""How often somebody who has not spoken yet is the next."""


@dataclass(frozen=True)
class Span:
    """One turn that somebody is to fill: speaker number, first sample, first sample after it."""

    speaker: int
    start: int
    end: int


@dataclass(frozen=True)
class Presence:
    """From when to when each speaker is there, in seconds."""

    joins_s: tuple[float, ...]
    leaves_s: tuple[float, ...]

    def there(self, time_s: float) -> list[int]:
        """Speakers who are there; whoever joins first, where nobody is."""
        present = [
            number
            for number, (joins_s, leaves_s) in enumerate(zip(self.joins_s, self.leaves_s, strict=True))
            if joins_s <= time_s < leaves_s
        ]
        return present or [int(np.argmin(self.joins_s))]


def draw_style(rng: Generator, styles: Mapping[str, StyleConfig]) -> tuple[str, StyleConfig]:
    """One of the styles, by weight; some of its conversations are busier or calmer than its average."""
    weights = np.array([style.weight for style in styles.values()])
    name, style = list(styles.items())[int(rng.choice(len(weights), p=weights / weights.sum()))]
    spread = float(rng.normal(0.0, style.spread))
    return name, style.model_copy(
        update={
            "gap_mean_s": style.gap_mean_s - 0.5 * spread,
            "backchannels_per_minute": style.backchannels_per_minute * float(np.exp(spread)),
            "turn_median_s": style.turn_median_s * float(np.exp(-0.5 * spread)),
        }
    )


def draw_presence(rng: Generator, variety: VarietyConfig, num_speakers: int, duration_s: float) -> Presence:
    """Who joins late and who leaves early; at least one speaker is there all the time."""
    stays = int(rng.integers(num_speakers))
    joins, leaves = [], []
    for number in range(num_speakers):
        joins_s, leaves_s = 0.0, duration_s
        if number != stays and rng.random() < variety.join_share:
            joins_s = float(rng.uniform(0.1, 0.7)) * duration_s
        if number != stays and rng.random() < variety.leave_share:
            leaves_s = min(duration_s, max(joins_s + 5.0, float(rng.uniform(0.3, 0.9)) * duration_s))
        joins.append(joins_s)
        leaves.append(leaves_s)
    return Presence(tuple(joins), tuple(leaves))


def draw_turns(
    rng: Generator, style: StyleConfig, presence: Presence, duration_s: float, *, start_s: float, lull_s: float
) -> list[Span]:
    """Turns of a conversation, sorted by start; no speaker overlaps himself.

    Args:
        rng: Draws all of it.
        style: Lengths, gaps, silences and backchannels.
        presence: Who is there.
        duration_s: Length of the conversation.
        start_s: When the first turn may begin.
        lull_s: When everybody falls silent once; beyond the end for never.
    """
    num_speakers = len(presence.joins_s)
    dominance = rng.dirichlet(np.full(num_speakers, 3.0))
    busy_until_s = [0.0] * num_speakers
    unheard = list(range(num_speakers))
    spans: list[tuple[float, float, int]] = []
    last_words_s = max(0.0, duration_s - LAST_WORDS_S)
    time_s = min(start_s + rng.exponential(0.7), last_words_s)
    speaker = presence.there(time_s)[0]
    while time_s < duration_s:
        if time_s >= lull_s:
            time_s, lull_s = min(time_s + rng.uniform(4.0, 40.0), max(time_s, last_words_s)), duration_s + 1.0
        # 1) the turn itself; whoever was to speak may have left meanwhile
        present = presence.there(time_s)
        speaker = speaker if speaker in present else int(rng.choice(np.array(present)))
        begin_s = max(time_s, busy_until_s[speaker])
        wanted_s = float(np.clip(rng.lognormal(np.log(style.turn_median_s), style.turn_sigma), SHORTEST_S, LONGEST_S))
        end_s = max(begin_s, min(begin_s + wanted_s, duration_s))
        if end_s - begin_s >= SHORTEST_S / 2:
            spans.append((begin_s, end_s, speaker))
        busy_until_s[speaker] = end_s + OWN_GAP_S
        unheard = [name for name in unheard if name != speaker]
        # 2) others say "yes" meanwhile
        for _ in range(int(rng.poisson(style.backchannels_per_minute * (end_s - begin_s) / 60.0))):
            length_s = rng.uniform(SHORTEST_S, 0.9)
            if end_s - begin_s <= length_s + 0.6:
                continue
            at_s = rng.uniform(begin_s + 0.4, end_s - length_s - 0.1)
            free = [name for name in presence.there(at_s) if name != speaker and busy_until_s[name] <= at_s]
            if free:
                listener = int(rng.choice(np.array(free)))
                spans.append((at_s, at_s + length_s, listener))
                busy_until_s[listener] = at_s + length_s + OWN_GAP_S
        # 3) who is next, and when
        following = _next(rng, style, presence.there(end_s), speaker, dominance, unheard)
        silence_s = rng.exponential(style.silence_mean_s) if rng.random() < style.silence_probability else 0.0
        if following == speaker:
            time_s = end_s + OWN_GAP_S + rng.exponential(style.pause_mean_s) + silence_s
        else:
            gap_s = float(np.clip(rng.normal(style.gap_mean_s, style.gap_sigma_s), -MAX_EARLY_S, MAX_GAP_S))
            # Nobody begins before the turn that he answers has been heard for a while.
            time_s = max(begin_s + 0.5 * (end_s - begin_s), end_s + gap_s) + silence_s
        speaker = following
    ordered = sorted(spans)
    return [Span(number, seconds_to_samples(start), seconds_to_samples(end)) for start, end, number in ordered]


def _next(
    rng: Generator,
    style: StyleConfig,
    present: Sequence[int],
    current: int,
    dominance: np.ndarray,
    unheard: Sequence[int],
) -> int:
    others = [name for name in present if name != current]
    if not others or (current in present and rng.random() < style.goes_on_probability):
        return current
    new = [name for name in unheard if name in others]
    if new and rng.random() < UNHEARD_FIRST:
        return new[0]
    weights = dominance[others]
    return int(rng.choice(np.array(others), p=weights / weights.sum()))
