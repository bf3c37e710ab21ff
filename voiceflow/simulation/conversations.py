"""Turn taking: who speaks when in a simulated conversation, down to the sample."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from voiceflow.config import PrepareConfig, TurnTakingConfig, VarietyConfig
from voiceflow.simulation.acoustics import CONDITIONS, HEADSET, FloatArray, Generator, mix
from voiceflow.simulation.sounds import background_events
from voiceflow.simulation.speech import Segment
from voiceflow.timebase import SAMPLE_RATE_HZ, samples_to_seconds, seconds_to_samples
from voiceflow.turns import Turn, merge_turns

Int16Array = npt.NDArray[np.int16]

BRIDGED_PAUSE_S = 0.2
"""Pauses of one speaker up to this long stay inside the turn, as transcribers do it."""
MAX_USUAL_EVENTS = 0.15
"""Median loudness of other sounds, for speech at a root mean square of 1."""
LAST_WORDS = seconds_to_samples(3.0)
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
    away_s: tuple[float, float] | None = None
    """When the first speaker says nothing; others must go on, and he is the next to speak afterwards."""


@dataclass(frozen=True)
class Conversation:
    """Audio of shape (N,) at 16 kHz and its exact turns."""

    samples_N: FloatArray
    turns: list[Turn]


def plan_conversations(
    config: PrepareConfig, split: str, speakers: Sequence[str], count: int
) -> list[ConversationPlan]:
    """Draw speakers and conditions for the conversations of one split.

    Training draws the number of speakers and the condition by weight, and has headsets beside them; held-out splits go
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
            if rng.random() < config.variety.headset_share:
                condition = HEADSET
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


@dataclass(frozen=True)
class _Voice:
    """One speaker's tracks, shape (N,): speech, and what the recordings hold around it (None: nothing)."""

    speech_N: FloatArray
    surroundings_N: FloatArray | None


