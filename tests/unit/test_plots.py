import numpy as np
import pytest

from voiceflow.errors import ConfigError
from voiceflow.stages.plots import check_plot, plot_turns
from voiceflow.turns import Turn


@pytest.mark.parametrize("duration_s", [0.0, 5.0, 150.0])
def test_turns_are_drawn_for_any_length(tmp_path, duration_s):
    samples = np.random.default_rng(0).normal(0, 0.1, int(duration_s * 16_000)).astype(np.float32)
    turns = [Turn(0.5, 3.0, "speaker_0"), Turn(2.0, 4.0, "Ada")] if duration_s else []
    plot_turns(tmp_path / "turns.png", samples, turns, title="talk")
    assert (tmp_path / "turns.png").read_bytes()[:4] == b"\x89PNG"


def test_what_cannot_be_drawn_is_told_before_the_work(tmp_path):
    with pytest.raises(ConfigError, match="ends in"):
        check_plot(tmp_path / "turns.bmp", 1)
    with pytest.raises(ConfigError, match="a folder for 2 recordings"):
        check_plot(tmp_path / "turns.png", 2)
