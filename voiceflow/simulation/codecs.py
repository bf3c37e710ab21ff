"""Codecs that speech goes through before it reaches us: G.711 as telephones have it, Opus as calls on the net do."""

import functools
import io
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.signal

from voiceflow.timebase import SAMPLE_RATE_HZ

FloatArray = npt.NDArray[np.float32]
Int16Array = npt.NDArray[np.int16]

LAWS = {"mu": "pcm_mulaw", "A": "pcm_alaw"}
"""Laws of G.711, and what FFmpeg calls them."""
OPUS_BITS_PER_S = (14_000, 16_000, 24_000, 32_000)
"""Rates at which Opus keeps the whole band."""
NARROW_OPUS_BITS_PER_S = 10_000
"""Rate at which it keeps no more than a telephone does."""
TELEPHONE_HZ = 8_000
PACKET_SAMPLES = 960
"""60 ms, the longest packet of speech."""


@functools.cache
def g711_table(law: str) -> Int16Array:
    """What each 16-bit sample comes back as, indexed by its bits as unsigned.

    Args:
        law: ``mu`` (North America, Japan) or ``A`` (elsewhere).

    Source:
        ITU-T G.711, 1988, as FFmpeg has it.
    """
    import av

    if law not in LAWS:
        raise ValueError(f"expected a law of {', '.join(LAWS)}, got {law!r}")
    name = LAWS[law]
    every_N = np.arange(65536).astype(np.uint16).view(np.int16)
    encoder: Any = av.CodecContext.create(name, "w")
    encoder.sample_rate, encoder.layout, encoder.format = TELEPHONE_HZ, "mono", "s16"
    frame = av.AudioFrame.from_ndarray(every_N[None], "s16", "mono")
    frame.sample_rate = TELEPHONE_HZ
    decoder: Any = av.CodecContext.create(name, "r")
    decoder.sample_rate, decoder.layout = TELEPHONE_HZ, "mono"
    heard = [part.to_ndarray()[0] for packet in encoder.encode(frame) for part in decoder.decode(packet)]
    table: Int16Array = np.concatenate(heard)
    return table


def telephone(samples_N: FloatArray, law: str) -> FloatArray:
    """300 to 3400 Hz at 8 kHz through G.711, back at 16 kHz; the same length, within (-1, 1).

    Source:
        ITU-T G.712 for the band, G.711 for the steps.
    """
    narrow_N = scipy.signal.upfirdn(_half_band(), samples_N, down=2)[_HALF_DELAY // 2 :]
    narrow_N = scipy.signal.sosfilt(_high_pass(), narrow_N).astype(np.float32)
    pcm_N = np.clip(narrow_N * 32767.0, -32768, 32767).astype(np.int16)
    heard_N = g711_table(law)[pcm_N.view(np.uint16)].astype(np.float32) / np.float32(32768.0)
    wide_N = scipy.signal.upfirdn(_half_band() * np.float32(2.0), heard_N, up=2)[_HALF_DELAY:]
    return _of_length(wide_N.astype(np.float32), len(samples_N))


_HALF_DELAY = 40


@functools.cache
def _half_band() -> FloatArray:
    taps: FloatArray = scipy.signal.firwin(2 * _HALF_DELAY + 1, 3500.0, fs=SAMPLE_RATE_HZ).astype(np.float32)
    return taps


@functools.cache
def _high_pass() -> npt.NDArray[np.float32]:
    sos: FloatArray = scipy.signal.butter(4, 300.0, "high", fs=TELEPHONE_HZ, output="sos").astype(np.float32)
    return sos


def opus(samples_N: FloatArray, bits_per_s: int) -> FloatArray:
    """Through Opus in packets of 60 ms, at its lowest complexity; the same length, aligned.

    Args:
        samples_N: Within (-1, 1), at 16 kHz.
        bits_per_s: Mean rate.

    Source:
        RFC 6716; RFC 7845 for the samples to skip at the start.
    """
    import av
    import soundfile

    pcm_N = np.clip(samples_N * 32767.0, -32768, 32767).astype(np.int16)
    padded_N = np.zeros(-(-len(pcm_N) // PACKET_SAMPLES) * PACKET_SAMPLES, np.int16)
    padded_N[: len(pcm_N)] = pcm_N
    file = io.BytesIO()
    options = {"compression_level": "0", "application": "voip", "frame_duration": "60"}
    with av.open(file, "w", format="ogg") as container:
        stream: Any = container.add_stream("libopus", rate=SAMPLE_RATE_HZ, options=options)
        stream.bit_rate, stream.layout, stream.format = bits_per_s, "mono", "s16"
        for start in range(0, len(padded_N), PACKET_SAMPLES):
            frame = av.AudioFrame.from_ndarray(padded_N[None, start : start + PACKET_SAMPLES], "s16", "mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE_HZ, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    file.seek(0)
    heard_N, rate_hz = soundfile.read(file, dtype="float32")
    assert rate_hz == SAMPLE_RATE_HZ, "libsndfile decodes Opus at the rate it was made of"
    return _of_length(heard_N, len(samples_N))


def _of_length(samples_N: FloatArray, length: int) -> FloatArray:
    return np.pad(samples_N, (0, max(0, length - len(samples_N))))[:length]
