import numpy as np
import pytest
import soundfile

from voiceflow.audio import decode_pcm, load_audio, write_flac
from voiceflow.errors import AudioFormatError, SampleRateError


def tone(rate, seconds=1.0, channels=1):
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
    return np.stack([wave] * channels, axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "rate", "channels"), [("a.wav", 8000, 1), ("a.flac", 44100, 2), ("a.ogg", 48000, 2), ("a.mp3", 22050, 1)]
)
def test_files_of_any_rate_and_channel_count_become_16_khz_mono(tmp_path, name, rate, channels):
    soundfile.write(tmp_path / name, tone(rate, channels=channels), rate)
    samples = load_audio(tmp_path / name)
    assert samples.ndim == 1
    assert abs(len(samples) - 16_000) < 2400
    spectrum = np.abs(np.fft.rfft(samples[:8000]))
    assert abs(spectrum.argmax() * 2 - 440) <= 4


def test_an_opus_file_is_read(tmp_path):
    soundfile.write(tmp_path / "a.opus", tone(48000), 48000, format="OGG", subtype="OPUS")
    assert abs(len(load_audio(tmp_path / "a.opus")) - 16_000) < 400


def test_an_empty_file_is_called_empty(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(AudioFormatError, match="empty"):
        load_audio(tmp_path / "a.wav")


def test_a_text_file_named_wav_cannot_be_decoded(tmp_path):
    (tmp_path / "a.wav").write_text("not audio at all\n" * 50)
    with pytest.raises(AudioFormatError, match="cannot be decoded"):
        load_audio(tmp_path / "a.wav")


def test_a_truncated_flac_is_told(tmp_path):
    write_flac(tmp_path / "a.flac", np.random.default_rng(0).standard_normal(80_000).astype(np.float32) * 0.1)
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "b.flac").write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioFormatError, match=r"breaks off|cannot be decoded"):
        load_audio(tmp_path / "b.flac")


def test_nan_samples_are_told_with_their_place(tmp_path):
    samples = tone(16_000)[:, 0]
    samples[123] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    with pytest.raises(AudioFormatError, match="sample 123"):
        load_audio(tmp_path / "a.wav")


def test_a_rate_below_8_khz_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(4000), 4000)
    with pytest.raises(SampleRateError, match="8000"):
        load_audio(tmp_path / "a.wav")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(AudioFormatError, match="no such file"):
        load_audio(tmp_path / "none.wav")


def test_pcm_is_scaled_to_one():
    assert decode_pcm(np.array([-32768, 0, 16384], "<i2").tobytes(), "pcm_s16le").tolist() == [-1.0, 0.0, 0.5]
