"""`dvc repro` goes the whole way, and again only as far as something has changed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).parents[2]
ENV = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}


@pytest.fixture(scope="module")
def place(tmp_path_factory, corpus):
    """A copy of the repository with sixteen voices and small values."""
    folder = tmp_path_factory.mktemp("repro") / "repo"
    subprocess.run(["git", "clone", "-q", str(REPO), str(folder)], check=True)
    shutil.copy(REPO / "dvc.yaml", folder)
    (folder / "dvc.lock").unlink()
    shutil.copytree(corpus, folder / "data" / "voices")
    (folder / "data" / "talks").mkdir()
    for name in ("noises", "rooms"):
        (folder / "data" / name).mkdir(exist_ok=True)
    values = yaml.safe_load((REPO / "params.yaml").read_text())
    values["prepare"] |= {"corpus": "data/voices", "recorded": "data/talks", "conversation_s": 12.0}
    values["prepare"] |= {"conversations": {"train": 4, "dev": 2, "test": 4}, "heldout_fraction": 0.25}
    values["validate"]["min_speakers"] = {"train": 4, "dev": 2, "test": 2}
    # espeak-ng says the same sentences, with digital silence between words.
    values["validate"]["severity"] |= {"near_duplicate": "warning", "digital_silence": "warning"}
    values["train"] |= {"steps": 4, "batch_size": 2, "chunk_s": 4.0, "long_chunk_s": 8.0, "num_noises": 2}
    values["train"] |= {"evaluate_every_steps": 2, "checkpoint_every_steps": 2, "max_minutes": None, "num_threads": 1}
    values["latency"] |= {"repeats": 10, "warmup": 1, "batch_sizes": [1, 8]}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    make_talk(folder / "data" / "talks", corpus)
    dvc(folder, "add", "-q", "data/voices", "data/talks")
    return folder


def make_talk(folder, corpus):
    from voiceflow.corpora.read import read_utterances

    speaker, [first, *_] = next(iter(read_utterances(corpus).items()))
    shutil.copy(first.place.path, folder / "talk.flac")
    (folder / "talk.rttm").write_text(
        f"SPEAKER talk 1 {first.start_s:.3f} {first.end_s - first.start_s:.3f} <NA> <NA> {speaker} <NA> <NA>\n"
    )


def dvc(folder, *arguments):
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def stages_run(told):
    return [line.split("'")[1] for line in told.splitlines() if line.startswith("Running stage")]


def change(folder, section, **values):
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params[section] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def test_the_whole_way_then_nothing_then_only_what_depends_on_a_change(place):
    everything = ["prepare", "validate", "train", "evaluate", "export", "latency"]
    assert stages_run(dvc(place, "repro")) == everything
    digests = yaml.safe_load((place / "dvc.lock").read_text())["stages"]
    assert stages_run(dvc(place, "repro")) == []
    figures = json.loads(dvc(place, "metrics", "show", "--json"))
    shown = figures[""]["data"]
    assert {"reports/evaluate/headline.json", "reports/latency/latency.json"} <= set(shown)
    change(place, "evaluate", min_slice_recordings=4)
    assert stages_run(dvc(place, "repro", "--dry"))[:2] == ["evaluate", "export"]
    change(place, "evaluate", min_slice_recordings=5)
    change(place, "latency", repeats=11)
    assert stages_run(dvc(place, "repro")) == ["latency"]
    # prepare again, from nothing, gives the same bytes: the same digests wherever it is done.
    shutil.rmtree(place / "data" / "prepared")
    dvc(place, "repro", "--force", "--single-item", "prepare")
    again = yaml.safe_load((place / "dvc.lock").read_text())["stages"]
    assert again["prepare"]["outs"][0]["md5"] == digests["prepare"]["outs"][0]["md5"]
