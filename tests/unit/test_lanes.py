"""Lanes against sessions: the same packets, the same events, to the bit."""

import copy
from dataclasses import dataclass, field

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voiceflow.errors import AudioFormatError, StreamError
from voiceflow.streaming.lane import Lane
from voiceflow.streaming.lanes import Lanes
from voiceflow.streaming.session import Session, StreamSettings, Voice
from voiceflow.turns import Turn

LATENCIES = (0.32, 0.64, 1.04)


@dataclass
class Pair:
    """A stream told the same as a session and as a lane."""

    session: Session
    lane: Lane
    events: list = field(default_factory=list)
    lane_events: list = field(default_factory=list)

    def both(self, method, *arguments, **options):
        for stream in (self.session, self.lane):
            getattr(stream, method)(*arguments, **options)

    def collect(self):
        self.events += self.session.events_to_send()
        self.lane_events += self.lane.events_to_send()


def score_all(pairs, lanes, model, max_batch=256):
    for pair in pairs:
        while (chunk := pair.session.chunk_to_score()) is not None:
            activity, state = model.step(chunk.features_F[None], chunk.state_N[None], np.array([chunk.lookahead_steps]))
            pair.session.receive_scores(activity[0], state[0])
    while (batch := lanes.gather(max_batch=max_batch)) is not None:
        lanes.scatter(*model.step(*batch))
    for pair in pairs:
        pair.collect()


def check(pair):
    assert pair.lane_events == pair.events
    assert pair.lane.turns == pair.session.turns
    assert pair.lane.turns_as_told == pair.session.turns_as_told
    for name in ("received_s", "answered_s", "stable_s", "waiting_s", "num_speakers", "is_done"):
        assert getattr(pair.lane, name) == getattr(pair.session, name), name


def pcm(samples, encoding):
    if encoding == "pcm_f32le":
        return samples.astype("<f4").tobytes()
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


