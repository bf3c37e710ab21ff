import numpy as np
import pytest
from conftest import small

from voiceflow.simulation.acoustics import HEADSET
from voiceflow.simulation.conversations import ConversationPlan, plan_conversations
from voiceflow.simulation.heldout import simulate
from voiceflow.simulation.sounds import KINDS, background_events, make_sound, textures, tunes
from voiceflow.simulation.speech import Spans, _quiet, _with_context
from voiceflow.turns import speakers_in_order


def plan(split="train", condition="close", **changes):
    return ConversationPlan("talk", split, condition, ("ann", "bob", "cem"), (1, 2, 3), **changes)


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
    stock = {kind: [make_sound(np.random.default_rng(number), kind) for number in range(3)]}
    for sounds in (None, stock):
        first, second = (
            background_events(np.random.default_rng(7), 160_000, per_s=3.0, sounds=sounds).astype(np.float64)
            for _ in range(2)
        )
        assert np.array_equal(first, second)
        assert np.isfinite(first).all()
        assert 1e-4 < np.sqrt(np.mean(first**2)) < 3.0


def test_held_out_conversations_are_the_bits_that_released_figures_are_of(params, segments):
    config = small(params).prepare
    talk = simulate(plan("test"), segments, config)
    samples = [0.000596, -0.12921, 0.200355, -0.00278, 0.000271, -0.076717, 0.024008, 0.000256]
    assert talk.samples_N[::24_000] == pytest.approx(samples, abs=2e-6)
    first = [(turn.start_s, turn.end_s, turn.speaker) for turn in talk.turns[:2]]
    assert first == [(0.765437, 3.638063, "ann"), (3.87225, 5.640813, "ann")]


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
