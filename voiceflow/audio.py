"""Reading audio of any rate and channel count into mono float32 at 16 kHz."""

import hashlib
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from voiceflow.errors import AudioError, AudioFormatError, SampleRateError
from voiceflow.timebase import SAMPLE_RATE_HZ

FloatArray = npt.NDArray[np.float32]

MIN_RATE_HZ = 8_000
MAX_RATE_HZ = 48_000
"""Range of rates that a stream may declare; files may go up to 192 kHz."""
MAX_FILE_RATE_HZ = 192_000


def check_rate(rate_hz: float, *, maximum_hz: int = MAX_RATE_HZ) -> int:
    """Return the rate as an integer, or say which range is accepted.

    Raises:
        SampleRateError: Outside 8 kHz to `maximum_hz`, or not a whole number.
    """
    if rate_hz != int(rate_hz) or not MIN_RATE_HZ <= rate_hz <= maximum_hz:
        raise SampleRateError(rate_hz, MIN_RATE_HZ, maximum_hz)
    return int(rate_hz)


def check_finite(samples: FloatArray, name: str) -> FloatArray:
    """Return the samples if all are finite.

    Raises:
        AudioFormatError: Naming the first NaN or infinite sample.
    """
    finite = np.isfinite(samples)
    if not finite.all():
        first = int(np.argmin(finite.reshape(len(samples), -1).all(axis=1)))
        bad = int(samples.size - finite.sum())
        raise AudioFormatError(
            name, f"expected finite samples, got {bad} NaN or infinite ones, the first at sample {first}"
        )
    return samples


def resample(samples_N: FloatArray, rate_hz: int) -> FloatArray:
    """Resample mono audio to 16 kHz with soxr's high quality filter."""
    if rate_hz == SAMPLE_RATE_HZ:
        return samples_N
    import soxr

    resampled: FloatArray = soxr.resample(samples_N, rate_hz, SAMPLE_RATE_HZ, quality="HQ")
    return resampled


def load_audio(source: Path | str | bytes, *, name: str | None = None) -> FloatArray:
    """Decode WAV, FLAC, Ogg (Vorbis, Opus) or MP3 to mono float32 at 16 kHz.

    Args:
        source: A path, or the bytes of a file.
        name: What to call it in errors; the path by default.

    Returns:
        Samples in [-1, 1], shape (N,), channels averaged.

    Raises:
        AudioFormatError: Missing, empty, not audio, truncated, or with NaN samples.
        SampleRateError: Below 8 kHz or above 192 kHz.
    """
    samples_NC, rate_hz = read_file(source, name=name)
    label = name or ("audio" if isinstance(source, bytes) else str(source))
    check_finite(samples_NC, label)
    mono_N = samples_NC.mean(axis=1, dtype=np.float32)
    return resample(mono_N, check_rate(rate_hz, maximum_hz=MAX_FILE_RATE_HZ))


def read_file(source: Path | str | bytes, *, name: str | None = None) -> tuple[FloatArray, int]:
    """Decode a file as it is: samples of shape (N, channels) and its rate in Hz.

    Raises:
        AudioFormatError: Missing, empty, not audio, or shorter than its header says.
    """
    import soundfile

    label = name or ("audio" if isinstance(source, bytes) else str(source))
    if not isinstance(source, bytes):
        path = Path(source)
        if not path.is_file():
            raise AudioFormatError(label, "no such file; expected WAV, FLAC, Ogg/Opus or MP3")
        size = path.stat().st_size
    else:
        size = len(source)
    if size == 0:
        raise AudioFormatError(label, "the file is empty; expected WAV, FLAC, Ogg/Opus or MP3")
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as file:
            expected_frames, rate_hz, container = file.frames, file.samplerate, file.format
            samples_NC = file.read(dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as err:
        reason = (
            f"expected WAV, FLAC, Ogg/Opus or MP3, but it cannot be decoded ({_reason(err)}); convert it and try again"
        )
        raise AudioFormatError(label, reason) from err
    if len(samples_NC) == 0:
        raise AudioFormatError(label, "holds no samples; expected at least one")
    # libsndfile stops quietly where a FLAC or WAV breaks off; the header tells.
    if container in ("FLAC", "WAV", "AIFF") and len(samples_NC) < expected_frames:
        raise AudioFormatError(
            label,
            f"breaks off after {len(samples_NC)} of {expected_frames} samples; the file is truncated or damaged",
        )
    return samples_NC, rate_hz


def _reason(err: Exception) -> str:
    return str(err).rsplit(":", maxsplit=1)[-1].strip().rstrip(".") or type(err).__name__


def write_flac(path: Path, samples_N: FloatArray) -> None:
    """Write mono 16 kHz 16-bit FLAC; the same samples give the same bytes.

    Raises:
        OSError: It cannot be written; libsndfile itself would not say why.
    """
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    pcm16_N = np.clip(np.round(samples_N * 32767.0), -32768, 32767).astype(np.int16)
    encoded = io.BytesIO()
    soundfile.write(encoded, pcm16_N, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    path.write_bytes(encoded.getbuffer())


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def decode_pcm(data: bytes, encoding: str) -> FloatArray:
    """Decode whole samples of raw PCM to float32 in [-1, 1].

    Args:
        data: Bytes, a whole number of samples.
        encoding: ``pcm_s16le`` or ``pcm_f32le``.

    Raises:
        AudioError: For an unknown encoding.
        AudioFormatError: For NaN or infinite float samples.
    """
    if encoding == "pcm_s16le":
        return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768.0)
    if encoding == "pcm_f32le":
        return check_finite(np.frombuffer(data, "<f4").astype(np.float32), "stream")
    raise AudioError(f"expected encoding pcm_s16le or pcm_f32le, got {encoding!r}")


SAMPLE_BYTES = {"pcm_s16le": 2, "pcm_f32le": 4}
"""Bytes of one sample of each raw encoding."""
