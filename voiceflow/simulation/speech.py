"""Where the speech is inside utterances, found with silero-vad, many utterances at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from voiceflow.audio import FloatArray
from voiceflow.corpora.read import Utterance
from voiceflow.timebase import SAMPLE_RATE_HZ, FrameGrid, seconds_to_samples
from voiceflow.turns import scores_to_turns

WINDOW_SAMPLES = 512
"""silero-vad decides on windows of 32 ms at 16 kHz."""
ONSET, OFFSET = 0.5, 0.35
"""silero-vad's own thresholds (its `get_speech_timestamps`)."""
MIN_SPEECH_S, MIN_SILENCE_S, PAD_S = 0.16, 0.1, 0.03
QUIET, MIN_QUIET_S = 0.08, 0.2
"""A window below the score holds no speech; stretches of such windows shorter than this are not used."""
CONTEXT_S = 0.5
"""What is kept of a recording around a segment of speech, at most."""
LOUD_CONTEXT_DB, MIN_CONTEXT_S = 6.0, 0.1
"""What surrounds a segment and is not so much fainter than it, by medians of 10 ms, is speech that the detector did not
hear, as it does not hear every whisper: it is left out, or turns would not tell of it. Shorter context says nothing."""
AUDIBLE_DB = -34.0
"""A speechless piece with no 20 ms louder than this, relative to its speech, is silence."""

Int16Array = npt.NDArray[np.int16]


def load_vad() -> Any:
    """The silero-vad network that ships in its package; one thread."""
    import torch
    from silero_vad import load_silero_vad

    torch.set_num_threads(1)
    return load_silero_vad(onnx=False)


@dataclass(frozen=True)
class Segment:
    """Speech between two pauses, with what the recording holds around it.

    Sample `core_start` is the first of speech, `core_end` the first after it; before and after lie at
    most `CONTEXT_S` of breath and room, and nothing where it is as loud as the speech.
    """

    samples_N: Int16Array
    core_start: int
    core_end: int


@dataclass(frozen=True)
class Spans:
    """Sample ranges of one piece of audio: speech, and stretches that surely hold none."""

    speech: list[tuple[int, int]]
    quiet: list[tuple[int, int]]


