"""Training conversations: rhythm, rooms, codecs, people who come and go, and what they are made of."""

from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
import soundfile
from conftest import small

from voiceflow.checks.labels import contrast_db
from voiceflow.checks.signal import levels_db
from voiceflow.corpora.read import read_sounds
from voiceflow.errors import AudioError, DataError
from voiceflow.rhythm import measure_rhythm, rhythm_distances
from voiceflow.simulation.acoustics import HEADSET
from voiceflow.simulation.codecs import LAWS, g711_table, opus, telephone
from voiceflow.simulation.conversations import ConversationPlan, endless_plans
from voiceflow.simulation.rooms import PLACES, headset_room, image_room
from voiceflow.simulation.simulator import Simulator
from voiceflow.simulation.stock import ROOM_KINDS, load_stock, make_stock
from voiceflow.simulation.turn_taking import Presence, draw_turns
from voiceflow.turns import Turn


@pytest.fixture(scope="module")
def config(params):
    return small(params).prepare


@pytest.fixture(scope="module")
def stock(config):
    return make_stock(config)


def plan(condition="close", seed=3):
    return ConversationPlan("talk", "train", condition, ("ann", "bob", "cem"), (1, 2, seed))


def with_variety(config, **values):
    return config.model_copy(update={"variety": config.variety.model_copy(update=values)})


@pytest.mark.parametrize("condition", ["close", "room", "far", "telephone", HEADSET])
def test_conversations_follow_from_plan_and_stock_alone(config, stock, segments, condition):
    first, second = (Simulator(config, stock).make(plan(condition), segments) for _ in range(2))
    assert np.array_equal(first.samples_N, second.samples_N)
    assert first.turns == second.turns
    assert len(first.samples_N) == 12 * 16_000
    assert first.samples_N.dtype == np.float32
    assert 1e-4 < np.abs(first.samples_N).max() <= 1.0
    assert first.turns
    assert first.style in config.variety.styles


def test_a_stock_that_was_saved_makes_the_same_conversations(config, stock, segments, tmp_path):
    stock.save(tmp_path)
    kept = load_stock(tmp_path)
    for condition in ("far", HEADSET):
        made = [Simulator(config, one).make(plan(condition), segments).samples_N for one in (stock, kept)]
        assert np.array_equal(*made)


def test_turns_lie_where_the_speech_is(config, stock, segments):
    quiet = with_variety(config, events_share=0.0, context_share=0.0, opus_share=0.0, level_change_share=0.0)
    for seed in range(8):
        talk = Simulator(quiet, stock).make(plan(seed=seed), segments)
        spoken = np.zeros(len(talk.samples_N), np.bool_)
        for turn in talk.turns:
            spoken[int(turn.start_s * 16_000) : int(turn.end_s * 16_000)] = True
        energy = [np.mean(talk.samples_N[where] ** 2) for where in (spoken, ~spoken)]
        # Pauses inside turns are short, rooms ring on for a moment.
        assert energy[0] > 4.0 * energy[1]


def test_nobody_overlaps_himself_and_somebody_speaks_however_late_it_gets(config, stock, segments):
    late = Simulator(with_variety(config, late_share=1.0, lull_share=1.0, join_share=1.0, leave_share=1.0), stock)
    for seed in range(30):
        turns = late.make(plan(seed=seed), segments).turns
        assert turns
        for name in segments:
            own = [turn for turn in turns if turn.speaker == name]
            assert all(one.end_s <= other.start_s for one, other in pairwise(own))


def test_who_is_not_there_says_nothing(params):
    style = params.prepare.variety.styles["meeting"]
    presence = Presence((0.0, 30.0, 0.0), (60.0, 60.0, 20.0))
    heard = set()
    for seed in range(20):
        spans = draw_turns(np.random.default_rng(seed), style, presence, 60.0, start_s=0.0, lull_s=99.0)
        heard |= {span.speaker for span in spans}
        assert all(span.start >= 30.0 * 16_000 for span in spans if span.speaker == 1)
        # Who has begun a turn ends it, before he leaves.
        assert all(span.start < 20.5 * 16_000 for span in spans if span.speaker == 2)
    assert heard == {0, 1, 2}


