from pathlib import Path

import pytest

from voiceflow.config import load_params
from voiceflow.errors import ConfigError

REPO = Path(__file__).parents[2]


def test_params_and_profiles_load_and_no_gate_differs_between_profiles(params):
    for profile in ("quick", "full"):
        other = load_params(REPO / "params.yaml", profile=profile)
        assert other.evaluate == params.evaluate
        assert other.latency == params.latency
        assert other.export == params.export
        assert other.promote == params.promote


def test_the_package_carries_the_released_params():
    released = REPO / "voiceflow" / "pretrained" / "params.yaml"
    assert released.read_bytes() == (REPO / "params.yaml").read_bytes()


def test_an_unknown_key_is_named_with_its_path(tmp_path):
    text = (REPO / "params.yaml").read_text().replace("batch_size:", "batchsize:")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"train\.batch_?size"):
        load_params(tmp_path / "params.yaml")


def test_an_unknown_profile_lists_those_there_are():
    with pytest.raises(ConfigError, match=r"full.*quick"):
        load_params(REPO / "params.yaml", profile="fast")


def test_a_t4_figure_that_nobody_measured_is_unmeasured(params):
    assert params.latency.max_p99_ms["t4"] == "unmeasured"


def test_the_quick_profile_ends_by_steps(params):
    """A busy machine trains the same model, later."""
    quick = load_params(REPO / "params.yaml", profile="quick")
    assert quick.train.max_minutes is None
    assert quick.train.steps < params.train.steps
