"""The one time grid of the project: samples, 10 ms feature frames, 80 ms model steps."""

from dataclasses import dataclass

SAMPLE_RATE_HZ = 16_000
"""Rate of all audio inside the library, mono float32."""
FRAME_HOP_SAMPLES = 160
"""Hop between feature frames: 10 ms."""
STEP_FRAMES = 8
"""Feature frames that the model takes in one step."""
STEP_SAMPLES = FRAME_HOP_SAMPLES * STEP_FRAMES
"""Audio of one model step: 1280 samples, 80 ms."""
STEP_S = STEP_SAMPLES / SAMPLE_RATE_HZ
"""Length of one model step in seconds."""

LOOKAHEAD_STEPS_BY_LATENCY_S = {0.32: 3, 0.64: 7, 1.04: 12}
"""Offered latencies: one 80 ms step plus that many steps of look-ahead."""


@dataclass(frozen=True)
class FrameGrid:
    """Maps indices of equally long frames to seconds from the start of the stream."""

    frame_s: float = STEP_S

    def start_s(self, index: int) -> float:
        """Start of frame `index` in seconds, rounded to the microsecond."""
        return round(index * self.frame_s, 6)

    def num_frames(self, duration_s: float) -> int:
        """Number of frames that begin before `duration_s` (the last may be partial)."""
        full = int(round(duration_s / self.frame_s, 6))
        return full + (1 if duration_s - full * self.frame_s > 1e-6 else 0)


def seconds_to_samples(time_s: float) -> int:
    """Nearest sample index at 16 kHz; halves round to even, as Python does."""
    return round(time_s * SAMPLE_RATE_HZ)


def samples_to_seconds(num_samples: int) -> float:
    """Seconds of `num_samples` at 16 kHz, exact to the microsecond."""
    return round(num_samples / SAMPLE_RATE_HZ, 6)


def lookahead_steps(latency_s: float) -> int:
    """Steps of look-ahead for a latency in seconds.

    Raises:
        ValueError: If the latency is none of those offered.
    """
    for offered_s, steps in LOOKAHEAD_STEPS_BY_LATENCY_S.items():
        if abs(offered_s - latency_s) < 1e-6:
            return steps
    offered = ", ".join(f"{value:.2f}" for value in LOOKAHEAD_STEPS_BY_LATENCY_S)
    raise ValueError(f"expected a latency of {offered} s, got {latency_s} s")


def last_sample_needed_s(audio_s: float, latency_s: float) -> float:
    """Where the audio must have come to for the answer to `audio_s`: its 80 ms step to the end, and the look-ahead."""
    steps = -(-round(audio_s / STEP_S, 6) // 1)
    return round(steps * STEP_S + lookahead_steps(latency_s) * STEP_S, 6)
