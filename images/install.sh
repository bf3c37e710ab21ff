#!/usr/bin/env bash
# images/install.sh serving|serving-gpu|pipelines TARGET
# A virtual environment with VoiceFlow and what one kind of container needs, pinned by constraints.txt.
set -euo pipefail

kind=${1:?expected serving, serving-gpu or pipelines}
target=${2:?expected a folder for the virtual environment}
source=$(cd "$(dirname "$0")/.." && pwd)
constraints="$source/constraints.txt"

"${PYTHON:-python3.11}" -m venv "$target"
pip() { "$target/bin/python" -m pip --quiet --disable-pip-version-check --no-input "$@"; }
pip install "pip>=24" "setuptools==80.9.0" wheel
case "$kind" in
serving)
    pip install -c "$constraints" "$source[serve,otel]" boto3  # challengers are fetched from MLflow's bucket
    ;;
serving-gpu)
    # onnxruntime and onnxruntime-gpu overwrite each other: one has to go before the other comes.
    pip install -c "$constraints" "$source[serve,otel]" boto3  # challengers are fetched from MLflow's bucket
    pip uninstall --yes onnxruntime
    version=$(grep '^onnxruntime==' "$constraints" | cut -d= -f3)
    pip install "onnxruntime-gpu[cuda,cudnn]==$version"
    ;;
pipelines)
    pip install -c "$constraints" "torch==2.13.0"
    pip install -c "$constraints" "$source[train,pipelines,validation,s3]" "psycopg[binary]" boto3
    ;;
*)
    echo "expected serving, serving-gpu or pipelines, got $kind" >&2
    exit 2
    ;;
esac
find "$target" -name '__pycache__' -prune -exec rm -rf {} +
