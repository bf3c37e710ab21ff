import json

import numpy as np
import pytest

from voiceflow.adapters.drift_report import EvidentlyComparer
from voiceflow.errors import DataError
from voiceflow.stages.drift import describe, drift, holm
from voiceflow.streaming.statistics import NAMES


def streams(count, seed, condition="room", **shifts):
    """Statistics of streams: each around a mean of its own, moved by so many standard deviations."""
    rng = np.random.default_rng(seed)
    return [
        {"audio_s": 60.0, "condition": condition}
        | {name: float(10.0 + rng.normal() + shifts.get(name, 0.0)) for name in NAMES}
        for _ in range(count)
    ]


@pytest.fixture
def config(params):
    return params.drift


def test_what_has_not_changed_raises_no_alarm_and_what_has_is_named(config, tmp_path):
    reference = streams(150, 1) + streams(150, 2, "telephone", bandwidth_hz=-3.0)
    window = streams(100, 3) + streams(100, 4, "telephone", bandwidth_hz=-3.0)
    same = drift(config, reference, window, None, EvidentlyComparer())
    assert not same["drifted"]
    assert same["slice"] is None
    verdict = drift(config, reference, streams(200, 5, bandwidth_hz=-3.0), tmp_path, EvidentlyComparer(), model="7")
    assert [row["name"] for row in verdict["columns"] if row["drifted"]] == ["bandwidth_hz"]
    assert verdict["slice"]["name"] == "telephone"
    assert verdict["slice"]["words"][0].startswith("bandwidth_hz falls from")
    assert "like telephone" in describe(verdict)
    assert json.loads((tmp_path / "drift.json").read_text())["model"] == "7"
    assert "bandwidth_hz" in (tmp_path / "drift.html").read_text()
    assert (tmp_path / "evidently.json").is_file()


def test_streams_like_no_condition_are_of_an_unknown_slice(config):
    verdict = drift(config, streams(200, 1), streams(200, 2, snr_db=5.0), None, EvidentlyComparer())
    assert verdict["drifted"]
    assert verdict["slice"]["name"] == "unknown"


def test_a_change_that_is_sure_but_tiny_is_none(config):
    large = config.model_copy(update={"window_streams": 4000})
    verdict = drift(large, streams(4000, 1), streams(4000, 2, snr_db=0.15), None, EvidentlyComparer())
    assert not verdict["drifted"]
    assert min(row["p_value"] for row in verdict["columns"]) < 1e-4


def test_too_few_or_too_short_streams_say_nothing(config):
    few = drift(config, streams(200, 1), streams(config.min_streams - 1, 2, snr_db=9.0), None, EvidentlyComparer())
    assert not few["enough"]
    assert not few["drifted"]
    short = [row | {"audio_s": 2.0} for row in streams(200, 2, snr_db=9.0)]
    assert not drift(config, streams(200, 1), short, None, EvidentlyComparer())["enough"]
    with pytest.raises(DataError, match="--set-reference"):
        drift(config, streams(3, 1), streams(200, 2), None, EvidentlyComparer())


def test_holms_thresholds_grow_until_the_first_that_holds():
    third = pytest.approx(0.01 / 3)
    assert holm({"a": 1e-6, "b": 0.004, "c": 0.2, "d": 0.9}, 0.01) == {"a": 0.0025, "b": third, "c": third, "d": third}
    assert holm({"a": 1e-6, "b": 1e-5}, 0.01) == {"a": 0.005, "b": 0.01}