def find_speech(audios: Sequence[FloatArray], vad: Any) -> list[Spans]:
    """Where the speech is in each piece of 16 kHz audio, and where surely none is.

    Args:
        audios: Pieces of mono audio; they go through the network as one batch.
        vad: What `load_vad` returned.
    """
    import torch

    longest = max(len(audio) for audio in audios)
    batch_BN = np.zeros((len(audios), -(-longest // WINDOW_SAMPLES) * WINDOW_SAMPLES), np.float32)
    for row, audio in enumerate(audios):
        # The detector expects ordinary levels; very quiet recordings are lifted for it alone.
        peak = float(np.abs(audio).max(initial=0.0))
        batch_BN[row, : len(audio)] = audio * (0.5 / peak if peak > 1e-4 else 1.0)
    with torch.inference_mode():
        vad.reset_states()
        scores_BT = np.stack(
            [
                vad(torch.from_numpy(batch_BN[:, start : start + WINDOW_SAMPLES]), SAMPLE_RATE_HZ)[:, 0].numpy()
                for start in range(0, batch_BN.shape[1], WINDOW_SAMPLES)
            ],
            axis=1,
        )
    return [
        Spans(_speech(scores_T, len(audio)), _quiet(scores_T, len(audio)))
        for audio, scores_T in zip(audios, scores_BT, strict=True)
    ]


def _speech(scores_T: FloatArray, num_samples: int) -> list[tuple[int, int]]:
    turns = scores_to_turns(
        scores_T[:, None],
        grid=FrameGrid(WINDOW_SAMPLES / SAMPLE_RATE_HZ),
        onset=ONSET,
        offset=OFFSET,
        min_on_s=MIN_SPEECH_S,
        min_off_s=MIN_SILENCE_S,
    )
    return [
        (max(0, seconds_to_samples(turn.start_s - PAD_S)), min(num_samples, seconds_to_samples(turn.end_s + PAD_S)))
        for turn in turns
    ]


def _quiet(scores_T: FloatArray, num_samples: int) -> list[tuple[int, int]]:
    """Runs of windows below `QUIET`, one window less on each side, at least `MIN_QUIET_S` long."""
    below = np.concatenate([[0], (scores_T < QUIET).astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(below)).reshape(-1, 2) * WINDOW_SAMPLES
    ranges = [(int(start) + WINDOW_SAMPLES, min(num_samples, int(end) - WINDOW_SAMPLES)) for start, end in edges]
    return [(start, end) for start, end in ranges if end - start >= MIN_QUIET_S * SAMPLE_RATE_HZ]


def speaker_segments(
    utterances: Sequence[Utterance], vad: Any, *, max_s: float
) -> tuple[list[Segment], list[Int16Array]]:
    """Speech of one speaker, cut at pauses, and the sounds between, as 16-bit audio at 16 kHz.

    Args:
        utterances: All of one speaker.
        vad: What `load_vad` returned.
        max_s: Stop reading after this much audio.

    Returns:
        Segments; and speechless pieces that are not mere silence, scaled by what brings the speech of their
        utterance to a root mean square of 0.1.
    """
    files: dict[str, FloatArray] = {}
    pieces: list[FloatArray] = []
    total_s = 0.0
    for utterance in utterances:
        if total_s >= max_s:
            break
        key = str(utterance.place)
        if key not in files:
            files[key] = utterance.place.load()
        end = len(files[key]) if utterance.end_s is None else seconds_to_samples(utterance.end_s)
        piece = files[key][seconds_to_samples(utterance.start_s) : end]
        if len(piece) >= WINDOW_SAMPLES:
            pieces.append(piece)
            total_s += len(piece) / SAMPLE_RATE_HZ
    segments: list[Segment] = []
    sounds: list[Int16Array] = []
    for first in range(0, len(pieces), 64):
        batch = pieces[first : first + 64]
        for piece, spans in zip(batch, find_speech(batch, vad), strict=True):
            segments += _with_context(piece, spans.speech)
            sounds += _sounds(piece, spans)
    return segments, sounds


def _with_context(piece: FloatArray, speech: list[tuple[int, int]]) -> list[Segment]:
    segments = []
    context = seconds_to_samples(CONTEXT_S)
    for index, (start, end) in enumerate(speech):
        first = max(0 if index == 0 else speech[index - 1][1], start - context)
        last = min(len(piece) if index + 1 == len(speech) else speech[index + 1][0], end + context)
        first, last = min(first, start), max(last, end)
        first = start if _is_speech(piece[first:start], piece[start:end]) else first
        last = end if _is_speech(piece[end:last], piece[start:end]) else last
        segments.append(Segment(_to_int16(piece[first:last]), start - first, end - first))
    return segments


def _is_speech(context_N: FloatArray, core_N: FloatArray) -> bool:
    """Whether what lies beside speech is about as loud as speech."""
    if len(context_N) < MIN_CONTEXT_S * SAMPLE_RATE_HZ:
        return False
    hop = SAMPLE_RATE_HZ // 100
    context, core = (
        float(np.median(np.mean(samples_N[: len(samples_N) // hop * hop].reshape(-1, hop) ** 2, axis=1)))
        for samples_N in (context_N, core_N)
    )
    return bool(context > core * 10.0 ** (-LOUD_CONTEXT_DB / 10.0))


def _sounds(piece: FloatArray, spans: Spans) -> list[Int16Array]:
    if not spans.speech:
        return []
    speech_N = np.concatenate([piece[start:end] for start, end in spans.speech])
    gain = 0.1 / (float(np.sqrt(np.mean(speech_N**2))) + 1e-6)
    found = []
    for start, end in spans.quiet:
        sound_N = piece[start:end] * np.float32(gain)
        loudest = float(np.sqrt(np.mean(sound_N[: len(sound_N) // 320 * 320].reshape(-1, 320) ** 2, axis=1).max()))
        if loudest > 0.1 * 10.0 ** (AUDIBLE_DB / 20.0):
            found.append(_to_int16(sound_N))
    return found


def _to_int16(samples_N: FloatArray) -> Int16Array:
    pcm: Int16Array = np.clip(samples_N * 32767.0, -32768, 32767).astype(np.int16)
    return pcm


def at_level(pcm_N: Int16Array | FloatArray) -> FloatArray:
    """16-bit speech at a root mean square of 0.1 of full scale, faded in and out over 5 ms."""
    samples_N = pcm_N.astype(np.float32) / np.float32(32768.0)
    rms = float(np.sqrt(np.mean(samples_N**2))) + 1e-6
    fade = min(80, len(samples_N) // 4)
    samples_N = samples_N * np.float32(min(0.1 / rms, 20.0))
    samples_N[:fade] *= np.linspace(0.0, 1.0, fade, dtype=np.float32)
    samples_N[len(samples_N) - fade :] *= np.linspace(1.0, 0.0, fade, dtype=np.float32)
    return samples_N
