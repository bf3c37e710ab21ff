import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voiceflow.features import HISTORY_SAMPLES, FeatureStream, log_mel, mel_filters, step_features


def test_log_mel_agrees_with_a_direct_dft_of_one_frame():
    rng = np.random.default_rng(0)
    samples = (rng.standard_normal(HISTORY_SAMPLES + 160) * 0.1).astype(np.float32)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    times = np.arange(512)
    frame = np.concatenate([samples * window, np.zeros(112)])
    power = [abs(np.sum(frame * np.exp(-2j * np.pi * k * times / 512))) ** 2 for k in range(257)]
    expected = np.log(np.maximum(np.array(power) @ mel_filters().astype(np.float64) / 400, 1e-8))
    assert log_mel(samples)[0] == pytest.approx(expected, abs=1e-4)


def test_a_tone_is_loudest_in_the_filter_of_its_frequency():
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    loudest = int(log_mel(tone).mean(axis=0).argmax())
    assert mel_filters()[32, loudest] > 0.3  # bin 32 of 512 at 16 kHz is 1000 Hz


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=8))
def test_features_do_not_depend_on_packet_sizes(sizes):
    samples = (np.random.default_rng(1).standard_normal(sum(sizes)) * 0.1).astype(np.float32)
    stream, steps, start = FeatureStream(), [], 0
    for size in sizes:
        steps += stream.push(samples[start : start + size])
        start += size
    steps += stream.flush()
    whole = step_features(samples)
    assert len(steps) == len(whole) == -(-len(samples) // 1280)
    if len(whole):
        assert np.array_equal(np.stack(steps), whole)
