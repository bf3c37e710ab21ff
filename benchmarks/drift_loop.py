"""The whole loop, unattended: live streams shift, Prometheus and Alertmanager tell of it, the training pipeline runs for the
slice that was named, gates judge what it made, and it becomes challenger or champion.

python -m benchmarks.drift_loop [FOLDER]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import onnx
import yaml

from benchmarks import bad_models
from benchmarks.promotions import MlflowServer
from benchmarks.rollouts import prometheus
from benchmarks.server import Server, free_port, wait_for
from benchmarks.workplace import PROFILE, small_repository
from serving.clients.stream import StreamClient
from voiceflow.audio import FloatArray, file_digest
from voiceflow.config import load_params
from voiceflow.contract import MODEL_FILE, REFERENCE_FILE
from voiceflow.corpora.read import read_utterances
from voiceflow.runtime import StepModel
from voiceflow.simulation.conversations import ConversationPlan
from voiceflow.simulation.heldout import simulate
from voiceflow.simulation.speech import load_vad, speaker_segments
from voiceflow.stages.dataset import read_summary
from voiceflow.stages.scoring import write_reference

REPO = Path(__file__).parent.parent
PATIENCE_S = 900.0
"""For one step of the loop; what is awaited is evidence, this only ends a loop that is broken."""
CALLERS = 4


class Broken(Exception):
    """A step did not come, or not as it should."""


class Loop:
    """Everything that runs: MLflow, a server, the drift watch, Prometheus, Alertmanager.

    Args:
        folder: All of it.
        say: Told of each step.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = print) -> None:
        self.folder = folder
        self.repo = folder / "repo"
        self.log = folder / "statistics"
        self.say = say
        self.mlflow = MlflowServer(folder / "mlflow")
        self.port = free_port()
        self.steps: list[dict[str, Any]] = []
        self._stack = ExitStack()
        self._began_s = time.monotonic()
        self.env = {
            "VOICEFLOW_HOME": str(folder / "home"),
            "MLFLOW_TRACKING_URI": self.mlflow.url,
            "PYTHONPATH": str(REPO),
            "PYTHONWARNINGS": "ignore",
        }

    # setting the scene

    def set_up(self) -> None:
        """A repository with data, a registry whose champion has poor thresholds, and all servers."""
        small_repository(self.repo, env=self.env)
        self.mlflow.start()
        self._stack.callback(self.mlflow.kill)
        os.environ |= {name: self.env[name] for name in ("VOICEFLOW_HOME", "MLFLOW_TRACKING_URI")}
        self._voiceflow("stage", "prepare")
        self._register_champion()
        flags = ["--model", "models:/voiceflow-diarizer@champion", "--statistics", str(self.log), "--speed_limit", "0"]
        os.environ["PYTHONPATH"] = str(REPO)
        before = Path.cwd()
        os.chdir(self.repo)  # the server reads params.yaml of its folder
        try:
            self.server = self._stack.enter_context(Server(*flags, env=self.env))
        finally:
            os.chdir(before)
        command = [sys.executable, "-m", "voiceflow.cli", "drift", "--watch", "--retrain", "--every", "1"]
        command += ["--port", str(self.port), "--statistics", str(self.log), "--profile", PROFILE]
        self._stack.enter_context(running(command, self.folder / "watch.log", cwd=self.repo, env=self.env))
        self._await("the drift watch answers", lambda: self._get(f"http://127.0.0.1:{self.port}/health") is not None)
        alertmanager = self._stack.enter_context(alert_manager(self.folder / "alertmanager", self.port))
        self.alerts = f"http://127.0.0.1:{alertmanager}/api/v2/alerts"
        rules = self.folder / "rules.yaml"
        manifest = yaml.safe_load((REPO / "manifests/components/monitoring/rules.yaml").read_text(encoding="utf-8"))
        rules.write_text(yaml.safe_dump({"groups": manifest["spec"]["groups"]}), encoding="utf-8")
        self.prometheus = self._stack.enter_context(
            prometheus(
                self.folder / "prometheus", self.port, self.server.http_port, rules=rules, alertmanager=alertmanager
            )
        )

    def _register_champion(self) -> None:
        from voiceflow.adapters.registry import MlflowRegistry

        dataset = self.repo / "data" / "prepared"
        model = bad_models.good(str(read_summary(dataset)["revision"]))
        bad_models._worse(model)
        champion = self.folder / "champion"
        champion.mkdir()
        onnx.save(model, str(champion / MODEL_FILE))
        write_reference(champion / REFERENCE_FILE, dataset, StepModel(champion / MODEL_FILE), latency_s=1.04)
        registry = MlflowRegistry()
        version = registry.register(champion, tags={"digest": file_digest(champion / MODEL_FILE)}, run_id=None)
        registry.set_alias("champion", version)
        self.champion = version

    # the loop

    def run(self) -> list[dict[str, Any]]:
        """All steps in their order; each with the evidence for it and when it came.

        Raises:
            Broken: One did not come.
        """
        self._speak(("close", "room", "far", "telephone"), until=lambda: self._metric("voiceflow_drift_streams") >= 40)
        self._step("streams as they were: compared, and nothing found", self._metric("voiceflow_drift_detected") == 0.0)
        self._speak(("telephone",), until=lambda: self._metric('voiceflow_drift_detected{slice="telephone"}') == 1.0)
        self._step("telephone calls alone: drift, named telephone", True)
        self._await("Prometheus's alert fires in Alertmanager", self._is_alerted)
        self._step("every query of the drift dashboard has data", not self._empty_queries())
        self._await("training has begun for that slice", lambda: bool(self._training_runs()))
        reason = self._training_runs()[0].data.tags["reason"]
        self._step(f"its MLflow run says why: {reason[:90]}", "like telephone" in reason)
        self._await("gates have judged the model, and it has an alias", lambda: self._new_version() is not None)
        alias, version = self._new_version() or ("", "")
        tags = self._registry().tags_of(version)
        self._step(f"version {version} is {alias}; it was trained by that run", version != self.champion and bool(tags))
        return self.steps

    def close(self) -> None:
        """Stop everything."""
        self._stack.close()

    def _speak(self, conditions: tuple[str, ...], *, until: Callable[[], bool]) -> None:
        """Callers stream conversations, one after another, until something is seen."""
        talks = self._talks(conditions)
        deadline_s = time.monotonic() + PATIENCE_S

        def call(first: int) -> int:
            number = 0
            while not until() and time.monotonic() < deadline_s:
                client = StreamClient(f"ws://127.0.0.1:{self.server.http_port}/v1/stream", speed=0.0)
                list(client.run_blocking(talks[(first + CALLERS * number) % len(talks)]))
                number += 1
            return number

        with ThreadPoolExecutor(CALLERS) as executor:
            self.say(f"  {sum(executor.map(call, range(CALLERS)))} streams of {', '.join(conditions)}")
        if not until():
            raise Broken(f"nothing came of streams of {conditions} in {PATIENCE_S:.0f} s")

    def _talks(self, conditions: tuple[str, ...]) -> list[FloatArray]:
        config = load_params(self.repo / "params.yaml").prepare
        utterances = read_utterances(self.repo / "data" / "voices")
        vad = load_vad()
        segments = {name: speaker_segments(spans, vad, max_s=60.0)[0] for name, spans in utterances.items()}
        names = [name for name, found in segments.items() if found]
        talks = []
        for number in range(48):
            chosen = tuple(names[(number * 5 + place * 7) % len(names)] for place in range(2 + number % 2))
            plan = ConversationPlan(
                f"live-{number}", "test", conditions[number % len(conditions)], chosen, (77, number)
            )
            talks.append(simulate(plan, {name: segments[name] for name in chosen}, config).samples_N)
        return talks

    # evidence

    def _metric(self, name: str) -> float:
        text = self._get(f"http://127.0.0.1:{self.port}/metrics") or ""
        return max((float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name)), default=-1.0)

    def _empty_queries(self) -> list[str]:
        board = REPO / "manifests/components/monitoring/dashboards/drift.json"
        panels = json.loads(board.read_text(encoding="utf-8"))["panels"]
        queries = [target["expr"] for panel in panels for target in panel["targets"]]
        answers = [httpx.get(f"{self.prometheus}/api/v1/query", params={"query": query}).json() for query in queries]
        return [
            query for query, answer in zip(queries, answers, strict=True) if not answer.get("data", {}).get("result")
        ]

    def _is_alerted(self) -> bool:
        found = json.loads(self._get(self.alerts) or "[]")
        return any(alert["labels"]["alertname"] == "VoiceflowDrift" for alert in found)

    def _registry(self) -> Any:
        from voiceflow.adapters.registry import MlflowRegistry

        return MlflowRegistry()

    def _training_runs(self) -> list[Any]:
        from voiceflow.adapters.tracking import EXPERIMENT, mlflow_client

        client = mlflow_client()
        experiment = client.get_experiment_by_name(EXPERIMENT)
        return list(client.search_runs([experiment.experiment_id], "tags.reason != ''"))

    def _new_version(self) -> tuple[str, str] | None:
        registry = self._registry()
        for alias in ("challenger", "champion"):
            version = registry.version_of(alias)
            if version is not None and version != self.champion:
                return alias, version
        return None

    def _get(self, url: str) -> str | None:
        try:
            return httpx.get(url, timeout=10.0).text
        except httpx.HTTPError:
            return None

    def _await(self, what: str, is_there: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not is_there():
            if time.monotonic() > deadline_s:
                log = (self.folder / "watch.log").read_text(errors="replace")[-3000:]
                raise Broken(f"{what}: not within {PATIENCE_S:.0f} s; the watch says:\n{log}")
            time.sleep(0.2)
        self._step(what, True)

    def _step(self, what: str, holds: bool) -> None:
        self.steps.append({"step": what, "holds": holds, "after_s": round(time.monotonic() - self._began_s, 1)})
        self.say(f"  {self.steps[-1]['after_s']:7.1f} s  {what}")
        if not holds:
            raise Broken(what)

    def _voiceflow(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "voiceflow.cli", *arguments]
        done = subprocess.run(
            command, cwd=self.repo, env=os.environ | self.env, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise Broken(f"voiceflow {' '.join(arguments)}: {done.stdout[-1000:]}{done.stderr[-2000:]}")


@contextmanager
def running(command: list[str], log: Path, *, cwd: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended with the block."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=cwd, env=os.environ | env)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@contextmanager
def alert_manager(folder: Path, webhook: int) -> Iterator[int]:
    """An Alertmanager that calls a port of this machine; yields its own.

    Raises:
        FileNotFoundError: It is not installed.
    """
    binary = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if binary is None:
        raise FileNotFoundError("Alertmanager is missing: apt-get install prometheus-alertmanager")
    folder.mkdir(parents=True)
    route = {"receiver": "drift", "group_wait": "1s", "group_interval": "1s", "repeat_interval": "10s"}
    receivers = [{"name": "drift", "webhook_configs": [{"url": f"http://127.0.0.1:{webhook}/alerts"}]}]
    (folder / "alertmanager.yml").write_text(yaml.safe_dump({"route": route, "receivers": receivers}))
    port = free_port()
    command = [binary, f"--config.file={folder / 'alertmanager.yml'}", f"--storage.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="]
    with running(command, folder / "log", cwd=folder, env={}) as process:
        wait_for(process, f"http://127.0.0.1:{port}/-/ready", folder / "log", start_s=60.0)
        yield port


def go_round(folder: Path, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """The loop once; its steps.

    Raises:
        Broken: A step did not come.
    """
    loop = Loop(folder, say)
    kept = {name: os.environ.get(name) for name in ("VOICEFLOW_HOME", "MLFLOW_TRACKING_URI", "PYTHONPATH")}
    try:
        loop.set_up()
        return loop.run()
    finally:
        loop.close()
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parsed = parser.parse_args()
    go_round(parsed.folder or Path(tempfile.mkdtemp(prefix="voiceflow-loop-")))
