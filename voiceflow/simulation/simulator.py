"""Training conversations, made on the fly: voices in rooms with noise, sounds and codecs, hundreds of times faster than
they would take to hear."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft
import scipy.signal

from voiceflow.audio import FloatArray
from voiceflow.config import PrepareConfig
from voiceflow.rhythm import BRIDGED_PAUSE_S
from voiceflow.simulation.acoustics import HEADSET, SNR_DB, limited
from voiceflow.simulation.codecs import LAWS, NARROW_OPUS_BITS_PER_S, OPUS_BITS_PER_S, opus, telephone
from voiceflow.simulation.conversations import MIN_TURN_S, Conversation, ConversationPlan
from voiceflow.simulation.rooms import PLACES, Room, microphone
from voiceflow.simulation.sounds import background_events
from voiceflow.simulation.speech import CONTEXT_S, Int16Array, Segment, at_level
from voiceflow.simulation.stock import Stock
from voiceflow.simulation.turn_taking import Span, draw_presence, draw_style, draw_turns
from voiceflow.timebase import SAMPLE_RATE_HZ, samples_to_seconds, seconds_to_samples
from voiceflow.turns import Turn, merge_turns

Generator = np.random.Generator

MAX_USUAL_EVENTS = 0.15
"""Median loudness of other sounds, for speech at a root mean square of 1."""
MIN_WORD_S = 0.12
"""What is left of a turn, if it is shorter than this, stays silent."""
MIN_CONTRAST = 2.5
"""Power in turns relative to that between them, medians."""
NOISE_SPEEDS = (0.85, 1.15)
GATE_S = 0.3
"""A gate closes so long after the last word."""
RAMP_S = 0.01
"""Resolution of levels that change."""
STEP = 1.0 / 32768.0
"""Of 16 bits: what is quieter than half of it would become digital silence between words."""
MAX_QUIET_SHARE = 0.01


class Simulator:
    """Makes training conversations of a stock; each follows from its plan, the voices and the config alone."""

    def __init__(self, config: PrepareConfig, stock: Stock) -> None:
        """Take what conversations are made of beside voices."""
        self._config = config
        self._stock = stock

    def conversations(
        self, plans: Iterator[ConversationPlan], voices: Mapping[str, Sequence[Segment]]
    ) -> Iterator[Conversation]:
        """Conversations as long as there are plans, one at a time: memory is that of one, however many are made."""
        for plan in plans:
            yield self.make(plan, {speaker: voices[speaker] for speaker in plan.speakers})

    def make(self, plan: ConversationPlan, segments: Mapping[str, Sequence[Segment]]) -> Conversation:
        """Make one conversation; the same plan, segments, config and stock give the same samples.

        Args:
            plan: Who, where, and the seed.
            segments: Speech of each speaker of the plan, cut at pauses.
        """
        config, variety = self._config, self._config.variety
        rng = np.random.default_rng(plan.seed)
        num_samples = seconds_to_samples(config.conversation_s)
        # 1) who speaks when
        style, spans = self._spans(rng, len(plan.speakers))
        # 2) what they say, through their places in the room
        room = self._room(rng, plan.condition)
        places = rng.permutation(PLACES)
        mixed_N = np.zeros(num_samples + room.responses_PN.shape[1], np.float32)
        turns: list[Turn] = []
        energy, num_spoken = 0.0, 0
        for number, speaker in enumerate(plan.speakers):
            own = [span for span in spans if span.speaker == number]
            voice = _Voice(
                rng, segments[speaker], config.speed_range, with_context=rng.random() < variety.context_share
            )
            said = [voice.say(span) for span in own]
            turns += [turn for one in said for turn in one.turns(speaker)]
            num_spoken += sum(end - start for one in said for start, end in one.spoken)
            energy += _place(rng, mixed_N, said, room, int(places[number % PLACES]), variety.moving_share)
        mixed_N = mixed_N[:num_samples]
        power = energy / num_spoken if num_spoken else 1e-6
        # 3) what else is heard
        surround_N = np.zeros_like(mixed_N)
        self._surround(rng, surround_N, plan.condition, np.float32(np.sqrt(power)))
        mixed_N += surround_N * np.float32(_surround_gain(mixed_N, surround_N, turns))
        if rng.random() < variety.gated_share:
            _gate(mixed_N, spans)
        # 4) how it reaches us
        level = 10.0 ** (rng.uniform(*variety.level_dbfs_range) / 20.0)
        mixed_N *= np.float32(level / np.sqrt(power))
        if rng.random() < variety.level_change_share:
            _change_level(rng, mixed_N)
        _keep_audible(plan.seed, mixed_N)
        samples_N = self._through_codec(rng, limited(mixed_N), plan.condition)
        merged = merge_turns(turns, max_gap_s=BRIDGED_PAUSE_S)
        return Conversation(samples_N, [turn for turn in merged if turn.duration_s >= MIN_TURN_S], style)

    def _spans(self, rng: Generator, num_speakers: int) -> tuple[str, list[Span]]:
        variety, duration_s = self._config.variety, self._config.conversation_s
        name, style = draw_style(rng, variety.styles)
        presence = draw_presence(rng, variety, num_speakers, duration_s)
        longest_s = 0.75 * duration_s
        start_s = rng.uniform(1.0, longest_s) ** 2 / longest_s if rng.random() < variety.late_share else 0.0
        lull_s = rng.uniform(0.0, 0.8) * duration_s if rng.random() < variety.lull_share else duration_s + 1.0
        return name, draw_turns(rng, style, presence, duration_s, start_s=start_s, lull_s=lull_s)

    def _room(self, rng: Generator, condition: str) -> Room:
        rooms = self._stock.rooms["close" if condition == "telephone" else condition]
        return rooms[int(rng.integers(len(rooms)))]

    def _surround(self, rng: Generator, mixed_N: FloatArray, condition: str, loudness: np.float32) -> None:
        """Add noise, what shakes headsets, and sounds, for speech at this root mean square."""
        snr_db = rng.uniform(*SNR_DB[condition])
        noises = self._stock.noises
        gain = loudness * np.float32(10.0 ** (-snr_db / 20.0))
        # Two at once, at other speeds, forwards or backwards: no two conversations have the same noise.
        share = rng.uniform(0.3, 0.7)
        for weight in (share, 1.0 - share):
            noise_N = noises[int(rng.integers(len(noises)))][:: rng.choice([1, -1])]
            noise_N = _at_speed(
                noise_N, rng.uniform(*NOISE_SPEEDS), 2 * len(noise_N)
            )  # whole, or it would not go round
            _add_round(rng, mixed_N, noise_N, gain * np.float32(np.sqrt(weight)))
        if condition == HEADSET:
            rumbles = self._stock.rumbles
            gain = loudness * np.float32(10.0 ** (rng.uniform(-55.0, -24.0) / 20.0))
            _add_round(rng, mixed_N, rumbles[int(rng.integers(len(rumbles)))], gain)
        variety = self._config.variety
        if rng.random() < variety.events_share:
            per_s = variety.max_events_per_s * float(rng.uniform(0.05, 1.0)) ** 2
            events_N = background_events(rng, len(mixed_N), per_s=per_s, sounds=self._stock.sounds)
            # Single sounds may be louder than speech; most of the time it is quieter, or labels would say nothing.
            hop = SAMPLE_RATE_HZ // 100
            frames_TN = events_N[: len(events_N) // hop * hop].reshape(-1, hop)
            usual = float(np.sqrt(np.median(np.einsum("tn,tn->t", frames_TN, frames_TN)) / hop))
            mixed_N += events_N * (loudness * np.float32(min(1.0, MAX_USUAL_EVENTS / max(usual, 1e-9))))

    def _through_codec(self, rng: Generator, samples_N: FloatArray, condition: str) -> FloatArray:
        through_opus = rng.random() < self._config.variety.opus_share
        if condition != "telephone":
            return opus(samples_N, int(rng.choice(OPUS_BITS_PER_S))) if through_opus else samples_N
        if through_opus:
            return opus(samples_N, NARROW_OPUS_BITS_PER_S)
        return telephone(samples_N, list(LAWS)[int(rng.integers(len(LAWS)))])


@dataclass(frozen=True)
class _Said:
    """A turn as it was spoken: audio of shape (N,), where it begins, and which of its samples are speech."""

    start: int
    samples_N: FloatArray
    spoken: list[tuple[int, int]]

    def turns(self, speaker: str) -> list[Turn]:
        return [
            Turn(samples_to_seconds(self.start + start), samples_to_seconds(self.start + end), speaker)
            for start, end in self.spoken
        ]


class _Voice:
    """Endless speech of one voice: its segments in random order, at one speed, with or without what is around them."""

    def __init__(
        self,
        rng: Generator,
        segments: Sequence[Segment],
        speed_range: tuple[float, float],
        *,
        with_context: bool,
    ) -> None:
        self._rng = rng
        self._segments = segments
        self._speed = rng.uniform(*speed_range)
        self._with_context = with_context
        self._order: list[int] = []

    def say(self, span: Span) -> _Said:
        """Fill a turn with words; breath and room of the recording lie before, between and after them."""
        margin = int(CONTEXT_S * SAMPLE_RATE_HZ) if self._with_context else 0
        margin = min(margin, span.start)
        length = span.end - span.start
        samples_N = np.zeros(margin + length + (margin and int(CONTEXT_S * SAMPLE_RATE_HZ)), np.float32)
        spoken: list[tuple[int, int]] = []
        cursor = 0
        while length - cursor >= MIN_WORD_S * SAMPLE_RATE_HZ or not spoken:
            segment = self._next()
            core_N, is_cut = self._at_speed(segment.samples_N[segment.core_start : segment.core_end], length - cursor)
            keep = len(core_N)
            begin = margin + cursor
            samples_N[begin : begin + keep] += core_N
            if margin:
                _add_context(samples_N, segment, begin, begin + keep, cut=is_cut)
            spoken.append((cursor, cursor + keep))
            cursor += keep + int(self._rng.gamma(2.0, 0.05) * SAMPLE_RATE_HZ)
        return _Said(span.start - margin, samples_N, [(margin + start, margin + end) for start, end in spoken])

    def _next(self) -> Segment:
        if not self._order:
            self._order = [int(index) for index in self._rng.permutation(len(self._segments))]
        return self._segments[self._order.pop()]

    def _at_speed(self, pcm_N: Int16Array, most: int) -> tuple[FloatArray, bool]:
        """At the voice's speed and the level of all speech, and whether it was cut to `most` samples."""
        if abs(self._speed - 1.0) <= 0.01:
            return at_level(pcm_N[:most]), len(pcm_N) > most
        return at_level(_at_speed(pcm_N, self._speed, most)), int(len(pcm_N) / self._speed) > most


