"""A place to promote in: a real MLflow server, manifests in git, conversations, and the real command."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from benchmarks import bad_models
from benchmarks.server import free_port, wait_for
from voiceflow.audio import file_digest
from voiceflow.config import Params
from voiceflow.stages.dataset import read_summary
from voiceflow.stages.latency import latency
from voiceflow.stages.promote import ensure_champion

REPO = Path(__file__).parent.parent
START_S = 600.0


class MlflowServer:
    """`mlflow server` that lets clients write artifacts themselves, as one before an S3 bucket does.

    Args:
        folder: Of its store, unless `store` is given, and of its artifacts.
        store: Backend store URI; SQLite in the folder by default.
    """

    def __init__(self, folder: Path, *, store: str | None = None) -> None:
        self.folder = folder
        self.port = free_port()
        self.store = store or f"sqlite:///{folder / 'mlflow.db'}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its tracking URI."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, or start it again on the same store.

        Raises:
            RuntimeError: It does not answer.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self.store, "--no-serve-artifacts"]
        command += ["--default-artifact-root", (self.folder / "artifacts").as_uri()]
        env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
        wait_for(self.process, f"{self.url}/health", self.folder / "server.log", start_s=START_S)

    @contextmanager
    def client(self) -> Iterator[Any]:
        """Our registry on this server."""
        before = os.environ.get("MLFLOW_TRACKING_URI")
        os.environ["MLFLOW_TRACKING_URI"] = self.url
        try:
            from voiceflow.adapters.registry import MlflowRegistry

            yield MlflowRegistry()
        finally:
            if before is None:
                del os.environ["MLFLOW_TRACKING_URI"]
            else:
                os.environ["MLFLOW_TRACKING_URI"] = before

    def kill(self) -> None:
        """Kill it and its workers."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL server of its own, on a port that is free; yields its address for MLflow.

    Raises:
        FileNotFoundError: It is not installed.
    """
    found = [*sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), reverse=True)]
    control = Path(shutil.which("pg_ctl") or (found[0] if found else "pg_ctl")).resolve()
    if not control.is_file():
        raise FileNotFoundError("PostgreSQL is not installed: apt-get install postgresql")
    folder.mkdir(parents=True)
    # It does not run as root.
    account: list[str] = []
    if os.geteuid() == 0:
        account = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
    port, data = free_port(), folder / "data"
    settings = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    quiet: Any = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder}
    subprocess.run([*account, control.with_name("initdb"), "-A", "trust", "-U", "mlflow", "-D", data], **quiet)
    log = folder / "log"
    subprocess.run([*account, control, "start", "-w", "-D", data, "-l", log, "-o", settings], **quiet)
    try:
        yield f"postgresql://mlflow@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*account, control, "stop", "-m", "immediate", "-D", data], **quiet | {"check": False})


class Workplace:
    """Where models are promoted.

    Args:
        folder: All of it.
        dataset: Output of `prepare`.
        params: The whole of params.yaml; written for the command.
        store: Backend store of MLflow.
    """

    def __init__(self, folder: Path, dataset: Path, params: Params, *, store: str | None = None) -> None:
        self.folder, self.dataset, self.params = folder, dataset, params
        self.mlflow = MlflowServer(folder / "mlflow", store=store)
        self.manifests = folder / "deploy" / "manifests"
        self.env = os.environ | {
            "VOICEFLOW_HOME": str(folder / "home"),
            "MLFLOW_TRACKING_URI": self.mlflow.url,
            "PYTHONPATH": str(REPO),
            "PYTHONWARNINGS": "ignore",
        }
        self._num_candidates = 0
        self.private_key, self.public_key = folder / "private.pem", folder / "public.pem"

    def set_up(self) -> None:
        """Start MLflow, commit the manifests, make keys, time the good model."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.mlflow.start()
        shutil.copytree(REPO / "manifests", self.manifests)
        git = ["git", "-C", str(self.manifests.parent)]
        for command in (
            ["init", "-q", "-b", "main"],
            ["config", "user.email", "ci@example.org"],
            ["config", "user.name", "CI"],
            ["add", "."],
            ["commit", "-q", "-m", "manifests"],
        ):
            subprocess.run([*git, *command], check=True)
        make_keys(self.private_key, self.public_key)
        sections = self.params.model_dump(mode="json", by_alias=True)
        (self.folder / "params.yaml").write_text(yaml.safe_dump(sections | {"profiles": {}}))
        self.revision = str(read_summary(self.dataset)["revision"])
        timed = self.params.latency.model_copy(update={"repeats": 20, "warmup": 3})
        import onnx

        onnx.save(bad_models.good(self.revision), str(self.folder / "good.onnx"))
        latency(timed, self.folder / "good.onnx", self.folder / "timed")
        with self.mlflow.client() as registry:
            ensure_champion(registry)

    def candidate(self, change: Any = None, *, digest: str | None = None, **metadata: Any) -> Path:
        """Folder of a model and its reports, good but for `change`."""
        self._num_candidates += 1
        folder = self.folder / "candidates" / str(self._num_candidates)
        model = bad_models.good(self.revision)
        if metadata:
            bad_models.set_metadata(model, **metadata)
        if change is not None:
            change(model)
        bad_models.write(model, folder, self.folder / "timed" / "latency.json", self.params, digest=digest)
        return folder

    def start(self, command: str, *arguments: str, files: Path | None = None) -> subprocess.Popen[str]:
        """Start a command of `voiceflow` here."""
        line = [sys.executable, "-m", "voiceflow.cli", command, *arguments]
        if command == "promote":
            line += ["--dataset", str(self.dataset), "--params", str(self.folder / "params.yaml")]
            line += ["--reports", str(files or self.folder / "reports")]
            if files is not None:
                line += ["--models", str(files)]
        if command in ("promote", "rollback"):
            line += ["--manifests", str(self.manifests), "--env", "local"]
        return subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.env, cwd=self.folder
        )

    def run(self, command: str, *arguments: str, files: Path | None = None) -> tuple[int, str]:
        """Run one to its end; exit code and all it printed."""
        process = self.start(command, *arguments, files=files)
        out, err = process.communicate(timeout=600)
        return process.returncode, out + err

    def state(self) -> dict[str, Any]:
        """All that a refusal must leave as it was: aliases, the commit, and the files of the manifests."""
        with self.mlflow.client() as registry:
            aliases = {alias: registry.version_of(alias) for alias in ("champion", "challenger", "previous")}
        git = ["git", "-C", str(self.manifests.parent)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
        return {"aliases": aliases, "head": head.strip(), "changed": changed}

    def close(self) -> None:
        """Stop MLflow."""
        self.mlflow.kill()


def make_keys(private: Path, public: Path) -> None:
    """An elliptic-curve pair, as docs/rollout.md makes it with openssl."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    plain = serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def refusal(place: Workplace, says: str, code: int, told: str, before: dict[str, Any]) -> dict[str, Any]:
    """What became of a model that should have been refused: empty where all is as it should be."""
    faults: dict[str, Any] = {}
    if code != 1:
        faults["exit"] = code
    if says not in " ".join(told.split()):
        faults["says"] = told.strip()[-400:]
    after = place.state()
    if after != before:
        faults["changed"] = {"before": before, "after": after}
    return faults


def tampered(place: Workplace) -> tuple[int, str, dict[str, Any]]:
    """A registered version whose file somebody changed where it lies."""
    version = registered(place, "--sign-key", str(place.private_key), version="0.3.1")
    with place.mlflow.client() as registry:
        folder = Path(registry.storage_uri(version).removeprefix("file://"))
    path = folder / "diarizer.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    before = place.state()
    return *place.run("promote", version, "--accept-equal"), before


def registered(place: Workplace, *arguments: str, version: str) -> str:
    """Number of a version that was promoted to challenger, as a pipeline's last step does it."""
    files = place.candidate(version=version)
    code, told = place.run("promote", "--json", *arguments, files=files)
    assert code == 0, told
    return str(json.loads(told[told.index("{") :])["version"])


def other_digest(place: Workplace) -> tuple[int, str, dict[str, Any]]:
    """Gates passed by another file."""
    files = place.candidate(digest=file_digest(place.folder / "good.onnx"), version="0.4.0")
    before = place.state()
    return *place.run("promote", "--accept-equal", files=files), before


def unsigned(place: Workplace) -> tuple[int, str, dict[str, Any]]:
    """A version without a signature, where one is asked for."""
    version = registered(place, version="0.5.0")
    before = place.state()
    return *place.run("promote", version, "--accept-equal", "--verify-key", str(place.public_key)), before


def champion_deleted(place: Workplace) -> tuple[int, str, dict[str, Any]]:
    """The champion is deleted between the judgement and the move."""
    files = place.candidate(version="0.6.0")
    before = place.state()
    process = place.start("promote", "--accept-equal", files=files)
    card = files / "promote" / "card.json"
    while process.poll() is None and not card.exists():
        time.sleep(0.01)
    champion = before["aliases"]["champion"]
    with place.mlflow.client() as registry:
        registry._client.delete_model_version("voiceflow-diarizer", champion)
    out, err = process.communicate(timeout=600)
    before["aliases"]["champion"] = None
    return process.returncode, out + err, before


def two_at_once(place: Workplace) -> tuple[int, str, dict[str, Any]]:
    """Two that would both win; the code and words of the one that did not, and the state that the other left."""
    both = [place.candidate(version=f"0.7.{number}") for number in range(2)]
    processes = [place.start("promote", "--accept-equal", files=files) for files in both]
    told = [process.communicate(timeout=600) for process in processes]
    codes = [process.returncode for process in processes]
    state = place.state()
    if sorted(codes) != [0, 1]:
        return -1, f"exit codes {codes}: {told}", state
    loser = codes.index(1)
    return 1, "".join(told[loser]), state


def mlflow_down(place: Workplace) -> tuple[int, str, dict[str, Any]]:
    """MLflow is killed in the middle of a promotion, and comes back."""
    hook = place.manifests.parent / ".git" / "hooks" / "pre-commit"
    assert place.mlflow.process is not None
    hook.write_text(f"#!/bin/sh\nkill -9 -{place.mlflow.process.pid}\nexit 0\n")
    hook.chmod(0o755)
    files = place.candidate(version="0.8.0")
    before = place.state()
    code, told = place.run("promote", "--accept-equal", files=files)
    hook.unlink()
    place.mlflow.kill()
    place.mlflow.start()
    with place.mlflow.client() as registry:
        registry.recover()
    return code, told, before


AROUND = {
    "tampered file": (tampered, "was changed since"),
    "unsigned file": (unsigned, "the model is unsigned"),
    "gate results of another digest": (other_digest, "its results are of the file"),
    "a champion deleted meanwhile": (champion_deleted, "and is none now"),
    "two promotions at once": (two_at_once, "nothing was changed"),
    "MLflow down in the middle": (mlflow_down, "does not answer as it should"),
}
"""Faults in what happens around a file: what does them, and words of the refusal."""
