"""Fixtures: the shipped model, small speech, shared recordings, real servers."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import httpx
import numpy as np
import pytest
from filelock import FileLock

from benchmarks.server import free_port
from voiceflow.config import Params, load_params
from voiceflow.runtime import StepModel, pretrained_path
from voiceflow.simulation.speech import Segment
from voiceflow.simulation.voices import synthesise_corpus
from voiceflow.stages.prepare import prepare

REPO = Path(__file__).parent.parent
PATIENCE_S = 600.0
"""For what must come: only where it is broken does it take so long, however slow and busy the machine is."""
T = TypeVar("T")
# httpx gives up after 5 s, which a busy machine may take for anything.
for _limit in ("connect", "read", "write", "pool"):
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, _limit, PATIENCE_S)


LONGEST_FIRST = ("test_live_rollout", "test_repro", "test_corpora", "test_promote", "test_validate_kinds")
"""Files; a worker that has one of them last would keep the others waiting."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put them first; the order within a file stays."""
    rank = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def eventually(probe: Callable[[], T], what: str = "what was awaited", *, patience_s: float = PATIENCE_S) -> T:
    """Ask until the answer is true, and return it; what is not there yet (no connection, no file) is no answer.

    In a coroutine: ``await asyncio.to_thread(eventually, probe)``.
    """
    deadline_s = time.monotonic() + patience_s
    last: object = None
    while time.monotonic() < deadline_s:
        try:
            if last := probe():
                return last
        except (OSError, httpx.HTTPError, LookupError) as err:
            last = err
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come: {last!r}")


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first worker to ask for it makes, for all of them to read."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    done = folder.with_suffix(".done")
    with FileLock(folder.with_suffix(".lock")):
        if not done.exists():
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def params() -> Params:
    return load_params(REPO / "params.yaml")


@pytest.fixture(scope="session")
def model() -> StepModel:
    return StepModel(pretrained_path())


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = _shared_or_none()
    if folder is None:
        pytest.skip("no shared recordings in ../shared: set VOICEFLOW_SHARED to a folder that has them")
    return folder


def _shared_or_none() -> Path | None:
    folder = (REPO / os.environ.get("VOICEFLOW_SHARED", "../shared")).resolve()
    return folder if (folder / "data").is_dir() else None


