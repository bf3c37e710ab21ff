"""What a diarizer must bear, measured on held-out voices: returns, hours, silence, music, noise, one voice alone.

Everything is made by the test split's voices and the simulator of the project; nothing here was trained or tuned on.
"""

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.signal

from benchmarks.items import sized
from voiceflow.config import PrepareConfig
from voiceflow.corpora.read import Utterance, read_utterances
from voiceflow.metrics import der_interval, score, summarise
from voiceflow.simulation.conversations import Conversation, ConversationPlan
from voiceflow.simulation.heldout import simulate
from voiceflow.simulation.speech import Segment, load_vad, speaker_segments
from voiceflow.simulation.voices import SENTENCES, find_espeak, speak
from voiceflow.stages.prepare import MAX_SPEECH_S, split_speakers
from voiceflow.streaming.batch import Scorer, diarize, stream_recordings
from voiceflow.streaming.session import StreamSettings
from voiceflow.timebase import SAMPLE_RATE_HZ
from voiceflow.turns import Turn

FloatArray = npt.NDArray[np.float32]
LONG_S = sized(30.0, tiny=3.0)
WHISPERS = ("en+whisper", "en+whisperf")


@dataclass
class Voices:
    """The voices of one split of a corpus, cut at pauses when they are first asked for.

    Args:
        config: The corpus and how it is split.
        corpus: Its folder.
        split: By default the voices that nothing was trained or tuned on.
    """

    config: PrepareConfig
    corpus: Path
    split: str = "test"

    def __post_init__(self) -> None:
        self._utterances: dict[str, list[Utterance]] = read_utterances(self.corpus)
        names = split_speakers(self._utterances, self.config)[self.split]
        self.names = [name for name in names if not re.search(self.config.heldout_exclude, name)]
        self._segments: dict[str, list[Segment]] = {}
        self._vad: Any = None

    def segments(self, name: str) -> list[Segment]:
        """Speech of one voice."""
        if name not in self._segments:
            self._vad = self._vad or load_vad()
            self._segments[name] = speaker_segments(self._utterances[name], self._vad, max_s=MAX_SPEECH_S)[0]
        return self._segments[name]

    def long_ones(self, minimum_s: float = LONG_S) -> list[str]:
        """Voices with enough speech for long conversations."""
        return [
            name
            for name in self.names
            if sum(segment.core_end - segment.core_start for segment in self.segments(name))
            >= minimum_s * SAMPLE_RATE_HZ
        ]

    def children(self, oldest: int = 10) -> list[str]:
        """Voices of children, by the corpus's table."""
        with (self.corpus / "utterances.csv").open(encoding="utf-8") as file:
            rows = csv.DictReader(file)
            found = {
                row["speaker"]
                for row in rows
                if re.fullmatch(r"\d+", row.get("age") or "") and int(row["age"]) <= oldest
            }
        return [name for name in self.names if name in found]

    def conversation(
        self,
        speakers: list[str],
        duration_s: float,
        *,
        seed: int,
        condition: str = "close",
        away_s: tuple[float, float] | None = None,
    ) -> Conversation:
        """A conversation of these voices."""
        plan = ConversationPlan("check", "test", condition, tuple(speakers), (self.config.seed, 7, seed), away_s)
        config = self.config.model_copy(update={"conversation_s": duration_s})
        return simulate(plan, {name: self.segments(name) for name in speakers}, config)


def returning_speakers(scorer: Scorer, voices: Voices, *, count: int, away_s: float = 300.0) -> dict[str, Any]:
    """How many speakers who were away for minutes have their old label when they speak again.

    The label of the speaker's speech alone before he left, by majority, against that of his first
    10 s of speech after he is back.
    """
    names = voices.long_ones()
    rng = np.random.default_rng(3)
    conversations, first = [], []
    for number in range(count):
        chosen = [str(name) for name in rng.permutation(np.array(names))[:3]]
        condition = ("close", "room", "telephone")[number % 3]
        conversations.append(
            voices.conversation(
                chosen, away_s + 120.0, seed=1000 + number, condition=condition, away_s=(60.0, 60.0 + away_s)
            )
        )
        first.append(chosen[0])
    answers = diarize([conversation.samples_N for conversation in conversations], scorer, latency_s=1.04)
    kept = measured = 0
    for conversation, turns, name in zip(conversations, answers, first, strict=True):
        before = _label(conversation.turns, turns, name, 0.0, 60.0)
        back_s = min(
            (turn.start_s for turn in conversation.turns if turn.speaker == name and turn.start_s > 60.0 + away_s),
            default=None,
        )
        if before is None or back_s is None:
            continue
        measured += 1
        kept += _label(conversation.turns, turns, name, back_s, back_s + 30.0) == before
    return {"measured": measured, "kept": kept, "share": round(kept / max(1, measured), 4)}


