import numpy as np
import torch

from voiceflow.audio import write_flac
from voiceflow.corpora.read import AudioPlace, Utterance
from voiceflow.simulation.speech import WINDOW_SAMPLES, speaker_segments


class Deaf:
    """A detector that hears speech between two times alone, as silero-vad hears a whisper late."""

    def __init__(self, from_s, until_s):
        self.first, self.last = (round(at_s * 16_000 / WINDOW_SAMPLES) for at_s in (from_s, until_s))

    def reset_states(self):
        self.at = 0

    def __call__(self, batch_BN, rate_hz):
        score = 1.0 if self.first <= self.at < self.last else 0.0
        self.at += 1
        return torch.full((len(batch_BN), 1), score)


def segment_of(samples_N, tmp_path, detector):
    write_flac(tmp_path / "one.flac", samples_N.astype(np.float32))
    [segment], _ = speaker_segments([Utterance(AudioPlace(tmp_path / "one.flac"), "ann")], detector, max_s=60.0)
    return segment


def test_what_surrounds_speech_is_kept_unless_it_is_speech_too(tmp_path):
    rng = np.random.default_rng(0)
    samples_N = rng.normal(0.0, 0.0005, 4 * 16_000)
    samples_N[16_000:48_000] = rng.normal(0.0, 0.05, 32_000)

    segment = segment_of(samples_N, tmp_path, Deaf(1.0, 3.0))
    assert segment.core_start > 6000, "the room before the speech"
    assert len(segment.samples_N) - segment.core_end > 6000, "and after it"

    late = segment_of(samples_N, tmp_path, Deaf(1.6, 3.0))
    assert late.core_start == 0, "0.5 s of speech that nobody is labelled for is left out"
    assert len(late.samples_N) - late.core_end > 6000