def simulate(
    plan: ConversationPlan,
    segments: dict[str, list[Segment]],
    config: PrepareConfig,
    sounds: Sequence[Int16Array] = (),
) -> Conversation:
    """Make one conversation; the same plan, segments, config and sounds give the same samples.

    Held-out conversations are made of speech, rooms and steady noise alone, as they were when the
    first model was judged by them; training conversations have all of `config.variety`.

    Args:
        plan: Who, where, and the seed.
        segments: Speech of each speaker of the plan, cut at pauses.
        config: Length, turn taking, speeds, levels and variety.
        sounds: Speechless pieces of recordings, see `speech.speaker_segments`.
    """
    rng = np.random.default_rng(plan.seed)
    variety = config.variety if plan.split == "train" else None
    num_samples = seconds_to_samples(config.conversation_s)
    sources = {
        speaker: _Source(rng, segments[speaker], rng.uniform(*config.speed_range) if variety else 1.0)
        for speaker in plan.speakers
    }
    voices = {
        speaker: _Voice(
            np.zeros(num_samples, np.float32),
            np.zeros(num_samples, np.float32) if variety and rng.random() < variety.context_share else None,
        )
        for speaker in plan.speakers
    }
    turns: list[Turn] = []
    taking = _mood(rng, config.turn_taking)
    lull_at = num_samples + 1
    time = 0
    if variety:
        taking = _busy(rng, taking, variety)
        if rng.random() < variety.late_share:
            longest_s = 0.75 * config.conversation_s
            time += int(rng.uniform(1.0, longest_s) ** 2 / longest_s * SAMPLE_RATE_HZ)
        if rng.random() < variety.lull_share:
            lull_at = int(rng.uniform(0.0, 0.8) * num_samples)
    # Some talk more than others, and each has somebody who tends to answer.
    dominance = rng.dirichlet(np.full(len(plan.speakers), 3.0))
    speaker = plan.speakers[0]
    time += int(rng.exponential(0.7) * SAMPLE_RATE_HZ)
    unheard = list(plan.speakers)
    away = False
    while time < num_samples:
        if time >= lull_at:
            # Whatever comes, somebody speaks: a conversation without turns is a fault in the data.
            after_lull = time + int(rng.uniform(4.0, 40.0) * SAMPLE_RATE_HZ)
            time, lull_at = min(after_lull, max(time, num_samples - LAST_WORDS)), num_samples + 1
        # 1) the turn itself
        length_s = float(np.clip(rng.lognormal(np.log(taking.turn_median_s), taking.turn_sigma), 0.3, 20.0))
        end = _speak(rng, sources[speaker], voices[speaker], turns, speaker, time, length_s)
        # 2) somebody says "yes" meanwhile
        others = [name for name in plan.speakers if name != speaker and not (away and name == plan.speakers[0])]
        if others and rng.random() < taking.backchannel_probability and end - time > 2 * SAMPLE_RATE_HZ:
            listener = str(rng.choice(others))
            at = int(rng.integers(time + SAMPLE_RATE_HZ // 2, end - SAMPLE_RATE_HZ))
            _speak(rng, sources[listener], voices[listener], turns, listener, at, rng.uniform(0.2, 0.9))
            unheard = [name for name in unheard if name != listener]
        # 3) who is next, and when
        unheard = [name for name in unheard if name != speaker]
        following = _next_speaker(rng, plan.speakers, speaker, dominance, unheard)
        if plan.away_s is not None:
            following, away = _unless_away(plan, end / SAMPLE_RATE_HZ, speaker, following, away)
        time = end + seconds_to_samples(_gap_s(rng, taking, change=following != speaker))
        speaker = following
    tracks = {speaker: voice.speech_N for speaker, voice in voices.items()}
    if variety is None:
        samples_N = mix(rng, tracks, condition=plan.condition, level_dbfs_range=config.level_dbfs_range)
    else:
        samples_N = mix(
            rng,
            tracks,
            condition=plan.condition,
            level_dbfs_range=variety.level_dbfs_range,
            moving_share=variety.moving_share,
            surroundings={
                speaker: voice.surroundings_N for speaker, voice in voices.items() if voice.surroundings_N is not None
            },
            events_N=_events(rng, num_samples, sounds, variety),
            gated=rng.random() < variety.gated_share,
        )
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


def _busy(rng: Generator, taking: TurnTakingConfig, variety: VarietyConfig) -> TurnTakingConfig:
    """Some conversations are busy: people answer before the other has done, and say yes meanwhile."""
    if rng.random() >= variety.busy_share:
        return taking
    return taking.model_copy(
        update={
            "gap_mean_s": float(rng.uniform(-1.0, -0.2)),
            "backchannel_probability": float(rng.uniform(0.3, 0.9)),
            "turn_median_s": float(taking.turn_median_s * rng.uniform(0.5, 1.2)),
        }
    )


def _events(
    rng: Generator, num_samples: int, sounds: Sequence[Int16Array], variety: VarietyConfig
) -> FloatArray | None:
    if rng.random() >= variety.events_share:
        return None
    per_s = variety.max_events_per_s * float(rng.uniform(0.05, 1.0)) ** 2
    events_N = background_events(rng, num_samples, sounds, per_s=per_s)
    # Single sounds may be louder than speech; most of the time it is quieter, or labels would say nothing.
    hop = SAMPLE_RATE_HZ // 100
    usual = float(np.sqrt(np.median(np.mean(events_N[: num_samples // hop * hop].reshape(-1, hop) ** 2, axis=1))))
    return events_N * np.float32(min(1.0, MAX_USUAL_EVENTS / max(usual, 1e-9)))


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

    def __init__(self, rng: Generator, segments: list[Segment], speed: float) -> None:
        self._rng = rng
        self._segments = segments
        self._speed = speed
        self._order: list[int] = []

    def next(self, *, with_context: bool) -> tuple[FloatArray, FloatArray, FloatArray]:
        """The next segment at a root mean square of 0.1, and what lies before and after it (empty without context)."""
        if not self._order:
            self._order = [int(index) for index in self._rng.permutation(len(self._segments))]
        segment = self._segments[self._order.pop()]
        core_N = self._at_speed(segment.samples_N[segment.core_start : segment.core_end])
        rms = float(np.sqrt(np.mean(core_N**2))) + 1e-6
        gain = np.float32(min(0.1 / rms, 20.0))
        fade = min(80, len(core_N) // 4)
        rising, falling = np.linspace(0.0, 1.0, fade, dtype=np.float32), np.linspace(1.0, 0.0, fade, dtype=np.float32)
        core_N = core_N * gain
        core_N[:fade] *= rising
        core_N[len(core_N) - fade :] *= falling
        if not with_context:
            return core_N, core_N[:0], core_N[:0]
        before_N = self._at_speed(segment.samples_N[: segment.core_start]) * gain
        after_N = self._at_speed(segment.samples_N[segment.core_end :]) * gain
        for context_N, ramp in ((before_N, rising), (after_N[::-1], rising)):
            context_N[: min(fade, len(context_N))] *= ramp[: min(fade, len(context_N))]
        return core_N, before_N, after_N

    def _at_speed(self, pcm_N: Int16Array) -> FloatArray:
        samples_N = pcm_N.astype(np.float32) / np.float32(32768.0)
        if abs(self._speed - 1.0) > 0.01 and len(samples_N):
            length = int(len(samples_N) / self._speed)
            samples_N = np.interp(np.arange(length) * self._speed, np.arange(len(samples_N)), samples_N).astype(
                np.float32
            )
        return samples_N


def _speak(
    rng: Generator, source: _Source, voice: _Voice, turns: list[Turn], speaker: str, time: int, length_s: float
) -> int:
    """Place segments from sample `time` on until `length_s` is filled; returns the end sample."""
    # A voice never speaks over itself: a backchannel may have been placed later than `time`.
    busy_until = max((seconds_to_samples(turn.end_s) for turn in turns if turn.speaker == speaker), default=0)
    time = max(time, busy_until, 0)
    wanted_end = time + seconds_to_samples(length_s)
    cursor = end = time
    voice_N = voice.speech_N
    while cursor < min(wanted_end, len(voice_N)):
        segment_N, before_N, after_N = source.next(with_context=voice.surroundings_N is not None)
        # Long segments are cut where the turn ends, short turns need short words.
        keep = min(len(segment_N), len(voice_N) - cursor, max(wanted_end - cursor, int(0.3 * SAMPLE_RATE_HZ)))
        voice_N[cursor : cursor + keep] += segment_N[:keep]
        turns.append(Turn(samples_to_seconds(cursor), samples_to_seconds(cursor + keep), speaker))
        end = cursor + keep
        if voice.surroundings_N is not None:
            before_N = before_N[max(0, len(before_N) - cursor) :]
            voice.surroundings_N[cursor - len(before_N) : cursor] += before_N
            if keep == len(segment_N):
                after_N = after_N[: len(voice_N) - end]
                voice.surroundings_N[end : end + len(after_N)] += after_N
        cursor = end + int(rng.gamma(2.0, 0.08) * SAMPLE_RATE_HZ)
    return end
