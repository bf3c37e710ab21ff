"""Starts workers that share a port, starts them again when they die, and passes on the order to stop."""

import argparse
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LOOK_S = 0.2
START_AGAIN_S = 1.0
SHORT_LIFE_S = 10.0
"""A worker that ends so soon does not count as having started."""
MAX_FAILED_STARTS = 3
STOP_S = 60.0
"""So long workers have to drain."""


def supervise(arguments: argparse.Namespace) -> int:
    """Run `arguments.workers` workers until told to stop; the exit status.

    Workers find each other in a folder that is gone afterwards; their metrics are summed through files in it.
    """
    folder = Path(tempfile.mkdtemp(prefix="voiceflow-"))
    (folder / "metrics").mkdir()
    (folder / "counts").write_bytes(bytes(16 * arguments.workers))
    if os.environ.get("VOICEFLOW_STORE") and not os.environ.get("VOICEFLOW_TOKEN_KEY"):
        from serving.api.store import store_from_environment

        store_from_environment(b"", keep_s=1.0)  # says what is missing
    environment = {
        **os.environ,
        "VOICEFLOW_TOKEN_KEY": os.environ.get("VOICEFLOW_TOKEN_KEY") or secrets.token_hex(32),
        "VOICEFLOW_STORE_OWNER": secrets.token_hex(8),
        "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics"),
    }
    stop = False

    def order_to_stop(*_: object) -> None:
        nonlocal stop
        stop = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, order_to_stop)

    def start(index: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "serving.transformer", *sys.argv[1:]]
        command += ["--worker_index", str(index), "--worker_dir", str(folder)]
        # Of a group of its own: Ctrl-C reaches it through us, once.
        return subprocess.Popen(command, env=environment, start_new_session=True)

    workers = [start(index) for index in range(arguments.workers)]
    began = [time.monotonic()] * len(workers)
    failed_starts = 0
    status = 0
    try:
        while not stop:
            time.sleep(LOOK_S)
            for index, worker in enumerate(workers):
                if worker.poll() is None:
                    continue
                for left in (folder / "metrics").glob(f"gauge_live*_{worker.pid}.db"):
                    left.unlink()
                short = time.monotonic() - began[index] < SHORT_LIFE_S
                failed_starts = failed_starts + 1 if short else 0
                if failed_starts >= MAX_FAILED_STARTS:
                    print(f"error: worker {index} ended {failed_starts} times at its start; see above", file=sys.stderr)
                    status, stop = 1, True
                    break
                print(f"worker {index} ended with status {worker.returncode}; starting it again", file=sys.stderr)
                time.sleep(START_AGAIN_S)
                workers[index], began[index] = start(index), time.monotonic()
    finally:
        for worker in workers:
            worker.terminate()
        deadline_s = time.monotonic() + STOP_S
        for worker in workers:
            try:
                worker.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
        shutil.rmtree(folder, ignore_errors=True)
    return status