def test_styles_differ_as_they_say(params):
    rhythms = {}
    for name, style in params.prepare.variety.styles.items():
        talks = []
        for seed in range(30):
            presence = Presence((0.0, 0.0, 0.0), (120.0, 120.0, 120.0))
            spans = draw_turns(np.random.default_rng(seed), style, presence, 120.0, start_s=0.0, lull_s=999.0)
            talks.append(([Turn(span.start / 16e3, span.end / 16e3, str(span.speaker)) for span in spans], 120.0))
        rhythms[name] = measure_rhythm(talks)
    share = {name: rhythm.shares for name, rhythm in rhythms.items()}
    assert share["broadcast"]["overlap_share"] < 0.07 < share["meeting"]["overlap_share"] < 0.2
    assert share["sparse"]["speech_share"] < 0.6 < share["broadcast"]["speech_share"]
    apart = rhythm_distances(rhythms["meeting"], rhythms["broadcast"])
    assert apart["turn_s_wasserstein"] > 1.0
    same = rhythm_distances(rhythms["meeting"], rhythms["meeting"])
    assert not any(same.values())


def test_rhythm_counts_gaps_overlaps_and_backchannels():
    turns = [Turn(0.0, 4.0, "a"), Turn(1.0, 1.5, "b"), Turn(3.5, 6.0, "b"), Turn(6.1, 7.0, "b"), Turn(9.0, 10.0, "b")]
    rhythm = measure_rhythm([(turns, 20.0)])
    assert rhythm.distributions["offset_s"].tolist() == [pytest.approx(-0.5)]
    assert rhythm.distributions["pause_s"].tolist() == [pytest.approx(2.0)]
    assert sorted(rhythm.distributions["overlap_s"].tolist()) == [pytest.approx(0.5), pytest.approx(0.5)]
    # 0.1 s between two turns of one speaker is no pause.
    assert sorted(rhythm.distributions["turn_s"].tolist()) == [0.5, 1.0, pytest.approx(3.5), 4.0]
    assert rhythm.shares["speech_share"] == pytest.approx(8.0 / 20.0)
    assert rhythm.shares["overlap_share"] == pytest.approx(1.0 / 8.0)
    assert rhythm.shares["backchannel_share"] == 0.25


@pytest.mark.parametrize("kind", ["close", "room", "far"])
def test_rooms_begin_with_the_direct_sound_and_decay(kind):
    room = image_room(np.random.default_rng(5), kind)
    assert room.responses_PN.shape[0] == PLACES
    assert np.allclose(room.responses_PN[:, 0], 1.0)
    energy_N = (room.responses_PN**2).mean(axis=0)
    third = len(energy_N) // 3
    assert energy_N[-third:].sum() < 0.1 * energy_N[1 : third + 1].sum()


def test_far_mouths_ring_more_than_near_ones_and_headsets_least():
    def late(room):
        return float((room.responses_PN[:, 40:] ** 2).sum(axis=1).mean())

    rng = np.random.default_rng(2)
    rooms = {kind: np.mean([late(image_room(rng, kind)) for _ in range(6)]) for kind in ("close", "room", "far")}
    headset = np.mean([late(headset_room(rng, image_room(rng, "room"))) for _ in range(6)])
    assert headset < rooms["close"] < rooms["room"] < rooms["far"]


def tone(hz, seconds=1.0):
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(int(seconds * 16_000)) / 16_000)).astype(np.float32)


@pytest.mark.parametrize("law", LAWS)
def test_g711_has_256_steps_that_grow_with_the_sample(law):
    table = g711_table(law)
    assert 250 < len(np.unique(table)) <= 256
    samples = np.arange(65536).astype(np.uint16).view(np.int16).astype(np.float64)
    error = np.abs(table - samples)
    loud = np.abs(samples) > 512
    assert (error[loud] <= 0.04 * np.abs(samples[loud])).all()
    assert error[~loud].max() <= 20


def test_a_telephone_keeps_its_band_and_nothing_else():
    def through(hz):
        return float(np.sqrt(np.mean(telephone(tone(hz), "A") ** 2)) / np.sqrt(np.mean(tone(hz) ** 2)))

    assert through(1000.0) == pytest.approx(1.0, abs=0.05)
    assert through(100.0) < 0.05
    assert through(5000.0) < 0.05


