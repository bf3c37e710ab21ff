"""Held-out conversations, made as they were when the first model was judged by them: the same bits for ever.

Figures of released models are of these conversations, so nothing here changes; training has a simulator of its own.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from voiceflow.config import PrepareConfig, TurnTakingConfig
from voiceflow.rhythm import BRIDGED_PAUSE_S
from voiceflow.simulation.acoustics import FloatArray, Generator, mix
from voiceflow.simulation.conversations import MIN_TURN_S, Conversation, ConversationPlan
from voiceflow.simulation.speech import Segment, at_level
from voiceflow.timebase import SAMPLE_RATE_HZ, samples_to_seconds, seconds_to_samples
from voiceflow.turns import Turn, merge_turns


def simulate(plan: ConversationPlan, segments: Mapping[str, Sequence[Segment]], config: PrepareConfig) -> Conversation:
    """Make one conversation; the same plan, segments and config give the same samples.

    Args:
        plan: Who, where, and the seed.
        segments: Speech of each speaker of the plan, cut at pauses.
        config: Length, turn taking and levels.
    """
    rng = np.random.default_rng(plan.seed)
    num_samples = seconds_to_samples(config.conversation_s)
    sources = {speaker: _Source(rng, segments[speaker]) for speaker in plan.speakers}
    tracks = {speaker: np.zeros(num_samples, np.float32) for speaker in plan.speakers}
    turns: list[Turn] = []
    taking = _mood(rng, config.turn_taking)
    # Some talk more than others, and each has somebody who tends to answer.
    dominance = rng.dirichlet(np.full(len(plan.speakers), 3.0))
    speaker = plan.speakers[0]
    time = int(rng.exponential(0.7) * SAMPLE_RATE_HZ)
    unheard = list(plan.speakers)
    away = False
    while time < num_samples:
        # 1) the turn itself
        length_s = float(np.clip(rng.lognormal(np.log(taking.turn_median_s), taking.turn_sigma), 0.3, 20.0))
        end = _speak(rng, sources[speaker], tracks[speaker], turns, speaker, time, length_s)
        # 2) somebody says "yes" meanwhile
        others = [name for name in plan.speakers if name != speaker and not (away and name == plan.speakers[0])]
        if others and rng.random() < taking.backchannel_probability and end - time > 2 * SAMPLE_RATE_HZ:
            listener = str(rng.choice(others))
            at = int(rng.integers(time + SAMPLE_RATE_HZ // 2, end - SAMPLE_RATE_HZ))
            _speak(rng, sources[listener], tracks[listener], turns, listener, at, rng.uniform(0.2, 0.9))
            unheard = [name for name in unheard if name != listener]
        # 3) who is next, and when
        unheard = [name for name in unheard if name != speaker]
        following = _next_speaker(rng, plan.speakers, speaker, dominance, unheard)
        if plan.away_s is not None:
            following, away = _unless_away(plan, end / SAMPLE_RATE_HZ, speaker, following, away)
        time = end + seconds_to_samples(_gap_s(rng, taking, change=following != speaker))
        speaker = following
    samples_N = mix(rng, tracks, condition=plan.condition, level_dbfs_range=config.level_dbfs_range)
    merged = merge_turns(turns, max_gap_s=BRIDGED_PAUSE_S)
    return Conversation(samples_N, [turn for turn in merged if turn.duration_s >= MIN_TURN_S])


def _mood(rng: Generator, taking: TurnTakingConfig) -> TurnTakingConfig:
    """Some conversations are sparse: long silences between short exchanges."""
    if rng.random() >= taking.sparse_probability:
        return taking
    mean_s = taking.sparse_pause_mean_s * rng.uniform(0.3, 2.0)
    return taking.model_copy(update={"pause_probability": 0.7, "pause_mean_s": mean_s})


def _unless_away(
    plan: ConversationPlan, now_s: float, speaker: str, following: str, was_away: bool
) -> tuple[str, bool]:
    """Who speaks next where the first speaker may be away, and whether he is."""
    assert plan.away_s is not None
    first, *others = plan.speakers
    is_away = plan.away_s[0] <= now_s < plan.away_s[1]
    if is_away and following == first:
        following = next((name for name in others if name != speaker), others[0])
    if was_away and not is_away:
        following = first
    return following, is_away


def _next_speaker(
    rng: Generator, speakers: Sequence[str], current: str, dominance: npt.NDArray[np.float64], unheard: list[str]
) -> str:
    if len(speakers) == 1 or rng.random() < 0.15:
        return current
    if unheard and rng.random() < 0.4:
        return unheard[0]
    weights = np.array([0.0 if name == current else share for name, share in zip(speakers, dominance, strict=True)])
    return str(rng.choice(np.array(speakers), p=weights / weights.sum()))


def _gap_s(rng: Generator, taking: TurnTakingConfig, *, change: bool) -> float:
    pause_s = rng.exponential(taking.pause_mean_s) if rng.random() < taking.pause_probability else 0.0
    offset_s = rng.normal(taking.gap_mean_s, taking.gap_sigma_s)
    # One speaker cannot overlap with himself.
    return float(np.clip(offset_s, -2.5, 3.0) + pause_s) if change else float(abs(offset_s) + 0.2 + pause_s)


class _Source:
    """Endless speech of one voice: its segments in random order."""

    def __init__(self, rng: Generator, segments: Sequence[Segment]) -> None:
        self._rng = rng
        self._segments = segments
        self._order: list[int] = []

    def next(self) -> FloatArray:
        if not self._order:
            self._order = [int(index) for index in self._rng.permutation(len(self._segments))]
        segment = self._segments[self._order.pop()]
        return at_level(segment.samples_N[segment.core_start : segment.core_end])


def _speak(
    rng: Generator, source: _Source, track_N: FloatArray, turns: list[Turn], speaker: str, time: int, length_s: float
) -> int:
    """Place segments from sample `time` on until `length_s` is filled; returns the end sample."""
    # A voice never speaks over itself: a backchannel may have been placed later than `time`.
    busy_until = max((seconds_to_samples(turn.end_s) for turn in turns if turn.speaker == speaker), default=0)
    time = max(time, busy_until, 0)
    wanted_end = time + seconds_to_samples(length_s)
    cursor = end = time
    while cursor < min(wanted_end, len(track_N)):
        segment_N = source.next()
        # Long segments are cut where the turn ends, short turns need short words.
        keep = min(len(segment_N), len(track_N) - cursor, max(wanted_end - cursor, int(0.3 * SAMPLE_RATE_HZ)))
        track_N[cursor : cursor + keep] += segment_N[:keep]
        turns.append(Turn(samples_to_seconds(cursor), samples_to_seconds(cursor + keep), speaker))
        end = cursor + keep
        cursor = end + int(rng.gamma(2.0, 0.08) * SAMPLE_RATE_HZ)
    return end
