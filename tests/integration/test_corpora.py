"""Corpora in their publishers' layouts, from a mirror to a trained model's DER, by commands alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from conftest import small

from benchmarks.file_server import serving
from benchmarks.mirrors import make_mirror
from tests.conftest import eventually
from voiceflow.corpora.description import read_description, read_descriptions
from voiceflow.corpora.get import get_corpus, stored_path
from voiceflow.corpora.read import read_conversations, read_sounds, read_utterances
from voiceflow.corpora.recipes import read_parts
from voiceflow.errors import ConfigError, DataError
from voiceflow.simulation.rooms import PLACES
from voiceflow.simulation.voices import synthesise_corpus
from voiceflow.stages.dataset import read_recordings
from voiceflow.stages.prepare import prepare

REPO = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def mirror(corpus, tmp_path_factory):
    """A mirror and descriptions of four small corpora, of espeak-ng voices."""
    folder = tmp_path_factory.mktemp("mirror")
    synthesise_corpus(folder / "readers", num_speakers=16, sentences_each=4, seed=8)
    return make_mirror(folder, corpus, folder / "readers", talk_s=12.0)


@pytest.fixture
def workplace(tmp_path, mirror, monkeypatch):
    """A DVC repository with the descriptions, and a server that has the corpora."""
    folder = tmp_path / "repo"
    (folder / "data").mkdir(parents=True)
    shutil.copytree(mirror[1], folder / "data" / "corpora")
    values = yaml.safe_load((REPO / "params.yaml").read_text())
    values["prepare"] |= {"conversations": {"train": 4, "dev": 2, "test": 2}, "conversation_s": 12.0, "num_workers": 2}
    values["prepare"] |= {"corpus": "data/voices", "recorded": "data/conversations", "heldout_exclude": "^$"}
    values["validate"] |= {"min_speakers": {"train": 4, "dev": 2, "test": 2}}
    # All espeak-ng voices say the same few sentences.
    values["validate"]["severity"]["near_duplicate"] = "warning"
    values["train"] |= {"steps": 4, "batch_size": 4, "chunk_s": 6.0, "long_chunk_s": 8.0, "evaluate_every_steps": 2}
    values["train"] |= {"init_from": "pretrained", "num_noises": 2, "checkpoint_every_steps": 2, "warmup_steps": 1}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("VOICEFLOW_HOME", str(folder / ".voiceflow"))
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, check=True, capture_output=True)
    remote = [sys.executable, "-m", "dvc", "remote", "add", "-q", "-d", "team", str(tmp_path / "remote")]
    subprocess.run(remote, check=True, capture_output=True)
    with serving(mirror[0]) as server:
        yield folder, server


def voiceflow(*arguments, ok=True):
    command = [sys.executable, "-m", "voiceflow.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_four_corpora_go_from_a_mirror_to_a_models_der_without_hand_work(workplace):
    folder, server = workplace
    told = voiceflow("data", "get", "ami", "voxconverse", "alimeeting", "librispeech", "--yes", "--mirror", server.url)
    for name, licence in (("ami", "CC BY 4.0"), ("alimeeting", "CC BY-SA 4.0")):
        assert f"{name}: " in told
        assert licence in told
    used = "train with them: voiceflow run --recorded data/conversations --corpus data/voices"
    assert used in " ".join(told.split())
    tracked = {path.stem for path in (folder / "data" / "conversations").glob("*.dvc")}
    assert tracked == {"ami", "voxconverse", "alimeeting"}
    for stage in ("prepare", "validate", "train", "evaluate"):
        voiceflow("stage", stage)
    figures = json.loads((folder / "reports" / "evaluate" / "metrics.json").read_text())
    slices = " ".join(figures["slices"])
    assert all(name in slices for name in ("ami", "voxconverse", "alimeeting"))
    assert 0.0 < figures["test"]["overall"]["der"] < 2.0
    summary = json.loads((folder / "data" / "prepared" / "prepare.json").read_text())
    assert all(name in summary["revision"] for name in ("ami:", "voxconverse:", "alimeeting:", "librispeech:"))
    # Again: nothing is fetched or made.
    sent = len(server.sent)
    voiceflow("data", "get", "ami", "--yes", "--mirror", server.url)
    assert len(server.sent) == sent


def test_nothing_is_downloaded_before_size_and_licence_were_accepted(workplace):
    _, server = workplace
    told = voiceflow("data", "get", "ami", "--mirror", server.url, ok=False)
    assert "licence: CC BY 4.0" in told
    assert "--yes" in told
    assert server.sent == []
    assert "order LDC2022S12" in voiceflow(
        "data", "get", "dihard3", "--yes", "--corpora", str(REPO / "data/corpora"), ok=False
    )
    assert "expected one of" in voiceflow("data", "get", "nothing", "--yes", ok=False)


def test_a_get_that_was_killed_leaves_nothing_that_counts_as_whole_and_goes_on(workplace, mirror):
    folder, server = workplace
    target = folder / "data" / "conversations" / "alimeeting"
    command = [sys.executable, "-m", "voiceflow.cli", "data", "get", "alimeeting", "--yes", "--mirror", server.url]
    partial = target.with_name("alimeeting.partial")

    def killed_with_some_whole():
        """Where it was over before it could be killed, it is done again."""
        shutil.rmtree(target, ignore_errors=True)
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while not any(partial.glob("*/cuts.*")) and process.poll() is None:
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return not target.exists()

    eventually(killed_with_some_whole, "a kill while shards are written")
    assert not target.exists()
    first = {path: path.stat().st_mtime_ns for path in partial.glob("*/cuts.*")}
    assert first
    num_sent = len(server.sent)
    voiceflow("data", "get", "alimeeting", "--yes", "--mirror", server.url)
    assert len(server.sent) == num_sent
    assert target.is_dir()
    for path, written in first.items():
        assert (target / path.relative_to(partial)).stat().st_mtime_ns == written


def test_the_same_corpus_has_the_same_bytes_with_any_number_of_processes(mirror, tmp_path):
    corpora = read_descriptions(mirror[1])
    found = []
    for number, workers in enumerate((1, 2)):
        get_corpus(
            corpora["ami"],
            downloads=tmp_path / "downloads",
            descriptions=mirror[1],
            data=tmp_path / str(number),
            mirror=str(mirror[0]),
            num_workers=workers,
        )
        folder = stored_path(corpora["ami"], tmp_path / str(number))
        found.append(
            {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        )
    assert found[0] == found[1]


def test_turns_speakers_and_splits_are_those_of_the_publisher(mirror, tmp_path):
    corpora = read_descriptions(mirror[1])
    for corpus in corpora.values():
        get_corpus(
            corpus, downloads=tmp_path / "raw", descriptions=mirror[1], data=tmp_path / "data", mirror=str(mirror[0])
        )
    talks = read_conversations(tmp_path / "data" / "conversations")
    by_name = {talk.name: talk for talk in talks}
    assert by_name["ami-ES2004a"].split == "test"
    assert by_name["ami-ES2011a"].split == "dev"
    vox = [talk for talk in talks if talk.corpus == "voxconverse"]
    assert all(turn.speaker.startswith(f"{talk.name}-spk") for talk in vox for turn in talk.turns)
    for talk in talks:
        assert len(talk.place.load()) == 12 * 16_000
        assert talk.turns
    voices = read_utterances(tmp_path / "data" / "voices")
    assert {spans[0].split for spans in voices.values()} == {"train", "dev", "test"}
    # lhotse itself streams what we have stored.
    from lhotse import CutSet

    cuts = list(CutSet.from_shar(in_dir=str(tmp_path / "data" / "conversations" / "ami" / "train")))
    assert {cut.id for cut in cuts} == {"ami-ES2002a", "ami-ES2005a"}
    assert cuts[0].load_audio().shape == (1, 12 * 16_000)


def test_descriptions_that_are_wrong_are_told(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("name: x\nkind: songs\n")
    with pytest.raises(ConfigError, match="kind"):
        read_description(path)
    path.write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        read_description(path)
    assert set(read_descriptions(REPO / "data" / "corpora")) >= {
        "ami",
        "ami-array",
        "voxconverse",
        "callhome",
        "dihard3",
    }


def test_a_folder_of_ones_own_is_checked_and_taken_in(workplace, meetings):
    folder, _ = workplace
    told = voiceflow("data", "add", str(meetings[0].parent), "--name", "mine", "--licence", "CC BY 4.0")
    assert "accepted" in told
    assert (folder / "data" / "conversations" / "mine.dvc").is_file()
    talks = read_conversations(folder / "data" / "conversations" / "mine")
    assert len(talks) == len(meetings)
    assert {talk.split for talk in talks} == {"recorded"}
    assert "mine" in voiceflow("data", "list")


def test_noises_and_rooms_are_got_without_speech_and_used_by_prepare(tmp_path, corpus, params):
    rng = np.random.default_rng(4)
    mirror, raw = tmp_path / "mirror", tmp_path / "raw"
    for name in ("noise/free-sound/noise-0001", "music/rfm/music-0001", "speech/librivox/speech-0001"):
        path = raw / "musan" / f"{name}.wav"
        path.parent.mkdir(parents=True)
        soundfile.write(path, rng.normal(0, 0.1, 48_000), 16_000)
    for number in range(PLACES):
        response = np.zeros((3000, 2))
        response[100], response[500:] = 0.5, 0.1 * rng.normal(0, 1, (2500, 2))
        for folder in ("simulated_rirs/largeroom/Room001", "real_rirs_isotropic_noises"):
            path = raw / "RIRS_NOISES" / folder / f"rir-{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, response, 16_000)
    soundfile.write(raw / "RIRS_NOISES/real_rirs_isotropic_noises/RVB2014_type1_noise_room1_1.wav", response, 16_000)
    for name in ("musan", "rirs"):
        (mirror / name).mkdir(parents=True)
    (tmp_path / "corpora").mkdir()
    with tarfile.open(mirror / "musan" / "musan.tar.gz", "w:gz") as tar:
        tar.add(raw / "musan", "musan")
    with zipfile.ZipFile(mirror / "rirs" / "rirs_noises.zip", "w") as archive:
        for path in sorted((raw / "RIRS_NOISES").rglob("*.wav")):
            archive.write(path, path.relative_to(raw))
    described = read_descriptions(REPO / "data" / "corpora")
    # Whoever has unpacked them names the folder itself.
    for name, folder in (("musan", raw / "musan"), ("rirs", raw / "RIRS_NOISES")):
        found = read_parts("sounds", folder, described[name].options)["all"]
        assert len(list(found)) == {"musan": 2, "rirs": 2 * PLACES}[name]
    for name in ("musan", "rirs"):
        get_corpus(
            described[name],
            downloads=tmp_path / "downloads",
            descriptions=tmp_path / "corpora",
            data=tmp_path / "data",
            mirror=str(mirror),
        )
    noises, rooms = (read_sounds(tmp_path / "data" / kind) for kind in ("noises", "rooms"))
    assert ["speech" in place.member for place in noises] == [False, False]
    assert len(rooms) == 2 * PLACES
    assert not any("noise_room" in place.member for place in rooms)
    config = small(params).prepare
    made = {}
    for name, given in (("without", {}), ("with", {kind: tmp_path / "data" / kind for kind in ("noises", "rooms")})):
        prepare(config, tmp_path / name, corpus=corpus, revision="x", **given)
        made[name] = {row.name: row.digest for row in read_recordings(tmp_path / name)}
    same = {name.split("-")[0] for name, digest in made["without"].items() if made["with"][name] == digest}
    assert same == {"dev", "test"}
