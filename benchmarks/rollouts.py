"""Live rollouts: real servers, Prometheus and MLflow, people who call and hang up, and a controller that is killed."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any

import httpx
import numpy as np
import yaml

from benchmarks.callers import SLOTS, Callers
from benchmarks.challengers import write_challenger
from benchmarks.promotions import MlflowServer
from benchmarks.server import Server, free_port, wait_for
from voiceflow.adapters.splits import notes_at, read_split
from voiceflow.audio import file_digest
from voiceflow.config import Params
from voiceflow.stages.promote import ensure_champion

START_AGAIN_S = 2.0
"""After a kill the controller is away for so long."""
STUCK_S = 1800.0


@contextmanager
def prometheus(
    folder: Path, *targets: int, scrape: str = "1s", rules: Path | None = None, alertmanager: int | None = None
) -> Iterator[str]:
    """A Prometheus that scrapes servers at ports of this machine; yields its address.

    Args:
        folder: Of its configuration and data.
        targets: Ports.
        scrape: How often it looks, and evaluates rules.
        rules: A file of rules.
        alertmanager: Port of the one that is told of alerts.

    Raises:
        FileNotFoundError: It is not installed.
    """
    binary = shutil.which("prometheus")
    if binary is None:
        raise FileNotFoundError("Prometheus is missing: apt-get install prometheus")
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [{"job_name": "voiceflow", "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in targets]}]}]
    config: dict[str, Any] = {
        "global": {"scrape_interval": scrape, "evaluation_interval": scrape},
        "scrape_configs": jobs,
    }
    if rules is not None:
        config["rule_files"] = [str(rules)]
    if alertmanager is not None:
        told = [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager}"]}]}]
        config["alerting"] = {"alertmanagers": told}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [binary, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}"]
    log = folder / "prometheus.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        wait_for(process, f"http://127.0.0.1:{port}/-/ready", log, start_s=60.0)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@dataclass
class Outcome:
    """What came of one rollout."""

    kind: str
    status: str = ""
    why: str = ""
    exit_code: int | None = None
    kills: int = 0
    seconds: float = 0.0
    """From the first start of the controller to its end."""
    looks: list[dict[str, Any]] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)
    """What callers were told meanwhile."""
    aliases: dict[str, str | None] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    variants: list[str] = field(default_factory=list)
    """That servers hold afterwards."""

    @property
    def share(self) -> float:
        """Of the streams that began meanwhile, those that ever saw the challenger."""
        return float(self.told["streams_that_saw_the_challenger"]) / max(1, self.told["streams_begun"])

    @property
    def weights(self) -> list[float]:
        """Shares that the challenger was to have, in their order."""
        return list(dict.fromkeys(look["weight"] for look in self.looks if look["status"] == "running"))

    def figures(self) -> dict[str, Any]:
        """For a report."""
        return {
            "status": self.status,
            "why": self.why,
            "seconds": round(self.seconds, 1),
            "kills": self.kills,
            "weights": self.weights,
            **self.told,
            "share_that_saw_it": round(self.share, 4),
            "champion": self.aliases.get("champion"),
            "log": self.log[-1] if self.log else "",
        }


class Stage:
    """Servers that read a split, those who watch them, and people who call.

    Args:
        folder: All of it.
        recordings: What callers say.
        params: The whole of params.yaml; `rollout` is what counts.
        streams: Calls at a time.
        scrape: How often Prometheus looks.
        length_s: Least and greatest length of a call.
        slots: In how many turns callers send their packets of a tenth of a second.
    """

    def __init__(
        self,
        folder: Path,
        recordings: list[np.ndarray],
        params: Params,
        *,
        streams: int,
        scrape: str = "1s",
        length_s: tuple[float, float] = (15.0, 40.0),
        slots: int = SLOTS,
    ) -> None:
        self.folder, self.params = folder, params
        self.split = folder / "split.json"
        self.mlflow = MlflowServer(folder / "mlflow")
        self.env = {
            "VOICEFLOW_HOME": str(folder / "home"),
            "MLFLOW_TRACKING_URI": self.mlflow.url,
            "PYTHONWARNINGS": "ignore",
        }
        self._scrape = scrape
        self._people = (recordings, streams, length_s)
        self._slots = slots
        self._stack = ExitStack()

    def __enter__(self) -> "Stage":
        try:
            self._set_up()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _set_up(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.set_steps(self.params.rollout.steps)
        self._stack.callback(self.mlflow.kill)
        self.mlflow.start()
        with self.mlflow.client() as registry:
            ensure_champion(registry)
        self.server = Server("--workers", "2", "--split", str(self.split), env=self.env)
        self._stack.callback(self.server.stop)
        self.server.wait()
        self.prometheus = self._stack.enter_context(
            prometheus(self.folder / "prometheus", self.server.http_port, scrape=self._scrape)
        )
        recordings, streams, length_s = self._people
        self.callers = Callers(self.server.url, recordings, streams, length_s, slots=self._slots)
        thread = Thread(target=lambda: asyncio.run(self.callers.run(ramp_s=length_s[1])))
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(self.callers.stop)
        # Some of them are between two calls, or were told to come again.
        self._until(lambda: self.callers.num_begun >= 0.8 * streams, "the callers")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def set_steps(self, steps: list[float]) -> None:
        """Let rollouts take other steps from now on."""
        sections = self.params.model_dump(mode="json", by_alias=True)
        sections["rollout"]["steps"] = steps
        (self.folder / "params.yaml").write_text(yaml.safe_dump(sections | {"profiles": {}}))

    def challenger(self, kind: str) -> str:
        """Register a challenger and name it so; its version."""
        path = write_challenger(kind, self.folder / "challengers" / kind)
        path = path.rename(path.with_name("diarizer.onnx"))
        with self.mlflow.client() as registry:
            tags = {"digest": file_digest(path), "model_version": f"9.0.0+{kind}"}
            version = str(registry.register(path.parent, tags=tags, run_id=None))
            registry.set_alias("challenger", version)
        return version

    def roll_out(
        self, kind: str, *, kill_when: Callable[[dict[str, Any], int], bool] = lambda look, kills: False
    ) -> Outcome:
        """Roll a challenger out to its end.

        Args:
            kind: See benchmarks/challengers.py.
            kill_when: Given a look and the kills so far: whether the controller is killed now.
        """
        version = self.challenger(kind)
        outcome = Outcome(kind)
        began_s = time.monotonic()
        while time.monotonic() - began_s < STUCK_S:
            process = self.controller()
            assert process.stdout is not None
            for line in process.stdout:
                look = json.loads(line)
                outcome.looks.append(look)
                if kill_when(look, outcome.kills):
                    process.kill()
                    outcome.kills += 1
                    break
            code = process.wait()
            assert process.stderr is not None
            complaint = process.stderr.read()
            if code >= 0:
                outcome.exit_code = code
                break
            time.sleep(START_AGAIN_S)
        outcome.seconds = time.monotonic() - began_s
        self._until(self._is_settled, "the split in all processes")
        journal = json.loads((self.folder / "split.json.journal").read_text())
        outcome.status, outcome.why = journal["status"], journal["why"] or complaint.strip()
        outcome.told = self.callers.since(began_s)
        with self.mlflow.client() as registry:
            outcome.aliases = {alias: registry.version_of(alias) for alias in ("champion", "challenger", "previous")}
            entries = [entry for entry in registry.audit_log() if version in (entry["from"], entry["to"])]
        outcome.log = [f"{entry['action']} {entry['from']} -> {entry['to']}: {entry['why']}" for entry in entries]
        model = httpx.get(f"http://127.0.0.1:{self.server.http_port}/v1/model", timeout=20).json()
        outcome.variants = [
            f"{row.get('variant', 'failed')} {row.get('version', row['key'])}" for row in model["variants"]
        ]
        return outcome

    def _until(self, probe: Callable[[], bool], what: str) -> None:
        began_s = time.monotonic()
        while not probe():
            if time.monotonic() - began_s > STUCK_S:
                raise RuntimeError(f"{what} did not come; see {self.server.log}")
            time.sleep(0.2)

    def _is_settled(self) -> bool:
        """Whether all processes act on the split that there is now and, without a challenger, hold the champion alone."""
        split = read_split(notes_at(str(self.split)))
        assert split is not None
        metrics = self.server.metrics()
        revisions = {value for name, value in metrics.items() if name.startswith("voiceflow_split_revision")}
        held = {name: value for name, value in metrics.items() if name.startswith("voiceflow_models_held")}
        others = sum(value for name, value in held.items() if 'variant="champion"' not in name)
        return revisions == {float(split.revision)} and (others == 0 or split.challenger is not None)

    def controller(self) -> "subprocess.Popen[str]":
        """Start one."""
        command = [sys.executable, "-m", "voiceflow.cli", "rollout", "--json", "--split", str(self.split)]
        command += ["--prometheus", self.prometheus, "--params", str(self.folder / "params.yaml")]
        env = os.environ | self.env
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def faults_of(outcome: Outcome, *, version_before: str | None, max_seconds: float, max_share: float) -> list[str]:
    """What is wrong with the rollout of a bad challenger.

    Args:
        outcome: Of it.
        version_before: The champion that was to stay.
        max_seconds: Within which it was to be taken back.
        max_share: Of the streams, that may have seen it.
    """
    wrong = list(outcome.told["faults"])
    if outcome.status != "rolled_back" or outcome.exit_code != 1:
        wrong.append(f"{outcome.status} with exit code {outcome.exit_code}, expected rolled_back with 1")
    if outcome.seconds > max_seconds:
        wrong.append(f"took {outcome.seconds:.0f} s")
    if outcome.share > max_share:
        wrong.append(f"{outcome.share:.1%} of streams saw it")
    if outcome.aliases["champion"] != version_before or outcome.aliases["challenger"] is not None:
        wrong.append(f"aliases {outcome.aliases}")
    if not outcome.log or not outcome.log[-1].startswith("rollout rolled back"):
        wrong.append(f"log {outcome.log}")
    if len(outcome.variants) != 1:
        wrong.append(f"servers hold {outcome.variants}")
    return wrong


def faults_of_good(outcome: Outcome, steps: list[float]) -> list[str]:
    """What is wrong with the rollout of a good challenger."""
    wrong = list(outcome.told["faults"])
    if outcome.status != "promoted" or outcome.exit_code != 0:
        wrong.append(f"{outcome.status} with exit code {outcome.exit_code}: {outcome.why}")
    if outcome.weights != steps:
        wrong.append(f"weights {outcome.weights}")
    if outcome.told["streams_that_changed_models"]:
        wrong.append(f"{outcome.told['streams_that_changed_models']} streams changed models")
    if outcome.aliases["champion"] != outcome.looks[-1]["challenger"]:
        wrong.append(f"aliases {outcome.aliases}")
    if len([line for line in outcome.log if line.startswith("rollout")]) != 1:
        wrong.append(f"log {outcome.log}")
    return wrong