def _at_speed(samples_N: Int16Array | FloatArray, speed: float, most: int) -> FloatArray:
    """As if it were played faster or slower, cut to `most` samples."""
    length = max(1, min(int(len(samples_N) / speed), most))
    position_N = np.arange(length, dtype=np.float32) * np.float32(speed)
    index_N = position_N.astype(np.int32)
    share_N = position_N - index_N
    wide_N = samples_N[: int(index_N[-1]) + 2].astype(np.float32)
    left_N, right_N = wide_N[index_N], wide_N[np.minimum(index_N + 1, len(wide_N) - 1)]
    played: FloatArray = left_N + (right_N - left_N) * share_N
    return played


def _add_context(samples_N: FloatArray, segment: Segment, begin: int, end: int, *, cut: bool) -> None:
    """What the recording holds before words and, unless they are cut, after them; as loud as it was beside them."""
    core_N = segment.samples_N[segment.core_start : segment.core_end].astype(np.float32)
    gain = np.float32(min(0.1 / (float(np.sqrt(np.mean(core_N**2))) / 32768.0 + 1e-6), 20.0) / 32768.0)
    before_N = segment.samples_N[: segment.core_start][-begin:] if begin else segment.samples_N[:0]
    samples_N[begin - len(before_N) : begin] += _faded_in(before_N * gain)
    if not cut:
        after_N = segment.samples_N[segment.core_end :][: len(samples_N) - end]
        samples_N[end : end + len(after_N)] += _faded_in((after_N * gain)[::-1])[::-1]


