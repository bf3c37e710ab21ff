"""A stream that goes on with another model: the same model, of other lanes, is the fairest judge of the seam."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voiceflow.metrics import score
from voiceflow.streaming.events import ModelChanged, Revision, Segment
from voiceflow.streaming.lanes import Lanes
from voiceflow.streaming.session import StreamSettings
from voiceflow.turns import Turn

RATE = 16_000


def score_all(lanes, model):
    while (batch := lanes.gather(max_batch=64)) is not None:
        lanes.scatter(*model.step(*batch))


def run(
    model,
    samples,
    *,
    change_at=(),
    keep_s=8.0,
    packet=1600,
    finalize_at=None,
    close_early=False,
    as_saved=False,
    **options,
):
    """Events of a stream that changes lanes at some packets, and the lane it ended on."""
    lanes = Lanes(model.metadata, capacity=2)
    lane = lanes.open(StreamSettings("pcm_f32le", **options))
    lane.keep_recent(keep_s)
    events = []
    packets = [samples[start : start + packet] for start in range(0, len(samples), packet)]
    for number, samples_N in enumerate(packets):
        lane.receive_audio(samples_N.astype("<f4").tobytes())
        if number == finalize_at:
            lane.finalize()
        if number in change_at:
            is_last = number == max(change_at)
            if not is_last or not close_early:
                score_all(lanes, model)
            events += lane.events_to_send()
            lanes = Lanes(model.metadata, capacity=2)
            carried = lane.lanes.carried(lane.lanes.save(lane, recent=True)) if as_saved else lane.carried()
            lane = lanes.take_over(carried)
            lane.keep_recent(keep_s)
        score_all(lanes, model)
        events += lane.events_to_send()
    lane.close()
    score_all(lanes, model)
    return events + lane.events_to_send(), lane


def told(events):
    """Segments as the client has them in the end, by id; each message is checked on the way."""
    known = {}
    for event in events:
        if isinstance(event, Segment):
            before = known.get(event.id)
            assert before is None or (not before.final and event.rev > before.rev), (before, event)
            known[event.id] = event
        elif isinstance(event, Revision):
            for segment in event.segments:
                turn = replace(known[segment.id].turn, speaker=segment.turn.speaker)
                known[segment.id] = replace(segment, turn=turn)
    return known


def final_turns(events):
    return sorted(segment.turn for segment in told(events).values() if segment.final)


@pytest.fixture(scope="module")
def meeting(talk):
    """The conversation twice over, so that speakers come back."""
    return np.concatenate([talk, talk])


def test_before_the_seam_nothing_changes_and_after_it_speakers_keep_their_labels(model, meeting):
    whole = final_turns(run(model, meeting)[0])
    for change_at in (60, 110, 170, 200):
        events, lane = run(model, meeting, change_at=(change_at,))
        [change] = [event for event in events if isinstance(event, ModelChanged)]
        seam_s = change.at_s
        assert 0.1 * change_at - 2.0 < seam_s <= 0.1 * change_at + 0.1
        turns = final_turns(events)
        assert [t for t in turns if t.end_s < seam_s - 1.0] == [t for t in whole if t.end_s < seam_s - 1.0]
        assert set(change.speakers) <= {turn.speaker for turn in whole}
        assert score(whole, turns, duration_s=len(meeting) / RATE).der < 0.25
        assert sum(_same_label(whole, turns)) / sum(t.duration_s for t in whole) > 0.8
        assert lane.num_speakers == len({turn.speaker for turn in turns})


def _same_label(reference, hypothesis):
    return [
        max(0.0, min(a.end_s, b.end_s) - max(a.start_s, b.start_s))
        for a in reference
        for b in hypothesis
        if a.speaker == b.speaker
    ]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_whenever_it_happens_messages_are_consistent_and_turns_within_the_audio(model, meeting, data):
    length = data.draw(st.integers(8_000, len(meeting)))
    packets = -(-length // 1600)
    change_at = tuple(data.draw(st.lists(st.integers(0, packets - 1), min_size=1, max_size=3, unique=True)))
    options = {
        "latency_s": data.draw(st.sampled_from([0.32, 0.64, 1.04])),
        "max_speakers": data.draw(st.sampled_from([None, 2])),
    }
    events, lane = run(
        model,
        meeting[:length],
        change_at=change_at,
        keep_s=data.draw(st.sampled_from([1.2, 4.0, 8.0])),
        finalize_at=data.draw(st.none() | st.integers(0, packets - 1)),
        close_early=data.draw(st.booleans()),
        as_saved=data.draw(st.booleans()),
        **options,
    )
    known = told(events)
    assert all(segment.final for segment in known.values())
    assert sum(isinstance(event, ModelChanged) for event in events) == len(change_at)
    turns = final_turns(events)
    assert all(0 <= t.start_s < t.end_s <= length / RATE + 1e-6 for t in turns)
    assert lane.turns == turns
    is_merged = any(isinstance(event, Revision) for event in events)
    for speaker in {t.speaker for t in turns}:
        own = [t for t in turns if t.speaker == speaker]
        assert is_merged or all(a.end_s <= b.start_s for a, b in pairwise(own)), own
    if options["max_speakers"]:
        assert len({t.speaker for t in turns}) <= 2 * (len(change_at) + 1)
    assert lane.is_done
    assert lane.received_s == pytest.approx(length / RATE, abs=1e-6)


def test_segments_that_grow_go_on_under_their_id(model, meeting):
    whole = final_turns(run(model, meeting)[0])
    long = max(whole, key=lambda turn: turn.duration_s)
    middle = int((long.start_s + long.end_s) / 2 * 10) + 10
    events, _ = run(model, meeting, change_at=(middle,))
    turns = final_turns(events)
    assert any(turn.start_s == long.start_s and abs(turn.end_s - long.end_s) < 0.5 for turn in turns), (long, turns)


def test_silence_goes_on_as_silence(model):
    events, _ = run(model, np.zeros(80_000, np.float32), change_at=(30,))
    assert [type(event) for event in events] == [ModelChanged]


def test_known_labels_are_given_before_new_ones_are_made_where_their_number_is_limited(model, meeting):
    events, _ = run(model, meeting, change_at=(20, 60, 100, 140, 180), keep_s=1.2, max_speakers=2)
    assert {turn.speaker for turn in final_turns(events)} <= {"speaker_0", "speaker_1"}
    assert isinstance(final_turns(events)[0], Turn)
