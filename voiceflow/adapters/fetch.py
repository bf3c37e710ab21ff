"""Fetches and checks a model in a process of its own: MLflow and signatures take seconds of CPU and much memory, which
servers with open streams cannot spare.

python -m voiceflow.adapters.fetch URI DIGEST     prints {"path": ..., "provenance": ...}
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from voiceflow.errors import ModelError, VoiceflowError
from voiceflow.provenance import Provenance

NICE = 10
TIMEOUT_S = 300.0


def fetch_model(uri: str, *, digest: str) -> tuple[Path, Provenance | None]:
    """`registry.served_model` without what it takes.

    Raises:
        ModelError: Nothing there, not what was promised, or unsigned.
    """
    command = [sys.executable, "-m", "voiceflow.adapters.fetch", uri, digest]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as err:
        raise ModelError(f"{uri}: could not be fetched within {TIMEOUT_S:.0f} s") from err
    if done.returncode != 0:
        raise ModelError((done.stderr.strip().splitlines() or [f"{uri}: fetching ended with {done.returncode}"])[-1])
    told = json.loads(done.stdout.splitlines()[-1])
    stated = told["provenance"]
    return Path(told["path"]), None if stated is None else Provenance.model_validate_json(stated)


def main() -> None:
    """Fetch one, giving way to everybody else."""
    from voiceflow.adapters.registry import served_model

    os.nice(NICE)
    uri, digest = sys.argv[1:]
    try:
        path, provenance = served_model(uri, digest=digest)
    except VoiceflowError as err:
        print(str(err).replace("\n", " "), file=sys.stderr)
        raise SystemExit(1) from err
    print(json.dumps({"path": str(path), "provenance": provenance and provenance.model_dump_json()}))


if __name__ == "__main__":
    main()
