"""`python -m benchmarks.streams`: a server of its own, driven by paced clients of growing number."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.server import Server

NUM_STREAMS = (1, 50, 200, 500, 1000)


def load(
    server: Server, streams: int, *, seconds: float, protocol: str = "native", source: Path | None = None
) -> dict[str, Any]:
    """What `voiceflow bench streams` says of so many streams; those that were refused are among its figures."""
    bench = [sys.executable, "-m", "voiceflow.cli", "bench", "streams", "--json", "--url", server.url]
    bench += ["--streams", str(streams), "--seconds", f"{seconds:g}", "--protocol", protocol]
    if source is not None:
        bench += ["--source", str(source)]
    done = subprocess.run(bench, capture_output=True, text=True, check=False)
    if not done.stdout.startswith("{"):
        raise RuntimeError(f"bench streams: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    """Print the figures of each number of streams."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--streams", type=int, nargs="+", default=NUM_STREAMS)
    arguments = parser.parse_args()
    for streams in arguments.streams:
        # One server each: what a step of many streams took stays in memory.
        with Server("--workers", str(arguments.workers)) as server:
            print(json.dumps(load(server, streams, seconds=arguments.seconds)), flush=True)


if __name__ == "__main__":
    main()