def heard_and_unheard(scorer: Scorer, heard: Voices, unheard: Voices, *, count: int) -> dict[str, Any]:
    """DER of like conversations of voices that were trained on and of voices that were not.

    What lies between them is what more voices could win at most; the rest is the network's and its training's.
    """
    rows: dict[str, Any] = {}
    for kind, voices in (("voices trained on", heard), ("held-out voices", unheard)):
        rng = np.random.default_rng(13)
        conversations = []
        for number in range(count):
            chosen = [str(name) for name in rng.permutation(np.array(voices.names))[: 2 + number % 3]]
            condition = ("close", "room", "far", "telephone")[number % 4]
            conversations.append(voices.conversation(chosen, 60.0, seed=5000 + number, condition=condition))
        sessions = stream_recordings(
            [conversation.samples_N for conversation in conversations],
            scorer,
            StreamSettings("pcm_f32le", latency_s=1.04),
        )
        scores = [
            score(conversation.turns, session.turns_as_told, duration_s=60.0)
            for conversation, session in zip(conversations, sessions, strict=True)
        ]
        low, high = der_interval(scores)
        total = summarise(scores)
        rows[kind] = {name: round(total[name], 4) for name in ("der", "missed", "false_alarm", "confusion")}
        rows[kind] |= {"low": round(low, 4), "high": round(high, 4)}
    return rows


def _label(
    reference: list[Turn], answer: list[Turn], name: str, begin_s: float, end_s: float, most_s: float = 10.0
) -> str | None:
    """The label that covers most of the first `most_s` of one speaker's speech within a span."""
    covered: dict[str, float] = {}
    left_s = most_s
    for turn in sorted(reference):
        if turn.speaker != name or turn.start_s < begin_s or turn.end_s > end_s or left_s <= 0:
            continue
        left_s -= turn.duration_s
        for other in answer:
            shared_s = min(turn.end_s, other.end_s) - max(turn.start_s, other.start_s)
            if shared_s > 0:
                covered[other.speaker] = covered.get(other.speaker, 0.0) + shared_s
    return max(covered, key=lambda label: covered[label]) if covered else None


def long_conversations(scorer: Scorer, voices: Voices, *, minutes: float, count: int) -> dict[str, Any]:
    """DER of long conversations whole and in their first five minutes, and speakers found."""
    rng = np.random.default_rng(5)
    rows = []
    for number in range(count):
        chosen = [str(name) for name in rng.permutation(np.array(voices.long_ones()))[: 3 + number % 2]]
        conversation = voices.conversation(
            chosen, 60.0 * minutes, seed=2000 + number, condition=("close", "room")[number % 2]
        )
        [session] = stream_recordings([conversation.samples_N], scorer, StreamSettings("pcm_f32le", latency_s=1.04))
        told = session.turns_as_told
        whole = score(conversation.turns, told, duration_s=60.0 * minutes)
        begin = score(_until(conversation.turns, 300.0), _until(told, 300.0), duration_s=300.0)
        rows.append(
            {
                "minutes": minutes,
                "speakers": len(chosen),
                "speakers_found": session.num_speakers,
                "der": round(whole.der, 4),
                "der_first_5_min": round(begin.der, 4),
            }
        )
    mean = {key: round(float(np.mean([row[key] for row in rows])), 4) for key in ("der", "der_first_5_min")}
    return {"conversations": rows, **mean}


def _until(turns: list[Turn], end_s: float) -> list[Turn]:
    return [
        Turn(turn.start_s, min(turn.end_s, end_s), turn.speaker, turn.confidence)
        for turn in turns
        if turn.start_s < end_s
    ]


# sounds nobody makes by speaking


def silence(rng: np.random.Generator, num_samples: int) -> FloatArray:
    """Digital silence."""
    return np.zeros(num_samples, np.float32)


def noise(rng: np.random.Generator, num_samples: int) -> FloatArray:
    """White, pink or brown noise, with mains hum, from -70 to -25 dBFS."""
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    frequency = np.maximum(np.arange(len(spectrum)), 1.0)
    sound_N = np.fft.irfft(spectrum / frequency ** rng.choice([0.0, 0.5, 1.0]), num_samples)
    sound_N /= np.sqrt(np.mean(sound_N**2))
    time_s = np.arange(num_samples) / SAMPLE_RATE_HZ
    sound_N += rng.uniform(0.0, 0.5) * np.sin(2.0 * np.pi * 50.0 * time_s)
    loud: FloatArray = (sound_N * 10.0 ** (rng.uniform(-70.0, -25.0) / 20.0)).astype(np.float32)
    return loud