plans = st.lists(
    st.fixed_dictionaries(
        {
            "encoding": st.sampled_from(["pcm_s16le", "pcm_f32le"]),
            "sample_rate_hz": st.sampled_from([16_000, 16_000, 16_000, 8_000]),
            "latency_s": st.sampled_from(LATENCIES),
            "max_speakers": st.sampled_from([None, None, 1, 3]),
            "begin": st.integers(0, 200_000),
            "packets": st.lists(st.integers(1, 9_000), min_size=1, max_size=12),
            "finalize_after": st.integers(0, 20),
            "close": st.booleans(),
        }
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=30, deadline=None)
@given(plans=plans, max_batch=st.integers(1, 6), together=st.integers(1, 4))
def test_lanes_say_what_sessions_say(model, talk, plans, max_batch, together):
    lanes = Lanes(model.metadata, capacity=1)
    pairs, audio = [], []
    for plan in plans:
        wanted = {key: plan[key] for key in ("encoding", "sample_rate_hz", "latency_s", "max_speakers")}
        pairs.append(Pair(Session(StreamSettings(**wanted), model.metadata), lanes.open(StreamSettings(**wanted))))
        audio.append(pcm(talk[plan["begin"] :], plan["encoding"]))
    for turn in range(max(len(plan["packets"]) for plan in plans)):
        for pair, plan, data in zip(pairs, plans, audio, strict=True):
            if turn < len(plan["packets"]):
                start = sum(plan["packets"][:turn])
                pair.both("receive_audio", data[start : start + plan["packets"][turn]])
                if turn == plan["finalize_after"]:
                    pair.both("finalize")
        if turn % together == 0:
            score_all(pairs, lanes, model, max_batch)
            for pair in pairs:
                check(pair)
    for pair, plan in zip(pairs, plans, strict=True):
        if plan["close"]:
            pair.both("close")
    score_all(pairs, lanes, model, max_batch)
    for pair in pairs:
        check(pair)


def test_a_whole_conversation_beside_others(model, talk):
    """Long enough for revisions, repairs and enrolled voices; many lanes, so that rows are made and moved."""
    lanes = Lanes(model.metadata, capacity=2)
    voice = Voice("Ada", np.eye(96, dtype=np.float32)[0])
    pairs = []
    for number in range(5):
        wanted = StreamSettings("pcm_f32le", latency_s=LATENCIES[number % 3], enrolled=(voice,) if number == 4 else ())
        pairs.append(Pair(Session(wanted, model.metadata), lanes.open(wanted)))
    for start in range(0, len(talk), 16_000):
        for number, pair in enumerate(pairs):
            pair.both("receive_samples", np.roll(talk, 40_000 * number)[start : start + 16_000])
        score_all(pairs, lanes, model)
    for number, pair in enumerate(pairs):
        pair.both("close", keep_labels=number == 3)
    score_all(pairs, lanes, model)
    assert any(event for pair in pairs for event in pair.events)
    for pair in pairs:
        check(pair)
        assert pair.lane.is_done


def test_a_row_is_as_new_for_the_next_stream(model, talk):
    lanes = Lanes(model.metadata, capacity=1)
    first = lanes.open(StreamSettings("pcm_f32le"))
    first.receive_samples(talk[:64_000])
    while (batch := lanes.gather(max_batch=4)) is not None:
        lanes.scatter(*model.step(*batch))
    lanes.leave(first)
    assert len(lanes) == 0
    second = Pair(Session(StreamSettings("pcm_f32le"), model.metadata), lanes.open(StreamSettings("pcm_f32le")))
    assert second.lane.row == first.row
    second.both("receive_samples", talk[30_000:90_000])
    second.both("close")
    score_all([second], lanes, model)
    check(second)


def test_a_lane_that_leaves_while_it_is_scored_disturbs_nobody(model, talk):
    lanes = Lanes(model.metadata, capacity=2)
    gone = lanes.open(StreamSettings("pcm_f32le"))
    pair = Pair(Session(StreamSettings("pcm_f32le"), model.metadata), lanes.open(StreamSettings("pcm_f32le")))
    gone.receive_samples(talk[:1280])
    pair.both("receive_samples", talk[:48_000])
    batch = lanes.gather(max_batch=4)
    lanes.leave(gone)
    newcomer = lanes.open(StreamSettings("pcm_f32le"))
    assert newcomer.row not in (gone.row, pair.lane.row)
    lanes.scatter(*model.step(*batch))
    pair.both("close")
    score_all([pair], lanes, model)
    check(pair)


def test_a_twin_ends_without_ending_the_lane(model, talk):
    lanes = Lanes(model.metadata, capacity=1)
    pair = Pair(Session(StreamSettings("pcm_f32le"), model.metadata), lanes.open(StreamSettings("pcm_f32le")))
    pair.both("receive_samples", talk[:100_500])
    score_all([pair], lanes, model)
    twin = lanes.twin(pair.lane)
    expected = Pair(copy.deepcopy(pair.session), twin)
    expected.both("close", keep_labels=True)
    score_all([expected], lanes, model)
    check(expected)
    assert twin.is_done
    lanes.leave(twin)
    pair.both("receive_samples", talk[100_500:])
    pair.both("close")
    score_all([pair], lanes, model)
    check(pair)


@pytest.mark.parametrize("cut", [700, 70_001, 120_000])
def test_a_saved_stream_goes_on_elsewhere_with_the_same_turns(model, talk, cut):
    """Saved at any moment, with audio that waits, and restored where another stream has been."""
    data = pcm(talk, "pcm_s16le")
    here, there = Lanes(model.metadata, capacity=1), Lanes(model.metadata, capacity=1)
    wanted = StreamSettings(enrolled=(Voice("Ada", np.eye(96, dtype=np.float32)[0]),))
    pair = Pair(Session(wanted, model.metadata), here.open(wanted))
    pair.both("receive_audio", data[: 2 * cut + 1])
    if (batch := here.gather(max_batch=1)) is not None:
        here.scatter(*model.step(*batch))
    pair.lane_events += pair.lane.events_to_send()
    pair.lane = there.restore(here.save(pair.lane))
    pair.both("receive_audio", data[2 * cut + 1 :])
    pair.both("close")
    score_all([pair], there, model)
    check(pair)


def test_a_stream_saved_in_a_look_past_its_end_ends_the_same(model, talk):
    here, there = Lanes(model.metadata, capacity=1), Lanes(model.metadata, capacity=1)
    pair = Pair(Session(StreamSettings("pcm_f32le"), model.metadata), here.open(StreamSettings("pcm_f32le")))
    pair.both("receive_samples", talk[:80_000])
    score_all([pair], here, model)
    pair.both("close")
    for _ in range(3):
        here.scatter(*model.step(*here.gather(max_batch=1)))
    pair.collect()
    pair.lane = there.restore(here.save(pair.lane))
    score_all([pair], there, model)
    check(pair)


def test_saved_streams_of_other_models_and_noise_are_refused(model, talk):
    lanes = Lanes(model.metadata)
    saved = lanes.save(lanes.open(StreamSettings()))
    other = Lanes(model.metadata.model_copy(update={"version": "9.9.9"}))
    with pytest.raises(StreamError, match=r"9\.9\.9"):
        other.restore(saved)
    plain = msgpack.unpackb(saved)
    without_rows = msgpack.packb({**plain, "rows": {}})
    short_rows = msgpack.packb({**plain, "rows": {name: value[:-1] for name, value in plain["rows"].items()}})
    for noise in (b"", b"noise", saved[:40], b"\x01", without_rows, short_rows):
        with pytest.raises(StreamError, match="expected a saved stream"):
            lanes.restore(noise)
    assert len(other) == 0
    assert len(lanes) == 1


def test_a_step_whose_scores_are_awaited_is_work(model, talk):
    lanes = Lanes(model.metadata)
    lane = lanes.open(StreamSettings("pcm_f32le"))
    lane.receive_samples(talk[:1280])
    batch = lanes.gather(max_batch=1)
    assert lane.has_work
    lanes.scatter(*model.step(*batch))
    assert not lane.has_work


def test_turns_of_long_ago_are_forgotten_where_that_is_wanted(model, talk):
    lanes = Lanes(model.metadata)
    kept, short = lanes.open(StreamSettings("pcm_f32le")), lanes.open(StreamSettings("pcm_f32le"), keep_s=5.0)
    for lane in (kept, short):
        lane.receive_samples(talk)
        lane.close(keep_labels=True)
    while (batch := lanes.gather(max_batch=2)) is not None:
        lanes.scatter(*model.step(*batch))
    assert short.events_to_send() == kept.events_to_send()
    assert 0 < len(short.turns) < len(kept.turns)
    assert set(short.turns) <= set(kept.turns)
    assert short.num_speakers == kept.num_speakers


def test_lanes_refuse_what_sessions_refuse(model):
    lanes = Lanes(model.metadata)
    with pytest.raises(StreamError, match="max_speakers"):
        lanes.open(StreamSettings(max_speakers=99))
    assert len(lanes) == 0
    lane = lanes.open(StreamSettings("pcm_f32le"))
    lane.receive_audio(np.zeros(10, "<f4").tobytes() + b"\0")
    with pytest.raises(AudioFormatError):
        lane.receive_audio(np.array([np.nan, 0.0], "<f4").tobytes()[1:])
    assert lane.received_s == pytest.approx(10 / 16_000)
    lane.close()
    with pytest.raises(StreamError, match="after close"):
        lane.receive_audio(b"\0\0\0\0")


def test_turns_are_turns(model, talk):
    lanes = Lanes(model.metadata)
    lane = lanes.open(StreamSettings("pcm_f32le"))
    lane.receive_samples(talk)
    lane.close()
    while (batch := lanes.gather(max_batch=1)) is not None:
        lanes.scatter(*model.step(*batch))
    assert lane.turns
    assert all(isinstance(turn, Turn) for turn in lane.turns)


def test_a_lane_that_left_takes_no_more_audio_and_its_row_is_not_touched(model, talk):
    lanes = Lanes(model.metadata, capacity=1)
    gone = lanes.open(StreamSettings("pcm_f32le"))
    lanes.leave(gone)
    other = lanes.open(StreamSettings("pcm_f32le"))
    assert other.row == gone.row
    with pytest.raises(StreamError, match="has left"):
        gone.receive_samples(talk[:16_000])
    assert other.waiting_s == 0.0
    assert lanes.gather(max_batch=4) is None