@pytest.fixture(scope="session")
def meetings(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Recordings with RTTM files beside them: real excerpts where there are any, else conversations that we make."""
    found = _shared_or_none()
    if found is not None:
        return sorted((found / "data" / "meeting-excerpts").glob("*.wav"))
    from voiceflow.stages.dataset import read_recordings

    folder = tmp_path_factory.mktemp("meetings")
    for recording in read_recordings(dataset, "test"):
        for path in (recording.audio, recording.rttm):
            shutil.copy(dataset / path, folder)
    return sorted(folder.glob("*.flac"))


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many voices with much to say: real ones where there are any, else espeak-ng's."""
    found = _shared_or_none()
    if found is not None:
        return found / "data" / "speech"
    return made_once(
        tmp_path_factory,
        "speech",
        lambda folder: synthesise_corpus(folder, num_speakers=72, sentences_each=12, seed=20),
    )


@pytest.fixture(scope="session")
def is_real(speech: Path) -> bool:
    """Whether `speech` is of people."""
    return _shared_or_none() is not None


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen espeak-ng voices."""
    return made_once(
        tmp_path_factory,
        "corpus",
        lambda folder: synthesise_corpus(folder, num_speakers=16, sentences_each=4, seed=3),
    )


def small(params: Params, **changes: object) -> Params:
    """Settings that make a dataset of a few short conversations."""
    counts = params.prepare.conversations.model_copy(update={"train": 4, "dev": 2, "test": 4})
    weights = [0.0, 1.0, 1.0]
    variety = params.prepare.variety.model_copy(update={"stock_size": 2})
    update = {"conversations": counts, "conversation_s": 12.0, "heldout_fraction": 0.25, "num_workers": 1}
    config = params.prepare.model_copy(update=update | {"num_speakers_weights": weights, "variety": variety} | changes)
    return params.model_copy(update={"prepare": config})


@pytest.fixture(scope="session")
def dataset(params: Params, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset of ten conversations of 12 s."""
    return made_once(
        tmp_path_factory,
        "prepared",
        lambda folder: prepare(small(params).prepare, folder, corpus=corpus, revision="test"),
    )


@pytest.fixture(scope="session")
def talk(dataset: Path) -> np.ndarray:
    """Twelve seconds of a simulated conversation."""
    from voiceflow.stages.dataset import read_recordings, read_samples

    return read_samples(dataset, read_recordings(dataset, "test")[0])


@pytest.fixture(scope="session")
def segments() -> dict[str, list[Segment]]:
    """Tones in place of voices: 0.5 s each, with 0.1 s of faint noise around."""
    rng = np.random.default_rng(0)
    time_s = np.arange(8000) / 16_000
    rows = {}
    for number, name in enumerate(("ann", "bob", "cem")):
        tone = np.sin(2 * np.pi * 200 * (number + 1) * time_s) * 8000
        whole = np.concatenate([rng.normal(0, 50, 1600), tone, rng.normal(0, 50, 1600)])
        rows[name] = [Segment(whole.astype(np.int16), 1600, 9600)]
    return rows


def dvc_repository(folder: Path, *remote: str) -> Callable[..., None]:
    """A new git repository under DVC with a remote; returns what runs a command in it (`dvc` first for DVC's)."""

    def run(*command: str) -> None:
        whole = (sys.executable, "-m", *command) if command[0] == "dvc" else command
        subprocess.run(whole, cwd=folder, check=True, capture_output=True)

    folder.mkdir(parents=True, exist_ok=True)
    run("git", "init", "-q", "-b", "main")
    run("git", "config", "user.email", "test@example.org")
    run("git", "config", "user.name", "test")
    run("dvc", "init", "-q")
    run("dvc", "remote", "add", "-q", "-d", *remote)
    return run


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., tuple[int, int]]]:
    """Start `python -m MODULE` as a real process; returns its HTTP and gRPC ports once it answers."""
    processes: list[subprocess.Popen[bytes]] = []
    logs: list[str] = []

    def start(
        module: str, *arguments: str, path: str = "/health", env: dict[str, str] | None = None
    ) -> tuple[int, int]:
        http, grpc = free_port(), free_port()
        log = (tmp_path_factory.mktemp("server") / "log").open("wb")
        command = [sys.executable, "-m", module, "--model_name", "voiceflow-diarizer", "--http_port", str(http)]
        command += ["--grpc_port", str(grpc), *arguments]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=REPO, env=env)
        processes.append(process)
        logs.append(log.name)

        def answers() -> bool:
            if process.poll() is not None:
                raise AssertionError(f"{module} ended: {Path(log.name).read_text()[-2000:]}")
            return httpx.get(f"http://127.0.0.1:{http}{path}", timeout=20).status_code == 200

        eventually(answers, f"{module} (log: {log.name})")
        return http, grpc

    start.processes, start.logs = processes, logs
    yield start
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture(scope="session")
def server(start_server: Callable[..., tuple[int, int]]) -> int:
    """HTTP port of a transformer with the shipped model in its own process."""
    return start_server("serving.transformer")[0]


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Redis server of its own."""
    port = free_port()
    folder = tmp_path_factory.mktemp("redis")
    command = ["redis-server", "--port", str(port), "--save", "", "--dir", str(folder)]
    try:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    except FileNotFoundError:
        pytest.skip("redis-server is missing: apt-get install redis-server")

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    eventually(listens, "redis-server")
    yield f"redis://127.0.0.1:{port}/0"
    process.terminate()
    process.wait()
