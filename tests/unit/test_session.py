import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from voiceflow.config import DecisionConfig
from voiceflow.errors import AudioFormatError, SampleRateError, StreamError
from voiceflow.export import stream_activities
from voiceflow.features import step_features
from voiceflow.streaming.batch import diarize
from voiceflow.streaming.session import Session, StreamSettings
from voiceflow.streaming.speakers import TurnTracker
from voiceflow.timebase import STEP_S, FrameGrid
from voiceflow.turns import scores_to_turns


def drive(session, model):
    while (chunk := session.chunk_to_score()) is not None:
        lookahead = np.array([chunk.lookahead_steps])
        activity, state = model.step(chunk.features_F[None], chunk.state_N[None], lookahead)
        session.receive_scores(activity[0], state[0])


def stream_turns(model, data, packet_bytes, **settings):
    session = Session(StreamSettings(**settings), model.metadata)
    for start in range(0, len(data), packet_bytes):
        session.receive_audio(data[start : start + packet_bytes])
        drive(session, model)
    session.close()
    drive(session, model)
    assert session.is_done
    return session.turns


def pcm16(samples):
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def test_packet_sizes_do_not_change_the_turns(model, talk):
    data = pcm16(talk[:48_000])
    answers = [stream_turns(model, data, size) for size in (1, 333, 3200, 100_000)]
    assert answers[0]
    assert answers[1:] == answers[:1] * 3


def test_turns_agree_with_an_offline_oracle(model, talk):
    """Whole features, one pass over ONNX, then the offline decision: none of it is the session's code."""
    steps = step_features(talk)
    silence = np.full((12, 640), np.log(np.float32(1e-8)), np.float32)
    activity = stream_activities(model, np.concatenate([steps, silence]), lookahead_steps=12)[12:]
    decision = model.metadata.decision
    expected = scores_to_turns(
        activity,
        grid=FrameGrid(),
        onset=decision.onset,
        offset=decision.offset,
        min_on_s=decision.min_on_s,
        min_off_s=decision.min_off_s,
    )
    got = diarize([talk], model, latency_s=1.04)[0]
    assert [(t.start_s, t.speaker) for t in got] == [(t.start_s, t.speaker) for t in expected]
    assert [t.confidence for t in got] == pytest.approx([t.confidence for t in expected], abs=2e-4)


def test_streams_together_answer_exactly_as_each_alone(model, talk):
    other = talk[::-1].copy()
    together = diarize([talk, other, talk[:50_000]], model, latency_s=0.32)
    alone = [diarize([one], model, latency_s=0.32)[0] for one in (talk, other, talk[:50_000])]
    assert together == alone


def test_finalize_decides_what_was_heard_and_does_not_disturb_what_follows(model, talk):
    session = Session(StreamSettings("pcm_f32le"), model.metadata)
    session.receive_samples(talk[:64_000])
    drive(session, model)
    before = session.answered_s
    session.finalize()
    drive(session, model)
    assert session.answered_s == pytest.approx(4.0)
    assert before == pytest.approx(4.0 - 12 * STEP_S)
    session.receive_samples(talk[64_000:])
    session.close()
    drive(session, model)
    assert session.answered_s == pytest.approx(len(talk) / 16_000)
    final = [s for s in session.segments_to_send() if s.final]
    assert len({s.id for s in final}) == len(final)
    assert sum(t.duration_s for t in session.turns) == pytest.approx(
        sum(t.duration_s for t in diarize([talk], model, latency_s=1.04)[0]), abs=1.5
    )


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.08, 0.5, 1.0])
def test_streams_shorter_than_the_lookahead_end(model, talk, seconds):
    turns = stream_turns(model, pcm16(talk[16_000 : 16_000 + int(seconds * 16_000)]), 3200)
    assert all(t.end_s <= seconds + 1e-6 for t in turns)


def test_max_speakers_is_honoured(model, talk):
    turns = diarize([talk], model, latency_s=1.04, max_speakers=1)[0]
    assert {t.speaker for t in turns} == {"speaker_0"}


def test_nan_samples_are_refused_and_the_stream_goes_on(model, talk):
    session = Session(StreamSettings("pcm_f32le"), model.metadata)
    session.receive_audio(talk[:1600].tobytes())
    with pytest.raises(AudioFormatError):
        session.receive_audio(np.array([0.0, np.nan], "<f4").tobytes())
    assert session.received_s == pytest.approx(0.1)


@pytest.mark.parametrize("settings", [{"encoding": "mp3"}, {"channels": 2}, {"latency_s": 0.5}, {"max_speakers": 99}])
def test_settings_that_are_not_served_are_told(model, settings):
    with pytest.raises(StreamError, match="expected"):
        Session(StreamSettings(**settings), model.metadata)


@pytest.mark.parametrize("rate", [7999, 48001])
def test_rates_out_of_range_are_told(model, rate):
    with pytest.raises(SampleRateError):
        Session(StreamSettings(sample_rate_hz=rate), model.metadata)


@settings(max_examples=100, deadline=None)
@example([[0.0, float(np.float32(0.6))]], 0.0, 0.0)
@given(
    st.lists(
        st.lists(st.floats(0, 1, width=32, allow_subnormal=False), min_size=2, max_size=2), min_size=1, max_size=60
    ),
    st.sampled_from([0.0, 0.16, 0.3]),
    st.sampled_from([0.0, 0.16, 0.24, 0.4]),
)
def test_the_tracker_decides_as_scores_to_turns_does(scores, min_on_s, min_off_s):
    decision = DecisionConfig(onset=0.6, offset=0.4, min_on_s=min_on_s, min_off_s=min_off_s)
    tracker = TurnTracker(decision, 2)
    array = np.array(scores, np.float32)
    for row in array:
        tracker.push(row)
    tracker.end()
    expected = scores_to_turns(array, grid=FrameGrid(), onset=0.6, offset=0.4, min_on_s=min_on_s, min_off_s=min_off_s)
    got = sorted(tracker.final_turns)
    assert [(t.start_s, t.end_s, t.speaker) for t in got] == [(t.start_s, t.end_s, t.speaker) for t in expected]
    assert [t.confidence for t in got] == pytest.approx([t.confidence for t in expected], abs=2e-4)