def _faded_in(samples_N: FloatArray) -> FloatArray:
    fade = min(80, len(samples_N))
    samples_N[:fade] *= np.linspace(0.0, 1.0, fade, dtype=np.float32)
    return samples_N


def _place(
    rng: Generator, mixed_N: FloatArray, said: Sequence[_Said], room: Room, place: int, moving_share: float
) -> float:
    """Add what a speaker says as it is heard from his place; returns the energy of it.

    All turns go through the room as blocks of one Fourier transform. A speaker who moves is heard from between two
    places, at other ones and other levels from turn to turn.
    """
    spread_db, most_db = (5.0, 12.0) if room.kind == HEADSET else (3.0, 8.0)
    gain_db = float(np.clip(rng.normal(0.0, spread_db), -most_db, most_db))
    moves = rng.random() < moving_share
    if not said:
        return 0.0
    length = room.responses_PN.shape[1]
    size = 1 << int(np.ceil(np.log2(3 * length)))
    step = size - length + 1
    colour_N = microphone(rng)
    here_F = scipy.fft.rfft(_coloured(room.responses_PN[place], colour_N), size)
    there_F = scipy.fft.rfft(_coloured(room.responses_PN[(place + 1) % PLACES], colour_N), size) if moves else here_F
    starts, rows, spectra = [], [], []
    for one in said:
        gain = np.float32(10.0 ** ((gain_db + (rng.uniform(-7.0, 3.0) if moves else 0.0)) / 20.0))
        share = np.float32(rng.random()) if moves else np.float32(0.0)
        response_F = here_F if not moves else here_F * (1 - share) + there_F * share
        for first in range(0, min(len(one.samples_N), len(mixed_N) - one.start), step):
            starts.append(one.start + first)
            rows.append(one.samples_N[first : first + step] * gain)
            spectra.append(response_F)
    blocks_BN = np.zeros((len(rows), size), np.float32)
    for block_N, row_N in zip(blocks_BN, rows, strict=True):
        block_N[: len(row_N)] = row_N
    blocks_BF = scipy.fft.rfft(blocks_BN, axis=1)
    blocks_BF *= here_F if not moves else np.stack(spectra)
    wet_BN = scipy.fft.irfft(blocks_BF, size, axis=1, overwrite_x=True)
    energy = 0.0
    for start, row_N, wet_N in zip(starts, rows, wet_BN, strict=True):
        heard_N = wet_N[: min(len(row_N) + length - 1, len(mixed_N) - start)]
        mixed_N[start : start + len(heard_N)] += heard_N
        energy += float(np.dot(heard_N, heard_N))
    return energy


