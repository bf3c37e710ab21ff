import numpy as np
import pytest
import torch

from voiceflow.config import ModelConfig
from voiceflow.errors import ModelError
from voiceflow.models.diarizer import ATTENTION_BLOCK, Diarizer, combine
from voiceflow.stages.dataset import read_recordings, read_samples, read_turns
from voiceflow.stages.train import train
from voiceflow.training.data import LOG_FLOOR, BatchSampler, make_example
from voiceflow.training.grow import grow


@pytest.fixture(scope="module")
def tiny(params) -> ModelConfig:
    return params.model.model_copy(
        update={"hidden": 16, "value_dims": 8, "key_dims": 4, "embedding_dims": 8, "num_layers": 1}
    )


@pytest.fixture(scope="module")
def schedule(params):
    changes = {"steps": 6, "batch_size": 2, "chunk_s": 4.0, "long_chunk_s": 8.0, "warmup_steps": 1, "bf16": False}
    changes |= {
        "evaluate_every_steps": 3,
        "checkpoint_every_steps": 1,
        "init_from": "scratch",
        "num_threads": 1,
        "num_noises": 3,
    }
    return params.train.model_copy(update=changes)


class Killed(Exception):
    pass


def test_a_run_that_was_killed_goes_on_exactly(params, tiny, schedule, dataset, tmp_path):
    whole = train(schedule, tiny, params.decision, dataset, tmp_path / "whole")

    def kill(metrics):
        if metrics.step in (2, 5) and not (tmp_path / f"killed{metrics.step}").exists():
            (tmp_path / f"killed{metrics.step}").touch()
            raise Killed

    for _ in range(2):
        with pytest.raises(Killed):
            train(schedule, tiny, params.decision, dataset, tmp_path / "parts", watch=kill)
    parts = train(schedule, tiny, params.decision, dataset, tmp_path / "parts", watch=kill)
    assert parts["steps"] == whole["steps"] == 6
    first, second = (torch.load(tmp_path / name / "weights.pt") for name in ("whole", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "whole" / "curve.png").stat().st_size > 1000
    steps = [
        [row.split(",")[0] for row in (tmp_path / name / "curve.csv").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert steps[0] == steps[1] == ["step", "1", "2", "3", "4", "5", "6"]


def test_the_network_streams_as_it_runs_offline(tiny):
    torch.manual_seed(0)
    net = Diarizer(tiny).eval()
    features, lookahead = torch.randn(2, 40, 640) - 8, torch.tensor([3, 12])
    with torch.no_grad():
        whole, final = net(features, net.initial_state(2), lookahead)
        state, steps = net.initial_state(2), []
        for step in range(40):
            activity, state = net(features[:, step : step + 1], state, lookahead)
            steps.append(activity)
    assert torch.allclose(torch.cat(steps, dim=1), whole, atol=1e-5)
    assert torch.allclose(state, final, atol=1e-4)
    assert whole[0, :3].abs().max() == 0
    assert whole[1, :12].abs().max() == 0


def test_answers_depend_on_the_lookahead_and_nothing_beyond(tiny):
    torch.manual_seed(0)
    net = Diarizer(tiny).eval()
    features = torch.randn(1, 30, 640) - 8
    changed = features.clone()
    changed[:, 20:] += 3.0
    with torch.no_grad():
        first, _ = net(features, net.initial_state(1), torch.tensor([7]))
        second, _ = net(changed, net.initial_state(1), torch.tensor([7]))
    assert torch.equal(first[:, :20], second[:, :20])
    assert not torch.equal(first[:, 20:], second[:, 20:])


def test_steps_scored_together_in_many_blocks_are_answered_as_one_by_one(tiny):
    torch.manual_seed(1)
    net = Diarizer(tiny).eval()
    features = torch.randn(1, 2 * ATTENTION_BLOCK + 9, 640) - 8
    with torch.no_grad():
        whole, _ = net(features, net.initial_state(1), torch.tensor([7]))
        state, pieces = net.initial_state(1), []
        for piece in features.split([1, ATTENTION_BLOCK - 1, ATTENTION_BLOCK + 1, 8], dim=1):
            activity, state = net(piece, state, torch.tensor([7]))
            pieces.append(activity)
    assert torch.allclose(torch.cat(pieces, dim=1), whole, atol=1e-5)


def test_a_grown_network_answers_nearly_as_before(tiny):
    torch.manual_seed(2)
    small = Diarizer(tiny).eval()
    larger = tiny.model_copy(update={"hidden": 24, "num_layers": 2})
    large = Diarizer(larger).eval()
    features, lookahead = torch.randn(1, 60, 640) - 8, torch.tensor([7])
    with torch.no_grad():
        expected, _ = small(features, small.initial_state(1), lookahead)
        random, _ = large(features, large.initial_state(1), lookahead)
        large.load_state_dict(grow(small.state_dict(), tiny, larger, seed=0))
        grown, _ = large(features, large.initial_state(1), lookahead)
    assert (grown - expected).abs().mean() < 0.25 * (random - expected).abs().mean()


def test_a_shape_that_cannot_be_grown_is_refused_by_name(tiny):
    weights = Diarizer(tiny).state_dict()
    with pytest.raises(ModelError, match=r"model\.num_slots"):
        grow(weights, tiny, tiny.model_copy(update={"num_slots": 4}), seed=0)
    with pytest.raises(ModelError, match=r"model\.hidden"):
        grow(weights, tiny, tiny.model_copy(update={"hidden": 8}), seed=0)


def test_combining_gives_probabilities_that_count_the_speakers():
    who = torch.tensor([[0.7, 0.2, 0.1]])
    one = combine(who, torch.tensor([1.0]), torch.tensor([0.0]))
    two = combine(who, torch.tensor([1.0]), torch.tensor([1.0]))
    assert torch.allclose(one, who)
    # drawn without replacement: first, or second after one of the others
    expected = 0.2 + 0.7 * 0.2 / 0.3 + 0.1 * 0.2 / 0.9
    assert two[0, 1].item() == pytest.approx(expected, abs=1e-3)
    assert two.sum().item() == pytest.approx(2.0, abs=0.01)


def test_batches_follow_from_seed_and_step(dataset):
    recording = read_recordings(dataset, "train")[0]
    example = make_example(recording.name, read_samples(dataset, recording), read_turns(dataset, recording))
    first = BatchSampler([example], seed=1).draw(5, batch_size=3, num_steps=20)
    again = BatchSampler([example], seed=1).draw(5, batch_size=3, num_steps=20)
    other = BatchSampler([example], seed=1).draw(6, batch_size=3, num_steps=20)
    assert torch.equal(first.features_BKF, again.features_BKF)
    assert not torch.equal(first.features_BKF, other.features_BKF)
    assert np.asarray(first.active_BKS).shape == (3, 20, 8)


def test_excerpts_in_which_nobody_speaks_hold_other_sounds(dataset):
    recording = read_recordings(dataset, "train")[0]
    example = make_example(recording.name, read_samples(dataset, recording), read_turns(dataset, recording))
    noise_TF = np.full((400, 640), LOG_FLOOR, np.float16)
    noise_TF[100:200] = -3.0
    sampler = BatchSampler([example], seed=3, noises=[noise_TF])
    batch = sampler.draw(0, batch_size=400, num_steps=300)
    nobody = ~batch.active_BKS.any(dim=2).any(dim=1)
    whole = example.active_TS.any(axis=1).mean()
    assert 0.005 < nobody.float().mean() < 0.1 < whole
    assert torch.isfinite(batch.features_BKF).all()
    spread = batch.features_BKF[nobody].mean(dim=2).std(dim=1)
    assert (spread > 1.0).any()
