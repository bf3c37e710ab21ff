"""Reading audio of any rate and channel count into mono float32 at 16 kHz."""

import hashlib
import io
import math
from pathlib import Path
from typing import Any

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


RESUME_S = 0.5
"""What a resampler remembers at least of what it heard, longer than its filter: another one can go on from there."""


class StreamResampler:
    """Resamples one live stream to 16 kHz; the result does not depend on packet sizes.

    soxr is fed in blocks of 10 ms of input, so the same audio meets the same calls.
    """

    def __init__(self, rate_hz: int) -> None:
        self.rate_hz = check_rate(rate_hz)
        self._block = max(1, self.rate_hz // 100)
        self._pending = np.zeros(0, np.float32)
        self._heard_N = np.zeros(0, np.float32)
        self._num_forgotten = 0
        """Samples heard before those of `_heard_N`."""
        self._num_out = self._skip = 0
        self._early_N = np.zeros(0, np.float32)
        """What this resampler has ready that the one it goes on from had not."""
        self._resampler = None
        if self.rate_hz != SAMPLE_RATE_HZ:
            import soxr

            self._resampler = soxr.ResampleStream(self.rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32", quality="HQ")

    def push(self, samples_N: FloatArray, *, last: bool = False) -> FloatArray:
        """Take samples at the stream's rate, return what is ready at 16 kHz.

        Args:
            samples_N: New samples, any number.
            last: Whether the stream ends here, so that the filter's tail is flushed.
        """
        if self._resampler is None:
            return samples_N
        pending = np.concatenate([self._pending, samples_N])
        whole = len(pending) // self._block * self._block
        ready = [self._early_N, *self._resample(pending[:whole])]
        self._early_N = np.zeros(0, np.float32)
        self._pending = pending[whole:]
        if last:
            ready.append(self._resampler.resample_chunk(self._pending, last=True)[self._skip :])
            self._pending = np.zeros(0, np.float32)
        return np.concatenate(ready)

    def _resample(self, blocks_N: FloatArray) -> list[FloatArray]:
        assert self._resampler is not None
        ready = []
        for start in range(0, len(blocks_N), self._block):
            block_out_N = self._resampler.resample_chunk(blocks_N[start : start + self._block])
            self._num_out += len(block_out_N)
            ready.append(block_out_N[self._skip :])
            self._skip = max(0, self._skip - len(block_out_N))
        self._heard_N = np.concatenate([self._heard_N, blocks_N])
        # Another resampler can only begin where a sample falls on one of its output's.
        period = self.rate_hz // math.gcd(self.rate_hz, SAMPLE_RATE_HZ)
        spare = max(0, len(self._heard_N) - int(RESUME_S * self.rate_hz)) // period * period
        self._heard_N = self._heard_N[spare:]
        self._num_forgotten += spare
        return ready

    def to_plain(self) -> dict[str, Any]:
        """What another resampler needs to go on from here, to the filter's precision, for `from_plain`."""
        return {
            "heard": self._heard_N.tobytes(),
            "pending": self._pending.tobytes(),
            "num_forgotten": self._num_forgotten,
            "num_out": self._num_out + self._skip - len(self._early_N),
        }

    def from_plain(self, plain: dict[str, Any]) -> None:
        """Go on where another resampler was: hear its last half second again, and say what it has not said."""
        self._pending = np.frombuffer(plain["pending"], np.float32)
        if self._resampler is None:
            return
        begun = plain["num_forgotten"] * SAMPLE_RATE_HZ // self.rate_hz
        self._num_forgotten, self._num_out = plain["num_forgotten"], begun
        self._skip = plain["num_out"] - begun
        self._early_N = np.concatenate([self._early_N, *self._resample(np.frombuffer(plain["heard"], np.float32))])


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