@pytest.mark.parametrize("bits_per_s", [10_000, 24_000])
def test_opus_keeps_time_and_length(bits_per_s):
    clicks = np.zeros(32_017, np.float32)
    clicks[8000:12_000] = tone(300.0, 0.25)
    heard = opus(clicks, bits_per_s)
    assert len(heard) == len(clicks)
    loud = np.flatnonzero(np.abs(heard) > 0.1)
    assert abs(int(loud[0]) - 8000) < 200
    assert abs(int(loud[-1]) - 12_000) < 400


def test_recorded_noises_and_rooms_are_used_beside_made_ones(config, tmp_path):
    rng = np.random.default_rng(1)
    (tmp_path / "noises").mkdir()
    (tmp_path / "rooms").mkdir()
    soundfile.write(tmp_path / "noises" / "fan.wav", rng.normal(0, 0.1, 48_000), 16_000)
    for number in range(PLACES):
        response = np.zeros(3000)
        response[100] = 0.5
        response[600:] = 0.2 * rng.normal(0, 1, 2400) * np.exp(-np.arange(2400) / 500)
        soundfile.write(tmp_path / "rooms" / f"hall-{number}.wav", response, 16_000)
    made = make_stock(config)
    more = make_stock(config, noises=read_sounds(tmp_path / "noises"), rooms=read_sounds(tmp_path / "rooms"))
    assert len(more.noises) == len(made.noises) + 1
    assert "recorded" in more.sounds
    assert sum(len(more.rooms[kind]) for kind in ROOM_KINDS) == sum(len(made.rooms[kind]) for kind in ROOM_KINDS) + 1


def test_what_is_no_response_and_an_empty_folder_are_told(config, tmp_path):
    for number in range(PLACES):
        soundfile.write(tmp_path / f"silent-{number}.wav", np.zeros(3000), 16_000)
    with pytest.raises(AudioError, match="expected an impulse response, got silence"):
        make_stock(config, rooms=read_sounds(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected audio files"):
        read_sounds(tmp_path / "empty")


def test_plans_go_on_for_ever_and_begin_as_ever(config):
    names = [f"voice{number}" for number in range(20)]
    first = list(islice(endless_plans(config, "train", names), 50))
    assert first[:10] == list(islice(endless_plans(config, "train", names), 10))
    assert len({one.seed for one in first}) == 50


def test_sounds_are_nobodys_turn(config, stock, segments):
    always = with_variety(config, events_share=1.0, max_events_per_s=50.0, late_share=0.0)
    never = with_variety(config, events_share=0.0, max_events_per_s=50.0, late_share=0.0)
    loud, calm = (Simulator(one, stock).make(plan(), segments) for one in (always, never))
    assert loud.turns == calm.turns
    assert not np.array_equal(loud.samples_N, calm.samples_N)


def test_gated_pauses_are_digital_silence(config, stock, segments):
    gated = with_variety(config, gated_share=1.0, opus_share=0.0, context_share=0.0)
    silent = 0
    for seed in range(6):
        talk = Simulator(gated, stock).make(plan(seed=seed), segments)
        for turn in talk.turns:
            assert talk.samples_N[int(turn.start_s * 16_000) : int(turn.end_s * 16_000)].any()
        silent += int(np.sum(talk.samples_N == 0.0))
    assert silent > 16_000


def test_speech_is_louder_than_what_surrounds_it_however_loud_that_is(config, stock, segments):
    quiet = with_variety(config, level_change_share=0.0, gated_share=0.0, opus_share=0.0)
    din = replace(stock, noises=[noise_N * np.float32(6.0) for noise_N in stock.noises])
    for seed in range(6):
        talk = Simulator(quiet, din).make(plan("far", seed=seed), segments)
        contrast = contrast_db(levels_db(talk.samples_N, 16_000), talk.turns)
        assert contrast is None or contrast > 2.0


def test_quiet_conversations_have_a_converters_noise(config, stock, segments):
    """Steps of 16 bits would make digital silence of what is quieter; what a gate has closed is none."""
    faint = with_variety(config, level_dbfs_range=(-75.0, -75.0), level_change_share=0.0, opus_share=0.0)
    for gated_share in (0.0, 1.0):
        talk = Simulator(with_variety(faint, gated_share=gated_share), stock).make(plan(), segments)
        steps_N = np.round(talk.samples_N * 32_768.0)
        zeros = np.convolve(steps_N == 0.0, np.ones(320), "valid") == 320
        assert zeros.any() == (gated_share == 1.0)
