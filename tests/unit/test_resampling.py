import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from voiceflow.resampling import BLOCK, StreamResampler

RATES = [8_000, 8_001, 11_025, 22_050, 24_000, 44_100, 48_000]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=6), st.sampled_from([8000, 11025, 44100, 48000]))
def test_resampling_a_stream_does_not_depend_on_packet_sizes(sizes, rate):
    samples = (np.random.default_rng(2).standard_normal(sum(sizes)) * 0.1).astype(np.float32)
    whole = StreamResampler(rate)
    expected = np.concatenate([whole.push(samples), whole.push(samples[:0], last=True)])
    stream, pieces, start = StreamResampler(rate), [], 0
    for size in sizes:
        pieces.append(stream.push(samples[start : start + size]))
        start += size
    pieces.append(stream.push(samples[:0], last=True))
    assert np.array_equal(np.concatenate(pieces), expected)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("cut_s", [0.03, 0.3, 2.001])
def test_a_resampler_goes_on_where_another_one_was(rate, cut_s):
    noise = np.random.default_rng(rate).normal(0.0, 0.1, 3 * rate).astype(np.float32)
    cut = int(cut_s * rate)
    one, other = StreamResampler(rate), StreamResampler(rate)
    one.push(noise[:cut])
    other.from_plain(one.to_plain())
    expected = one.push(noise[cut:], last=True)
    got = other.push(noise[cut:], last=True)
    assert len(got) == len(expected)
    assert np.abs(got - expected).max() < 1e-6


@pytest.mark.parametrize("rate", RATES)
def test_what_is_here_is_said_without_waiting_for_more(rate):
    stream = StreamResampler(rate)
    rng = np.random.default_rng(rate)
    heard = said = 0
    for _ in range(200):
        size = int(rng.integers(1, rate // 10))
        heard += size
        said += len(stream.push(np.zeros(size, np.float32)))
        assert 0 <= heard * 16_000 / rate - said < BLOCK + 1


def sine(hz, rate, seconds=1.0):
    return np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate).astype(np.float32)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("hz", [50, 1000, 3500])
def test_speech_passes_a_few_milliseconds_late(rate, hz):
    stream = StreamResampler(rate)
    out = stream.push(sine(hz, rate), last=True)
    assert len(out) == 16_000
    best = max(
        np.arange(0.0, 0.004, 1e-5),
        key=lambda late_s: np.dot(out[800:], np.sin(2 * np.pi * hz * (np.arange(800, 16_000) / 16_000 - late_s))),
    )
    expected = np.sin(2 * np.pi * hz * (np.arange(16_000) / 16_000 - best))
    assert np.abs(out[800:] - expected[800:]).max() < 0.02


@pytest.mark.parametrize(("rate", "hz"), [(48_000, 9000), (48_000, 20_000), (44_100, 9500), (24_000, 11_000)])
def test_what_16_khz_cannot_hold_is_gone(rate, hz):
    out = StreamResampler(rate).push(sine(hz, rate))
    assert np.abs(out[800:]).max() < 0.003


@pytest.mark.parametrize("rate", RATES)
def test_a_stream_that_soxr_began_goes_on(rate):
    """As 0.1.0 saved it: half a second of what was heard, what waits for ten whole milliseconds, and its places."""
    samples = sine(440, rate, 3.0)
    before = soxr.ResampleStream(rate, 16_000, 1, dtype="float32", quality="HQ")
    fed, block = int(2.0 * rate) // (rate // 100) * (rate // 100), rate // 100
    said = sum(len(before.resample_chunk(samples[at : at + block])) for at in range(0, fed, block))
    period = rate // np.gcd(rate, 16_000)
    forgotten = (fed - rate // 2) // period * period
    pending = samples[fed : fed + 7]
    heard = {"heard": samples[forgotten:fed].tobytes(), "pending": pending.tobytes()}
    plain = heard | {"num_forgotten": forgotten, "num_out": said}
    stream, whole = StreamResampler(rate), StreamResampler(rate)
    stream.from_plain(plain)
    out = stream.push(samples[fed + 7 :], last=True)
    assert said + len(out) == 48_000
    assert np.array_equal(out, whole.push(samples, last=True)[said:])
