import numpy as np
import pytest
from conftest import small

from voiceflow.simulation.acoustics import HEADSET, mix
from voiceflow.simulation.conversations import ConversationPlan, plan_conversations, simulate
from voiceflow.simulation.sounds import KINDS, background_events, textures, tunes
from voiceflow.simulation.speech import Segment, Spans, _quiet, _with_context
from voiceflow.turns import speakers_in_order


@pytest.fixture(scope="module")
def segments():
    """Tones in place of voices: 0.5 s each, with 0.1 s of faint noise around."""
    rng = np.random.default_rng(0)
    time_s = np.arange(8000) / 16_000
    rows = {}
    for number, name in enumerate(("ann", "bob", "cem")):
        tone = np.sin(2 * np.pi * 200 * (number + 1) * time_s) * 8000
        whole = np.concatenate([rng.normal(0, 50, 1600), tone, rng.normal(0, 50, 1600)])
        rows[name] = [Segment(whole.astype(np.int16), 1600, 9600)]
    return rows


def plan(split="train", condition="close", **changes):
    return ConversationPlan("talk", split, condition, ("ann", "bob", "cem"), (1, 2, 3), **changes)


def test_held_out_conversations_do_not_depend_on_what_training_hears(params, segments):
    config = small(params).prepare
    quiet = config.model_copy(update={"variety": config.variety.model_copy(update={"events_share": 0.0})})
    sounds = [np.full(4000, 900, np.int16)]
    first, second = simulate(plan("test"), segments, config, sounds), simulate(plan("test"), segments, quiet)
    assert np.array_equal(first.samples_N, second.samples_N)
    assert first.turns == second.turns


def test_training_conversations_hold_sounds_that_are_nobodys_turn(params, segments):
    config = small(params).prepare
    always = config.variety.model_copy(update={"events_share": 1.0, "max_events_per_s": 50.0, "late_share": 0.0})
    never = always.model_copy(update={"events_share": 0.0})
    loud, calm = (
        simulate(plan(), segments, config.model_copy(update={"variety": variety})) for variety in (always, never)
    )
    assert loud.turns == calm.turns
    assert not np.array_equal(loud.samples_N, calm.samples_N)


def test_headsets_are_for_training_only(params):
    config = params.prepare
    conditions = {
        split: {one.condition for one in plan_conversations(config, split, ["a", "b", "c", "d"], 60)}
        for split in ("train", "test")
    }
    assert HEADSET in conditions["train"]
    assert HEADSET not in conditions["test"]


def test_a_speaker_who_is_away_says_nothing_and_comes_back(params, segments):
    config = params.prepare.model_copy(update={"conversation_s": 90.0})
    turns = simulate(plan("test", away_s=(20.0, 60.0)), segments, config).turns
    his = [turn for turn in turns if turn.speaker == "ann"]
    assert not [turn for turn in his if 25.0 < turn.start_s < 60.0]
    assert [turn for turn in his if turn.start_s >= 60.0]
    assert set(speakers_in_order(turns)) == {"ann", "bob", "cem"}


@pytest.mark.parametrize("kind", KINDS)
def test_sounds_follow_from_the_seed_and_are_finite(kind):
    recorded = [np.full(8000, 300, np.int16)] if kind == "recorded" else []
    first, second = (
        background_events(np.random.default_rng(7), 160_000, recorded, per_s=3.0).astype(np.float64) for _ in range(2)
    )
    assert np.array_equal(first, second)
    assert np.isfinite(first).all()
    assert 1e-4 < np.sqrt(np.mean(first**2)) < 3.0


@pytest.mark.parametrize("make", [textures, tunes])
def test_noises_of_training_follow_from_the_seed_and_are_finite(make):
    first, second = (make(np.random.default_rng(7), 80_000) for _ in range(2))
    assert np.array_equal(first, second)
    assert len(first) == 80_000
    assert np.sqrt(np.mean(first**2)) == pytest.approx(1.0, abs=0.01)


def test_context_ends_where_the_neighbouring_speech_begins():
    piece = np.zeros(40_000, np.float32)
    rows = _with_context(piece, [(4000, 8000), (10_000, 20_000)])
    assert [(len(one.samples_N), one.core_start, one.core_end) for one in rows] == [
        (4000 + 4000 + 2000, 4000, 8000),
        (2000 + 10_000 + 8000, 2000, 12_000),
    ]


def test_only_stretches_without_any_speech_count_as_quiet():
    scores = np.array([0.01] * 12 + [0.3] + [0.01] * 4 + [0.9] * 5 + [0.02] * 9, np.float32)
    assert _quiet(scores, len(scores) * 512) == [(512, 11 * 512), (23 * 512, 30 * 512)]
    assert Spans([], _quiet(scores[:5], 5 * 512)).quiet == []


def test_gated_pauses_are_digital_silence():
    voice = np.zeros(64_000, np.float32)
    voice[20_000:30_000] = np.sin(np.arange(10_000) / 10)
    mixed = mix(
        np.random.default_rng(1), {"ann": voice}, condition="close", level_dbfs_range=(-20.0, -20.0), gated=True
    )
    assert not mixed[:14_000].any()
    assert not mixed[60_000:].any()
    assert mixed[20_000:30_000].any()


def test_somebody_speaks_however_late_it_gets(params, segments):
    config = small(params).prepare
    late = config.variety.model_copy(update={"late_share": 1.0, "lull_share": 1.0})
    for seed in range(20):
        one = ConversationPlan("talk", "train", "close", ("ann", "bob"), (1, 2, seed))
        assert simulate(one, segments, config.model_copy(update={"variety": late})).turns