def music(rng: np.random.Generator, num_samples: int) -> FloatArray:
    """Plucked strings over a drum: four chords a bar apart, as no generator used in training makes them.

    Source:
        Karplus and Strong, Digital synthesis of plucked-string and drum timbres, 1983.
    """
    sound_N = np.zeros(num_samples + SAMPLE_RATE_HZ * 4)
    beat = int(60.0 / rng.uniform(70.0, 140.0) * SAMPLE_RATE_HZ)
    roots = rng.choice([40, 45, 47, 50, 52, 43], size=4)
    for number, start in enumerate(range(0, num_samples, beat)):
        root = roots[(number // 4) % 4]
        for interval in rng.choice([0, 4, 7, 12, 16, 19], size=int(rng.integers(1, 4)), replace=False):
            pitch_hz = 440.0 * 2.0 ** ((root + interval + 12 - 69) / 12.0)
            period = max(2, round(SAMPLE_RATE_HZ / pitch_hz))
            excitation = np.zeros(SAMPLE_RATE_HZ * 2)
            excitation[:period] = rng.standard_normal(period)
            loop = np.zeros(period + 2)
            loop[0], loop[period], loop[period + 1] = 1.0, -0.498, -0.498
            sound_N[start : start + len(excitation)] += scipy.signal.lfilter([1.0], loop, excitation)
        drum = rng.standard_normal(2400) * np.exp(-np.arange(2400) / 400.0)
        sound_N[start : start + 2400] += (0.8 if number % 2 else 0.3) * drum
    sound_N = sound_N[:num_samples]
    scaled: FloatArray = (sound_N / np.abs(sound_N).max() * 10.0 ** (rng.uniform(-30.0, -3.0) / 20.0)).astype(
        np.float32
    )
    return scaled


SPEECHLESS: dict[str, Callable[[np.random.Generator, int], FloatArray]] = {
    "silence": silence,
    "noise": noise,
    "music": music,
}


def false_alarms(
    scorer: Scorer, *, count: int, duration_s: float = 60.0, seed: int = 11
) -> dict[str, dict[str, float]]:
    """Speech and speakers heard where nobody speaks: seconds and invented speakers a minute, by kind of sound."""
    rows = {}
    for kind, make in SPEECHLESS.items():
        rng = np.random.default_rng(seed)
        sounds = [make(rng, int(duration_s * SAMPLE_RATE_HZ)) for _ in range(count)]
        answers = diarize(sounds, scorer, latency_s=1.04)
        minutes = count * duration_s / 60.0
        rows[kind] = {
            "minutes": round(minutes, 2),
            "speakers_per_min": round(sum(len({turn.speaker for turn in turns}) for turns in answers) / minutes, 4),
            "speech_s_per_min": round(sum(turn.duration_s for turns in answers for turn in turns) / minutes, 4),
        }
    return rows


def alone(scorer: Scorer, recordings: list[FloatArray]) -> dict[str, float]:
    """One speaker in each recording: how many are heard, and the share of speech under another label than most."""
    answers = diarize(recordings, scorer, latency_s=1.04)
    found, astray_s, speech_s = [], 0.0, 0.0
    for turns in answers:
        by_label: dict[str, float] = {}
        for turn in turns:
            by_label[turn.speaker] = by_label.get(turn.speaker, 0.0) + turn.duration_s
        found.append(len(by_label))
        speech_s += sum(by_label.values())
        astray_s += sum(by_label.values()) - max(by_label.values(), default=0.0)
    minutes = sum(len(samples_N) for samples_N in recordings) / SAMPLE_RATE_HZ / 60.0
    return {
        "recordings": len(recordings),
        "minutes": round(minutes, 2),
        "found_exactly_one": round(sum(count == 1 for count in found) / max(1, len(found)), 4),
        "invented_speakers_per_min": round(sum(max(0, count - 1) for count in found) / minutes, 4),
        "astray_share": round(astray_s / max(speech_s, 1e-9), 4),
    }


def lone_voices(scorer: Scorer, voices: Voices, *, count: int, minutes: float) -> dict[str, dict[str, float]]:
    """One speaker alone for minutes; children; espeak-ng's whisper; and streams that start in mid-word."""
    long_ones = voices.long_ones()
    monologues = [
        voices.conversation([name], 60.0 * minutes, seed=3000 + number).samples_N
        for number, name in enumerate(long_ones[:count])
    ]
    children = [
        voices.conversation([name], 60.0, seed=4000 + number).samples_N
        for number, name in enumerate(voices.children()[: 2 * count])
    ]
    rows = {
        f"one voice for {minutes:g} min": alone(scorer, monologues),
        **({"children": alone(scorer, children)} if children else {}),
        "started in mid-word": alone(scorer, [_from_mid_word(samples_N) for samples_N in monologues]),
    }
    rows["espeak-ng whisper"] = alone(scorer, [whisper(voice) for voice in WHISPERS])
    return rows


def _from_mid_word(samples_N: FloatArray) -> FloatArray:
    """The recording from its loudest 100 ms of the first 10 s on, at most a minute."""
    frame = SAMPLE_RATE_HZ // 10
    energies = np.square(samples_N[: 100 * frame]).reshape(-1, frame).sum(axis=1)
    start = int(energies.argmax()) * frame + frame // 2
    return samples_N[start : start + 60 * SAMPLE_RATE_HZ]


def whisper(voice: str) -> FloatArray:
    """Sentences whispered by espeak-ng, with pauses."""
    program = find_espeak()
    spoken = [speak(program, voice, sentence) for sentence in SENTENCES]
    return np.concatenate([part for piece in spoken for part in (piece, np.zeros(4400, np.float32))])