def _coloured(response_N: FloatArray, colour_N: FloatArray) -> FloatArray:
    coloured: FloatArray = scipy.signal.oaconvolve(response_N, colour_N)[: len(response_N)]
    return coloured


def _add_round(rng: Generator, mixed_N: FloatArray, noise_N: FloatArray, gain: np.float32) -> None:
    """Add a noise that goes round, from anywhere in it."""
    offset = int(rng.integers(len(noise_N)))
    scaled_N = noise_N * gain
    position = 0
    while position < len(mixed_N):
        piece_N = scaled_N[offset : offset + len(mixed_N) - position]
        mixed_N[position : position + len(piece_N)] += piece_N
        position += len(piece_N)
        offset = 0


def _surround_gain(speech_N: FloatArray, surround_N: FloatArray, turns: Sequence[Turn]) -> float:
    """Gain at which speech is still louder than what is heard without it, or turns would say nothing; mostly 1."""
    hop = SAMPLE_RATE_HZ // 100
    speech_T, surround_T = (
        np.einsum("tn,tn->t", frames_TN, frames_TN)
        for frames_TN in (one_N[: len(one_N) // hop * hop].reshape(-1, hop) for one_N in (speech_N, surround_N))
    )
    spoken_T = np.zeros(len(speech_T), np.bool_)
    for turn in turns:
        spoken_T[int(turn.start_s * 100) : int(turn.end_s * 100) + 1] = True
    if spoken_T.all() or not spoken_T.any():
        return 1.0
    for gain in (1.0, 0.5, 0.25):
        heard_T = speech_T + gain**2 * surround_T
        if np.median(heard_T[spoken_T]) >= MIN_CONTRAST * np.median(heard_T[~spoken_T]):
            return gain
    return 0.125


def _gate(mixed_N: FloatArray, spans: Sequence[Span]) -> None:
    """Cut to digital silence what is neither speech nor near it."""
    near = int(GATE_S * SAMPLE_RATE_HZ)
    silent_N = np.ones(len(mixed_N), np.bool_)
    for span in spans:
        silent_N[max(0, span.start - near) : span.end + near] = False
    mixed_N[silent_N] = 0.0


def _keep_audible(seed: Sequence[int], mixed_N: FloatArray) -> None:
    """Give a converter's own noise to what is quieter than 16 bits can tell; what a gate has closed stays closed."""
    if np.count_nonzero(np.abs(mixed_N) < STEP / 2) > MAX_QUIET_SHARE * len(mixed_N):
        noise_N = np.random.default_rng((*seed, 16)).standard_normal(len(mixed_N), dtype=np.float32) * np.float32(STEP)
        mixed_N[mixed_N != 0.0] += noise_N[mixed_N != 0.0]


def _change_level(rng: Generator, mixed_N: FloatArray) -> None:
    """Turn the level up or down a few times, at once or over seconds."""
    hop = int(RAMP_S * SAMPLE_RATE_HZ)
    num_steps = -(-len(mixed_N) // hop)
    gain_db = np.zeros(num_steps, np.float32)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(num_steps))
        over = max(1, int(10.0 ** rng.uniform(-1.5, 0.7) / RAMP_S))
        ramp = np.clip((np.arange(num_steps) - at) / over, 0.0, 1.0)
        gain_db += (ramp * rng.uniform(-12.0, 12.0)).astype(np.float32)
    gain_db = np.clip(gain_db, -10.0, 10.0)
    gains_N = np.repeat(10.0 ** (gain_db / np.float32(20.0)), hop)[: len(mixed_N)]
    mixed_N *= gains_N.astype(np.float32)
