#!/usr/bin/env bash
# images/smoke.sh serving|serving-gpu|pipelines TARGET
# Whether what images/install.sh made works: the command answers, and a server takes a stream's worth of audio.
set -euo pipefail

kind=${1:?expected serving, serving-gpu or pipelines}
target=${2:?expected the folder of the virtual environment}
cd "$(mktemp -d)"
"$target/bin/voiceflow" --version
if [ "$kind" = pipelines ]; then
    "$target/bin/python" -c "import kfp, mlflow, torch, great_expectations, pipelines.training"
    exit 0
fi
if "$target/bin/python" -c "import torch" 2>/dev/null; then
    echo "a serving image has no torch" >&2
    exit 1
fi
port=${PORT:-18080}
"$target/bin/python" -m serving.transformer --model pretrained --http_port "$port" --grpc_port "$((port + 1))" &
server=$!
trap 'kill "$server" 2>/dev/null' EXIT
"$target/bin/python" - "$port" <<'PYTHON'
import json, sys, time, urllib.error, urllib.request

root = f"http://127.0.0.1:{sys.argv[1]}"
for _ in range(240):
    try:
        urllib.request.urlopen(f"{root}/health").read()
        break
    except (urllib.error.URLError, ConnectionError):
        time.sleep(0.25)
else:
    sys.exit("the server does not answer")
body = json.dumps({"audio": [0.0] * 16000, "sample_rate_hz": 16000}).encode()
request = urllib.request.Request(f"{root}/infer", body, {"content-type": "application/json"})
print(json.load(urllib.request.urlopen(request)))
PYTHON
