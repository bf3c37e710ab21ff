import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from voiceflow.config import DecisionConfig
from voiceflow.errors import AudioFormatError, SampleRateError, StreamError
from voiceflow.export import stream_activities
from voiceflow.features import step_features
from voiceflow.runtime import initial_state
from voiceflow.streaming import slots
from voiceflow.streaming.batch import diarize, enrol
from voiceflow.streaming.events import Revision, Segment
from voiceflow.streaming.messages import event_message
from voiceflow.streaming.session import Session, StreamSettings, Voice
from voiceflow.streaming.speakers import TurnTracker
from voiceflow.timebase import STEP_S, FrameGrid
from voiceflow.turns import Turn, scores_to_turns

DECISION = DecisionConfig(
    onset=0.6, offset=0.4, min_on_s=0.16, min_off_s=0.24, min_speaker_s=1.0, forget_after_s=5.0, merge_cosine=0.9
)


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
    assert [t.start_s for t in got] == [t.start_s for t in expected]
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
    final = [s for s in session.events_to_send() if isinstance(s, Segment) and s.final]
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
    decision = DECISION.model_copy(update={"min_on_s": min_on_s, "min_off_s": min_off_s})
    tracker = TurnTracker(decision, 2, ["speaker_0", "speaker_1"])
    array = np.array(scores, np.float32)
    for row in array:
        tracker.push(row)
    tracker.end()
    expected = scores_to_turns(array, grid=FrameGrid(), onset=0.6, offset=0.4, min_on_s=min_on_s, min_off_s=min_off_s)
    got = sorted(segment.turn for segment in tracker.final)
    assert [(t.start_s, t.end_s, t.speaker) for t in got] == [(t.start_s, t.end_s, t.speaker) for t in expected]
    assert [t.confidence for t in got] == pytest.approx([t.confidence for t in expected], abs=2e-4)


def told(tracker, rows):
    """What the tracker says of activities, given as (slot or None, steps)."""
    events = []
    for slot, steps in rows:
        for _ in range(steps):
            events += tracker.push(np.array([float(slot == index) for index in range(4)], np.float32))
    return events


def test_speakers_are_numbered_as_they_are_first_told():
    tracker = TurnTracker(DECISION, 4)
    events = told(tracker, [(2, 20), (None, 5), (0, 20), (None, 5)])
    assert [e.turn.speaker for e in events if e.final] == ["speaker_0", "speaker_1"]


def test_a_passing_voice_is_given_away_and_its_turns_are_told_again():
    tracker = TurnTracker(DECISION, 4)
    told(tracker, [(0, 30), (None, 5), (1, 5), (None, 5), (0, 30), (None, 60)])
    assert tracker.established() == [0]
    assert tracker.visitors(silent_s=5.0) == [1]
    revision = tracker.merge(1, 0)
    assert (revision.merged, revision.into) == ("speaker_1", "speaker_0")
    assert [(s.rev, s.turn.speaker, s.turn.start_s) for s in revision.segments] == [(2, "speaker_0", 2.8)]
    assert tracker.num_speakers == 1
    # What a client was first told stays on record.
    assert [turn.speaker for turn in tracker.as_told] == ["speaker_0", "speaker_1", "speaker_0"]


def test_a_label_is_never_given_twice():
    tracker = TurnTracker(DECISION, 4)
    told(tracker, [(0, 30), (None, 5), (1, 5), (None, 70)])
    tracker.merge(1, 0)
    events = told(tracker, [(1, 30), (None, 5)])
    assert {e.turn.speaker for e in events} == {"speaker_2"}


def test_a_voice_still_speaking_or_well_heard_is_nobodys_to_give_away():
    tracker = TurnTracker(DECISION, 4)
    told(tracker, [(0, 30), (None, 70), (1, 5)])
    assert tracker.visitors(silent_s=0.0) == []
    told(tracker, [(1, 20), (None, 70)])
    assert tracker.visitors(silent_s=5.0) == []


def state_with(metadata, voices):
    """State whose first slots hold unit vectors along the given axes, 10 steps each."""
    state = initial_state(metadata)
    width = next(part.size for part in metadata.state if part.name == "profiles") // metadata.num_slots
    for slot, axis in enumerate(voices):
        state[metadata.state_offset("profiles") + slot * width + axis] = 10.0
        state[metadata.state_offset("weights") + slot] = 10.0
    return state


def test_forgetting_a_slot_moves_those_behind_it_up(model):
    state = slots.forget(model.metadata, state_with(model.metadata, [5, 6, 7]), 1)
    assert [int(row.argmax()) for row in slots.profiles(model.metadata, state)[:2]] == [5, 7]
    assert slots.heard_steps(model.metadata, state).tolist() == [10.0, 10.0] + [0.0] * 6


def test_merging_slots_adds_their_voices(model):
    state = slots.merge(model.metadata, state_with(model.metadata, [5, 6, 7]), 2, 0)
    assert slots.heard_steps(model.metadata, state).tolist() == [20.0, 10.0] + [0.0] * 6
    assert slots.profiles(model.metadata, state)[0][[5, 7]] == pytest.approx([0.5**0.5] * 2)


def test_an_enrolled_voice_is_called_by_its_name(model, talk):
    """The first voice of the conversation is enrolled from the first turn alone."""
    first = diarize([talk], model, latency_s=1.04)[0][0]
    alone = talk[int(first.start_s * 16_000) : int(first.end_s * 16_000)]
    voices, refused = enrol({"Ada": np.concatenate([alone] * 4), "Nobody": np.zeros(16_000, np.float32)}, model)
    assert [voice.label for voice in voices] == ["Ada"]
    assert "Nobody: expected at least 2 s of clear speech, heard 0.0 s" in refused["Nobody"]
    turns = diarize([talk], model, latency_s=1.04, enrolled=voices)[0]
    assert turns[0].speaker == "Ada"


def test_more_enrolled_voices_than_speakers_are_refused(model):
    voice = Voice("Ada", np.ones(96, np.float32))
    with pytest.raises(StreamError, match="at most 1 enrolled"):
        Session(StreamSettings(max_speakers=1, enrolled=(voice, voice)), model.metadata)


def test_revisions_go_out_as_the_protocol_says(model):
    turn = Turn(1.0, 2.0, "speaker_0", 0.9)
    revision = Revision("speaker_1", "speaker_0", (Segment("seg_2", 3, turn, True, False),))
    assert event_message(revision, 7) == {
        "type": "revision",
        "seq": 7,
        "segments": [{"id": "seg_2", "rev": 3, "speaker": "speaker_0", "final": True}],
        "merged": [{"from": "speaker_1", "into": "speaker_0"}],
    }
