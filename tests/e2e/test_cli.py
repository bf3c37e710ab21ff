"""The commands as a user types them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.server import free_port
from voiceflow.audio import write_flac
from voiceflow.streaming.batch import diarize
from voiceflow.turns import read_rttm

pytestmark = pytest.mark.e2e
REPO = Path(__file__).parents[2]


def voiceflow(*arguments, cwd=REPO):
    command = [sys.executable, "-m", "voiceflow.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_diarize_and_score_on_meetings(meetings, tmp_path):
    result = voiceflow("diarize", *meetings, "--rttm", tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(list(tmp_path.glob("*.rttm"))) == len(meetings)
    for path in meetings:
        turns = read_rttm(tmp_path / f"{path.stem}.rttm").get(path.stem, [])
        assert all(0 <= turn.start_s < turn.end_s <= 30.01 for turn in turns)
    figures = json.loads(voiceflow("score", meetings[0].parent, tmp_path, "--json").stdout)
    assert len(figures["recordings"]) == len(meetings)
    assert 0 < figures["overall"]["der"] < 2


def test_a_bad_file_is_told_and_the_good_one_is_done(tmp_path, talk):
    write_flac(tmp_path / "good.flac", talk)
    (tmp_path / "bad.wav").write_text("this is text")
    result = voiceflow("diarize", tmp_path / "bad.wav", tmp_path / "good.flac")
    assert result.returncode == 1
    assert "SPEAKER good" in result.stdout
    assert "cannot be decoded" in result.stderr
    assert "Traceback" not in result.stderr


def test_known_voices_are_named_and_turns_are_drawn(tmp_path, talk, model):
    first = diarize([talk], model, latency_s=1.04)[0][0]
    alone = talk[int(first.start_s * 16_000) : int(first.end_s * 16_000)]
    (tmp_path / "enrol" / "Ada").mkdir(parents=True)
    write_flac(tmp_path / "enrol" / "Ada" / "a.flac", np.concatenate([alone] * 4))
    write_flac(tmp_path / "enrol" / "Mute.flac", np.zeros(16_000, np.float32))
    write_flac(tmp_path / "talk.flac", talk)
    result = voiceflow(
        "diarize", tmp_path / "talk.flac", "--speakers", tmp_path / "enrol", "--plot", tmp_path / "turns.png", "--json"
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["turns"][0]["speaker"] == "Ada"
    assert "not enrolled: Mute: expected at least 2 s" in " ".join(result.stderr.split())
    assert (tmp_path / "turns.png").stat().st_size > 5000


def test_samples_on_standard_input_are_streamed_as_they_come(server, talk, model):
    pcm = (np.clip(talk, -1, 1) * 32767).astype("<i2").tobytes()
    command = [sys.executable, "-m", "voiceflow.cli", "stream", "-", "--json"]
    command += ["--url", f"ws://127.0.0.1:{server}/v1/stream"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=False) as process:
        process.stdin.write(pcm[:96_001])
        process.stdin.flush()
        first = json.loads(process.stdout.readline())  # before the rest is there
        process.stdin.write(pcm[96_001:])
        process.stdin.close()
        rows = [json.loads(line) for line in process.stdout]
    assert first["type"] == "segment"
    assert rows[-1]["type"] == "figures"
    assert rows[-1]["audio_s"] == pytest.approx(len(talk) / 16_000)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["diarize", "x.wav", "--latency", "0.5"], 2, "0.32, 0.64, 1.04"),
        (["diarize", "x.wav", "--model", "nowhere.onnx"], 1, "no such model"),
        (["diarize"], 2, "Missing argument"),
        (["diarize", "x.wav", "--speakers", "nowhere"], 1, "expected a folder"),
        (["diarize", "x.wav", "--plot", "turns.bmp"], 2, "ends in .png"),
        (["stage", "dance"], 2, "dance"),
        (["stream", "-", "--url", "ws://127.0.0.1:9/v1/stream"], 1, "voiceflow serve"),
        (["run", "--profile", "fast"], 2, "full"),
        (["score", "a.rttm", "b.rttm"], 1, "no such file"),
    ],
)
def test_wrong_usage_is_told(arguments, code, words):
    result = voiceflow(*arguments)
    assert result.returncode == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_demo_beside_another_server_says_so(server):
    done = voiceflow("bench", "demo", "--port", str(server))
    assert done.returncode == 1
    assert f"port {server} is taken" in done.stderr
    assert "make run PORT=" in done.stderr


def test_without_a_run_the_shipped_model_is_shown_live(tmp_path):
    """What `make run` ends with where a step of the pipeline failed."""
    port = free_port(neighbours=2)
    env = {**os.environ, "VOICEFLOW_HOME": str(tmp_path), "PYTHONPATH": str(REPO)}
    env.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "voiceflow.cli", "bench", "demo", "--port", str(port)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert "serving voiceflow-diarizer" in done.stdout
    [der] = re.findall(r"DER against the reference: ([\d.]+) %", done.stdout)
    assert float(der) < 25.0
