#!/usr/bin/env bash
# images/prepare.sh serving|serving-gpu|pipelines
# What a container's own system needs beside the virtual environment: a user, and for pipelines git and espeak-ng.
set -euo pipefail

kind=${1:?expected serving, serving-gpu or pipelines}
if ! id voiceflow >/dev/null 2>&1; then
    groupadd --gid 10001 voiceflow
    useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin voiceflow
fi
packages=(libgomp1)
if [ "$kind" = pipelines ]; then
    packages+=(git espeak-ng libsndfile1)
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
rm -rf /var/lib/apt/lists/*
