"""Turn taking: who speaks when in a simulated conversation, down to the sample."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from voiceflow.config import PrepareConfig, TurnTakingConfig
from voiceflow.simulation.acoustics import CONDITIONS, FloatArray, Generator, mix
from voiceflow.timebase import SAMPLE_RATE_HZ, samples_to_seconds, seconds_to_samples
from voiceflow.turns import Turn, merge_turns

Int16Array = npt.NDArray[np.int16]

BRIDGED_PAUSE_S = 0.2
"""Pauses of one speaker up to this long stay inside the turn, as transcribers do it."""
MIN_TURN_S = 0.02
"""What the end of the recording leaves of a turn, if it is shorter than this, is nobody's turn."""


@dataclass(frozen=True)
class ConversationPlan:
    """What a conversation will be, drawn before any audio is read."""

    name: str
    split: str
    condition: str
    speakers: tuple[str, ...]
    seed: tuple[int, ...]


@dataclass(frozen=True)
class Conversation:
    """Audio of shape (N,) at 16 kHz and its exact turns."""

    samples_N: FloatArray
    turns: list[Turn]


def plan_conversations(
    config: PrepareConfig, split: str, speakers: Sequence[str], count: int
) -> list[ConversationPlan]:
    """Draw speakers and conditions for the conversations of one split.

    Training draws the number of speakers and the condition by weight; held-out splits go
    through all conditions in turn, so that every slice has its share.

    Args:
        config: Seed, weights.
        split: ``train``, ``dev`` or ``test``.
        speakers: Those of this split.
        count: Number of conversations.
    """
    split_number = ("train", "dev", "test").index(split)
    rng = np.random.default_rng((config.seed, split_number))
    number_weights = np.array(config.num_speakers_weights)
    number_weights = number_weights / number_weights.sum()
    condition_weights = np.array([getattr(config.conditions, name) for name in CONDITIONS])
    # Held-out splits follow the same shares, without chance: the number that lags most is next.
    drawn = np.zeros(len(number_weights))
    pool: list[str] = []
    plans = []
    for index in range(count):
        if split == "train":
            num_speakers = 1 + int(rng.choice(len(number_weights), p=number_weights))
            condition = str(rng.choice(CONDITIONS, p=condition_weights / condition_weights.sum()))
        else:
            num_speakers = 1 + int(np.argmax(number_weights * (index + 1) - drawn))
            condition = CONDITIONS[(index + index // len(CONDITIONS)) % len(CONDITIONS)]
        drawn[num_speakers - 1] += 1
        chosen: list[str] = []
        while len(chosen) < min(num_speakers, len(speakers)):
            if not pool:
                pool = list(rng.permutation(np.array(speakers)))
            candidate = str(pool.pop())
            if candidate not in chosen:
                chosen.append(candidate)
        plans.append(
            ConversationPlan(
                f"{split}-{index:05d}", split, condition, tuple(chosen), (config.seed, split_number, index)
            )
        )
    return plans


def simulate(plan: ConversationPlan, segments: dict[str, list[Int16Array]], config: PrepareConfig) -> Conversation:
    """Make one conversation; the same plan, segments and config give the same samples.

    Args:
        plan: Who, where, and the seed.
        segments: Speech of each speaker of the plan, cut at pauses.
        config: Length, turn taking, speeds and levels.
    """
    rng = np.random.default_rng(plan.seed)
    num_samples = seconds_to_samples(config.conversation_s)
    sources = {
        speaker: _Source(rng, segments[speaker], rng.uniform(*config.speed_range) if plan.split == "train" else 1.0)
        for speaker in plan.speakers
    }
    voices = {speaker: np.zeros(num_samples, np.float32) for speaker in plan.speakers}
    turns: list[Turn] = []
    taking = _mood(rng, config.turn_taking)
    # Some talk more than others, and each has somebody who tends to answer.
    dominance = rng.dirichlet(np.full(len(plan.speakers), 3.0))
    speaker = plan.speakers[0]
    time = int(rng.exponential(0.7) * SAMPLE_RATE_HZ)
    unheard = list(plan.speakers)
    while time < num_samples:
        # 1) the turn itself
        length_s = float(np.clip(rng.lognormal(np.log(taking.turn_median_s), taking.turn_sigma), 0.3, 20.0))
        end = _speak(rng, sources[speaker], voices[speaker], turns, speaker, time, length_s)
        # 2) somebody says "yes" meanwhile
        others = [name for name in plan.speakers if name != speaker]
        if others and rng.random() < taking.backchannel_probability and end - time > 2 * SAMPLE_RATE_HZ:
            listener = str(rng.choice(others))
            at = int(rng.integers(time + SAMPLE_RATE_HZ // 2, end - SAMPLE_RATE_HZ))
            _speak(rng, sources[listener], voices[listener], turns, listener, at, rng.uniform(0.2, 0.9))
            unheard = [name for name in unheard if name != listener]
        # 3) who is next, and when
        unheard = [name for name in unheard if name != speaker]
        following = _next_speaker(rng, plan.speakers, speaker, dominance, unheard)
        time = end + seconds_to_samples(_gap_s(rng, taking, change=following != speaker))
        speaker = following
    samples_N = mix(rng, voices, condition=plan.condition, level_dbfs_range=config.level_dbfs_range)
    merged = merge_turns(turns, max_gap_s=BRIDGED_PAUSE_S)
    return Conversation(samples_N, [turn for turn in merged if turn.duration_s >= MIN_TURN_S])


def _mood(rng: Generator, taking: TurnTakingConfig) -> TurnTakingConfig:
    """Some conversations are sparse: long silences between short exchanges."""
    if rng.random() >= taking.sparse_probability:
        return taking
    mean_s = taking.sparse_pause_mean_s * rng.uniform(0.3, 2.0)
    return taking.model_copy(update={"pause_probability": 0.7, "pause_mean_s": mean_s})


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
    """Endless speech of one voice: its segments in random order, at one speed."""

    def __init__(self, rng: Generator, segments: list[Int16Array], speed: float) -> None:
        self._rng = rng
        self._segments = segments
        self._speed = speed
        self._order: list[int] = []

    def next(self) -> FloatArray:
        if not self._order:
            self._order = [int(index) for index in self._rng.permutation(len(self._segments))]
        segment_N = self._segments[self._order.pop()].astype(np.float32) / np.float32(32768.0)
        if abs(self._speed - 1.0) > 0.01:
            length = int(len(segment_N) / self._speed)
            segment_N = np.interp(np.arange(length) * self._speed, np.arange(len(segment_N)), segment_N).astype(
                np.float32
            )
        rms = float(np.sqrt(np.mean(segment_N**2))) + 1e-6
        segment_N = segment_N * np.float32(min(0.1 / rms, 20.0))
        fade = min(80, len(segment_N) // 4)
        segment_N[:fade] *= np.linspace(0.0, 1.0, fade, dtype=np.float32)
        segment_N[len(segment_N) - fade :] *= np.linspace(1.0, 0.0, fade, dtype=np.float32)
        return segment_N


def _speak(
    rng: Generator, source: _Source, voice_N: FloatArray, turns: list[Turn], speaker: str, time: int, length_s: float
) -> int:
    """Place segments from sample `time` on until `length_s` is filled; returns the end sample."""
    # A voice never speaks over itself: a backchannel may have been placed later than `time`.
    busy_until = max((seconds_to_samples(turn.end_s) for turn in turns if turn.speaker == speaker), default=0)
    time = max(time, busy_until, 0)
    wanted_end = time + seconds_to_samples(length_s)
    cursor = end = time
    while cursor < min(wanted_end, len(voice_N)):
        segment_N = source.next()
        # Long segments are cut where the turn ends, short turns need short words.
        keep = min(len(segment_N), len(voice_N) - cursor, max(wanted_end - cursor, int(0.3 * SAMPLE_RATE_HZ)))
        voice_N[cursor : cursor + keep] += segment_N[:keep]
        turns.append(Turn(samples_to_seconds(cursor), samples_to_seconds(cursor + keep), speaker))
        end = cursor + keep
        cursor = end + int(rng.gamma(2.0, 0.08) * SAMPLE_RATE_HZ)
    return end
