"""The commands as a user types them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from voiceflow.audio import write_flac
from voiceflow.turns import read_rttm

pytestmark = pytest.mark.e2e
REPO = Path(__file__).parents[2]


def voiceflow(*arguments, cwd=REPO):
    command = [sys.executable, "-m", "voiceflow.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_diarize_and_score_on_real_meetings(excerpts, tmp_path):
    result = voiceflow("diarize", *excerpts, "--rttm", tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(list(tmp_path.glob("*.rttm"))) == len(excerpts)
    for path in excerpts:
        turns = read_rttm(tmp_path / f"{path.stem}.rttm").get(path.stem, [])
        assert all(0 <= turn.start_s < turn.end_s <= 30.01 for turn in turns)
    figures = json.loads(voiceflow("score", excerpts[0].parent, tmp_path, "--json").stdout)
    assert len(figures["recordings"]) == len(excerpts)
    assert 0 < figures["overall"]["der"] < 2


def test_a_bad_file_is_told_and_the_good_one_is_done(tmp_path, talk):
    write_flac(tmp_path / "good.flac", talk)
    (tmp_path / "bad.wav").write_text("this is text")
    result = voiceflow("diarize", tmp_path / "bad.wav", tmp_path / "good.flac")
    assert result.returncode == 1
    assert "SPEAKER good" in result.stdout
    assert "cannot be decoded" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["diarize", "x.wav", "--latency", "0.5"], 2, "0.32, 0.64, 1.04"),
        (["diarize", "x.wav", "--model", "nowhere.onnx"], 1, "no such model"),
        (["diarize"], 2, "Missing argument"),
        (["stage", "dance"], 2, "dance"),
        (["run", "--profile", "fast"], 2, "full"),
        (["score", "a.rttm", "b.rttm"], 1, "no such file"),
    ],
)
def test_wrong_usage_is_told(arguments, code, words):
    result = voiceflow(*arguments)
    assert result.returncode == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr
