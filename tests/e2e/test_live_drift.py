"""Live streams leave statistics behind; the watch tells Prometheus of a shift, and answers Alertmanager."""

import json
import os
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest

from benchmarks.server import free_port
from serving.clients.stream import StreamClient
from tests.conftest import REPO, eventually
from voiceflow.adapters.drift_watch import Watch
from voiceflow.adapters.stream_log import FolderLog
from voiceflow.audio import file_digest
from voiceflow.runtime import pretrained_path
from voiceflow.streaming.statistics import NAMES

pytestmark = pytest.mark.e2e


def rows(count, seed, **shifts):
    rng = np.random.default_rng(seed)
    return [
        {"audio_s": 60.0, "condition": "room", "at": int(time.time()), "model": "1", "variant": "champion"}
        | {name: float(10.0 + rng.normal() + shifts.get(name, 0.0)) for name in NAMES}
        for _ in range(count)
    ]


def voiceflow(*arguments, cwd):
    command = [sys.executable, "-m", "voiceflow.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "VOICEFLOW_HOME": str(cwd / "home")}
    environment.pop("MLFLOW_TRACKING_URI", None)  # other tests have set one, through MLflow
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


def test_servers_keep_statistics_of_streams_and_nothing_else(start_server, talk, tmp_path):
    params = (REPO / "params.yaml").read_text().replace("sample_share: 0.25", "sample_share: 1.0")
    (tmp_path / "params.yaml").write_text(params)
    where = tmp_path / "statistics"
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    # The server reads params.yaml of its folder.
    port, grpc = free_port(), free_port()
    command = [sys.executable, "-m", "serving.transformer", "--http_port", str(port), "--grpc_port", str(grpc)]
    command += ["--statistics", str(where), "--speed_limit", "0"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: httpx.get(f"http://127.0.0.1:{port}/health", timeout=20).status_code == 200, "the server")
        for _ in range(3):
            client = StreamClient(f"ws://127.0.0.1:{port}/v1/stream", speed=0.0)
            assert list(client.run_blocking(talk))
            assert client.closed
        eventually(lambda: where.is_dir() and len(FolderLog(where).last(10)) == 3, "statistics of three streams")
        found = FolderLog(where).last(10)
        assert set(found[0]) == {"at", "model", "digest", "variant", "audio_s", *NAMES}
        assert file_digest(pretrained_path()).startswith(found[0]["digest"])
        assert len(found[0]["digest"]) == 16
        assert all(not isinstance(value, list | dict) for value in found[0].values())
        size = sum(path.stat().st_size for path in where.iterdir())
        assert size < 3 * 1000
        assert "voiceflow_observed_streams_total 3" in httpx.get(f"http://127.0.0.1:{port}/metrics").text
    finally:
        process.terminate()
        process.wait()


def test_without_an_address_nothing_is_kept(server):
    text = httpx.get(f"http://127.0.0.1:{server}/metrics").text
    assert "voiceflow_observed_streams_total 0.0" in text


def test_the_command_says_what_drifted_and_exits_by_it(tmp_path):
    log = FolderLog(tmp_path / "log")
    reference = tmp_path / "reference.jsonl"
    reference.write_text("".join(json.dumps(row) + "\n" for row in rows(200, 1)))
    log.add(rows(100, 2))
    arguments = ("drift", "--statistics", str(tmp_path / "log"), "--reference", str(reference))
    done = voiceflow(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no drift in 100 streams" in done.stdout
    log.add(rows(200, 3, level_db=-2.0))
    done = voiceflow(*arguments, "--json", cwd=tmp_path)
    assert done.returncode == 1
    assert [row["name"] for row in json.loads(done.stdout)["columns"] if row["drifted"]] == ["level_db"]
    assert (tmp_path / "reports" / "drift" / "drift.html").is_file()
    missing = voiceflow("drift", "--statistics", str(tmp_path / "none"), "--reference", str(reference), cwd=tmp_path)
    assert missing.returncode == 1
    assert "no statistics of streams" in missing.stderr
    nowhere = voiceflow("drift", "--statistics", str(tmp_path / "log"), cwd=tmp_path)
    assert "there is no champion" in nowhere.stderr


def test_an_alert_trains_once_for_a_model_and_a_slice(tmp_path):
    drifted = {"drifted": True, "enough": True, "model": "3", "num_streams": 200, "columns": []}
    drifted["slice"] = {"name": "telephone", "words": ["bandwidth_hz falls from 6000 to 3400"]}
    calm = {**drifted, "drifted": False, "slice": None}
    verdicts = [calm, drifted]
    said = []
    mark = tmp_path / "trained"
    train = [sys.executable, "-c", f"open({str(mark)!r}, 'a').write('x')"]
    watch = Watch(lambda: verdicts[0], lambda verdict: train, said.append)
    firing = {"alerts": [{"status": "firing", "labels": {"alertname": "VoiceflowDrift"}}]}
    assert watch.alerted(firing) == "no drift any more"
    watch.look()
    assert watch.alerted(firing) == "no drift any more"
    verdicts.pop(0)
    watch.look()
    assert (
        watch.alerted({"alerts": [{"status": "resolved", "labels": {"alertname": "VoiceflowDrift"}}]})
        == "nothing to do"
    )
    assert watch.alerted({"alerts": [{"status": "firing", "labels": {"alertname": "Other"}}]}) == "nothing to do"
    assert watch.alerted(firing) == "training"
    eventually(lambda: mark.exists() and watch.alerted(firing).startswith("trained"), "the training")
    assert watch.alerted(firing).startswith("trained for that already")
    assert mark.read_text() == "x"
    assert Watch(lambda: drifted, None, said.append).alerted(firing) == "no drift any more"
    assert any("training for telephone" in sentence for sentence in said)


def test_the_watch_serves_metrics_and_answers_nonsense(tmp_path):
    log = FolderLog(tmp_path / "log")
    reference = tmp_path / "reference.jsonl"
    reference.write_text("".join(json.dumps(row) + "\n" for row in rows(200, 1)))
    log.add(rows(100, 2, snr_db=-3.0))
    port = free_port()
    command = [sys.executable, "-m", "voiceflow.cli", "drift", "--watch", "--every", "1", "--port", str(port)]
    command += ["--statistics", str(tmp_path / "log"), "--reference", str(reference)]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "VOICEFLOW_HOME": str(tmp_path / "home")}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    try:

        def seen():
            text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=20).text
            return text if 'voiceflow_drift_detected{slice="unknown"} 1.0' in text else ""

        text = eventually(seen, "the drift")
        assert 'voiceflow_drift_distance{statistic="snr_db"}' in text
        assert "voiceflow_drift_streams 100.0" in text
        assert httpx.post(f"http://127.0.0.1:{port}/alerts", content=b"{").status_code == 400
        assert httpx.post(f"http://127.0.0.1:{port}/alerts", content=b"[]").status_code == 400
        assert httpx.get(f"http://127.0.0.1:{port}/else").status_code == 404
        firing = {"alerts": [{"status": "firing", "labels": {"alertname": "VoiceflowDrift"}}]}
        assert "training is off" in httpx.post(f"http://127.0.0.1:{port}/alerts", json=firing).text
    finally:
        process.terminate()
        process.wait()
