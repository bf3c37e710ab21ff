"""Where the speech is inside utterances, found with silero-vad, many utterances at a time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from voiceflow.audio import FloatArray, load_audio
from voiceflow.simulation.corpus import Utterance
from voiceflow.timebase import SAMPLE_RATE_HZ, FrameGrid, seconds_to_samples
from voiceflow.turns import scores_to_turns

WINDOW_SAMPLES = 512
"""silero-vad decides on windows of 32 ms at 16 kHz."""
ONSET, OFFSET = 0.5, 0.35
"""silero-vad's own thresholds (its `get_speech_timestamps`)."""
MIN_SPEECH_S, MIN_SILENCE_S, PAD_S = 0.16, 0.1, 0.03

Int16Array = npt.NDArray[np.int16]


def load_vad() -> Any:
    """The silero-vad network that ships in its package; one thread."""
    import torch
    from silero_vad import load_silero_vad

    torch.set_num_threads(1)
    return load_silero_vad(onnx=False)


def speech_spans(audios: Sequence[FloatArray], vad: Any) -> list[list[tuple[int, int]]]:
    """Sample ranges of speech in each piece of 16 kHz audio.

    Args:
        audios: Pieces of mono audio; they go through the network as one batch.
        vad: What `load_vad` returned.

    Returns:
        For each piece its (start, end) samples, in order.
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
    grid = FrameGrid(WINDOW_SAMPLES / SAMPLE_RATE_HZ)
    spans = []
    for audio, scores_T in zip(audios, scores_BT, strict=True):
        turns = scores_to_turns(
            scores_T[:, None], grid=grid, onset=ONSET, offset=OFFSET, min_on_s=MIN_SPEECH_S, min_off_s=MIN_SILENCE_S
        )
        spans.append(
            [
                (
                    max(0, seconds_to_samples(turn.start_s - PAD_S)),
                    min(len(audio), seconds_to_samples(turn.end_s + PAD_S)),
                )
                for turn in turns
            ]
        )
    return spans


def speaker_segments(utterances: Sequence[Utterance], vad: Any, *, max_s: float) -> list[Int16Array]:
    """Speech of one speaker, cut at pauses, as 16-bit audio at 16 kHz.

    Args:
        utterances: All of one speaker.
        vad: What `load_vad` returned.
        max_s: Stop reading after this much audio.
    """
    files: dict[str, FloatArray] = {}
    pieces: list[FloatArray] = []
    total_s = 0.0
    for utterance in utterances:
        if total_s >= max_s:
            break
        key = str(utterance.path)
        if key not in files:
            files[key] = load_audio(utterance.path)
        end = len(files[key]) if utterance.end_s is None else seconds_to_samples(utterance.end_s)
        piece = files[key][seconds_to_samples(utterance.start_s) : end]
        if len(piece) >= WINDOW_SAMPLES:
            pieces.append(piece)
            total_s += len(piece) / SAMPLE_RATE_HZ
    segments = []
    for first in range(0, len(pieces), 64):
        batch = pieces[first : first + 64]
        for piece, spans in zip(batch, speech_spans(batch, vad), strict=True):
            for start, end in spans:
                segments.append(np.clip(piece[start:end] * 32767.0, -32768, 32767).astype(np.int16))
    return segments
