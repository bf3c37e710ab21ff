import numpy as np
import pytest

from voiceflow.simulation.acoustics import telephone_band
from voiceflow.streaming.batch import stream_recordings, stream_statistics
from voiceflow.streaming.lanes import Lanes
from voiceflow.streaming.session import StreamSettings


def test_statistics_say_what_was_done_to_the_audio(talk, model):
    rng = np.random.default_rng(0)
    noisy = talk + rng.normal(0.0, 0.02, len(talk)).astype(np.float32)
    plain, quiet, narrow, noise = stream_statistics(
        [talk, talk * np.float32(0.1), telephone_band(talk), noisy], model, latency_s=1.04
    )
    assert quiet.level_db == pytest.approx(plain.level_db - 20.0, abs=1.0)
    assert narrow.bandwidth_hz < min(4200.0, plain.bandwidth_hz)
    assert noise.snr_db < plain.snr_db - 3.0
    assert plain.audio_s == pytest.approx(len(talk) / 16_000, abs=0.1)


def test_what_is_counted_does_not_depend_on_neighbours(talk, model):
    alone = stream_statistics([talk], model, latency_s=1.04)[0]
    beside = stream_statistics([talk[::-1].copy(), talk, talk * np.float32(0.5)], model, latency_s=1.04)[1]
    assert beside.as_dict() == pytest.approx(alone.as_dict(), abs=1e-3)


def test_counts_agree_with_the_turns(talk, model):
    [stream] = stream_recordings([talk], model, StreamSettings("pcm_f32le"), watched=True)
    turns = stream.turns
    found = stream.statistics()
    assert found.num_speakers == len({turn.speaker for turn in turns})
    assert found.turn_s == pytest.approx(np.mean([turn.duration_s for turn in turns]), abs=0.05)
    assert 0.0 < found.speech_share <= 1.0


def test_a_row_is_watched_only_while_it_is_asked_for(model):
    lanes = Lanes(model.metadata, capacity=1)
    lane = lanes.open(StreamSettings())
    lane.watch()
    others = [lanes.open(StreamSettings()) for _ in range(40)]
    assert lane.is_watched
    assert not any(other.is_watched for other in others)
    lanes.leave(lane)
    assert not lane.is_watched
    assert lanes.watch.num_watched == 0
    again = lanes.open(StreamSettings())
    assert not again.is_watched


def test_it_is_a_handful_of_numbers(talk, model):
    found = stream_statistics([talk], model, latency_s=1.04)[0].as_dict()
    assert len(found) == 15
    assert all(isinstance(value, float) for value in found.values())
