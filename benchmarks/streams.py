"""`python -m benchmarks.streams`: a server of its own, driven by paced clients of growing number."""

import json
import subprocess
import sys
import time

import httpx

PORT, GRPC_PORT = 18080, 18081
NUM_STREAMS = (1, 20, 50, 100)


def main() -> None:
    """Print p50, p95 and p99 of emission_ms for each number of streams."""
    command = [sys.executable, "-m", "serving.transformer", "--model_name", "voiceflow-diarizer"]
    command += ["--http_port", str(PORT), "--grpc_port", str(GRPC_PORT), "--enable_latency_logging", "false"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(300):
                try:
                    httpx.get(f"http://127.0.0.1:{PORT}/health").raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(0.2)
            for streams in NUM_STREAMS:
                bench = [sys.executable, "-m", "voiceflow.cli", "bench", "streams", "--json"]
                bench += ["--url", f"ws://127.0.0.1:{PORT}/v1/stream", "--streams", str(streams), "--seconds", "20"]
                result = json.loads(subprocess.run(bench, capture_output=True, text=True, check=True).stdout)
                print(json.dumps(result), flush=True)
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
