"""Small corpora in the file layouts of AMI, VoxConverse, LibriSpeech and AliMeeting, as their publishers serve them: a
mirror for `voiceflow data get --mirror`, with descriptions that state the digests of these files.

python -m benchmarks.mirrors FOLDER      makes FOLDER/mirror and FOLDER/corpora
"""

import argparse
import itertools
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import soundfile
import yaml

from voiceflow.audio import FloatArray, file_digest
from voiceflow.config import load_params
from voiceflow.corpora.description import DESCRIPTIONS
from voiceflow.corpora.read import read_utterances
from voiceflow.simulation.voices import synthesise_corpus
from voiceflow.stages.dataset import Recording, read_recordings, read_samples, read_turns
from voiceflow.stages.prepare import prepare
from voiceflow.timebase import SAMPLE_RATE_HZ
from voiceflow.turns import Turn, to_rttm

AMI_MEETINGS = {"train": ["ES2002a", "ES2005a"], "dev": ["ES2011a"], "test": ["ES2004a", "IS1009a"]}
"""Real names, so that lhotse's partition knows them."""
WORD_S = 0.4


def make_mirror(folder: Path, speech: Path, readers: Path, *, talk_s: float = 24.0) -> tuple[Path, Path]:
    """Write the four corpora; returns the mirror and the folder of descriptions.

    Args:
        folder: Where to.
        speech: A corpus of single voices that conversations are made of.
        readers: Another one, for LibriSpeech.
        talk_s: Length of each conversation.
    """
    mirror, corpora = folder / "mirror", folder / "corpora"
    talks = _talks(folder / "talks", speech, talk_s)
    makers = {"ami": _ami, "voxconverse": _voxconverse, "alimeeting": _alimeeting}
    for name, make in makers.items():
        files = make(mirror / name, folder / "scratch" / name, talks[name])
        _describe(corpora, name, mirror / name, files)
    _describe(
        corpora,
        "librispeech",
        mirror / "librispeech",
        _librispeech(mirror / "librispeech", folder / "scratch", readers),
    )
    shutil.rmtree(folder / "scratch")
    return mirror, corpora


class Talk:
    """A conversation of one of the corpora."""

    def __init__(self, dataset: Path, row: Recording) -> None:
        self.split = row.split
        self.samples_N: FloatArray = read_samples(dataset, row)
        self.turns: list[Turn] = read_turns(dataset, row)


def _talks(folder: Path, speech: Path, talk_s: float) -> dict[str, list[Talk]]:
    """Conversations for each corpus; the voices of a test are those of no training."""
    config = load_params(Path("params.yaml")).prepare
    counts = config.conversations.model_copy(update={"train": 12, "dev": 6, "test": 12})
    update = {"conversations": counts, "conversation_s": talk_s, "heldout_fraction": 0.25, "heldout_exclude": "^$"}
    prepare(config.model_copy(update=update), folder, corpus=speech, revision="mirror")
    rows = read_recordings(folder)
    by_split = {split: [Talk(folder, row) for row in rows if row.split == split] for split in ("train", "dev", "test")}
    return {
        name: [talk for talks in by_split.values() for talk in talks[index::3]]
        for index, name in enumerate(("ami", "voxconverse", "alimeeting"))
    }


def _wav(path: Path, samples: FloatArray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, SAMPLE_RATE_HZ, subtype="PCM_16")


def _by_speaker(talk: Talk) -> dict[str, list[Turn]]:
    found: dict[str, list[Turn]] = {}
    for turn in talk.turns:
        found.setdefault(turn.speaker, []).append(turn)
    return found


def _ami(target: Path, scratch: Path, talks: list[Talk]) -> list[Path]:
    """<meeting>/audio/<meeting>.Mix-Headset.wav, and the annotations as NITE XML in a zip."""
    meetings, files = [], []
    for split, names in AMI_MEETINGS.items():
        for name, talk in zip(names, [talk for talk in talks if talk.split == split], strict=False):
            path = target / f"wav_db/{name}/audio/{name}.Mix-Headset.wav"
            _wav(path, talk.samples_N)
            files.append(path)
            agents = []
            for channel, (speaker, turns) in enumerate(_by_speaker(talk).items()):
                agent = "ABCDEFGH"[channel]
                agents.append(f'<speaker nxt_agent="{agent}" global_name="{speaker}" channel="{channel}"/>')
                segments = "".join(
                    f'<segment transcriber_start="{turn.start_s}" transcriber_end="{turn.end_s}"/>' for turn in turns
                )
                _write(scratch / f"segments/{name}.{agent}.segments.xml", f"<root>{segments}</root>")
                words = "".join(_words(turn) for turn in turns)
                _write(scratch / f"words/{name}.{agent}.words.xml", f"<root>{words}</root>")
            meetings.append(f'<meeting observation="{name}">{"".join(agents)}</meeting>')
    _write(scratch / "corpusResources/meetings.xml", f"<root>{''.join(meetings)}</root>")
    archive = target / "ami_public_manual_1.6.2.zip"
    _zip(archive, scratch)
    return [*files, archive]


def _words(turn: Turn) -> str:
    """Words that fill a turn without a gap."""
    num_words = max(1, int(turn.duration_s / WORD_S))
    edges = np.linspace(turn.start_s, turn.end_s, num_words + 1)
    return "".join(
        f'<w starttime="{start:.4f}" endtime="{end:.4f}">word</w>' for start, end in itertools.pairwise(edges)
    )


def _voxconverse(target: Path, scratch: Path, talks: list[Talk]) -> list[Path]:
    """Zips of WAV, and the repository of RTTM files as a tarball; speakers are spk00, spk01 in each."""
    folders = {"train": ("dev", "audio"), "dev": ("dev", "audio"), "test": ("test", "voxconverse_test_wav")}
    for number, talk in enumerate(talks):
        part, folder = folders[talk.split]
        name = "".join(chr(97 + (number * 7 + place * 3) % 26) for place in range(5))
        _wav(scratch / part / folder / f"{name}.wav", talk.samples_N)
        names = {speaker: f"spk{index:02d}" for index, speaker in enumerate(_by_speaker(talk))}
        turns = [Turn(turn.start_s, turn.end_s, names[turn.speaker]) for turn in talk.turns]
        _write(scratch / f"annotations/voxconverse-x/{part}/{name}.rttm", to_rttm(turns, name))
    files = [target / "voxconverse_dev_wav.zip", target / "voxconverse_test_wav.zip"]
    for file, part in zip(files, ("dev", "test"), strict=True):
        _zip(file, scratch / part)
    files.append(target / "voxconverse-annotations.tar.gz")
    _tar(files[-1], scratch / "annotations")
    return files


def _alimeeting(target: Path, scratch: Path, talks: list[Talk]) -> list[Path]:
    """Eight channels a meeting and TextGrids, in tarballs of the three parts."""
    import textgrid

    parts = {"train": "Train", "dev": "Eval", "test": "Test"}
    rng = np.random.default_rng(5)
    for number, talk in enumerate(talks):
        part = parts[talk.split]
        home = scratch / part / (f"{part}_Ali/{part}_Ali_far" if part != "Train" else "Train_Ali_far")
        session = f"R{number:04d}_M{number:04d}"
        noise = rng.normal(0.0, 0.001, (len(talk.samples_N), 8))
        _wav(home / f"audio_dir/{session}_MS001.wav", talk.samples_N[:, None] + noise.astype(np.float32))
        length_s = len(talk.samples_N) / SAMPLE_RATE_HZ
        grid = textgrid.TextGrid(minTime=0.0, maxTime=length_s)
        for index, turns in enumerate(_by_speaker(talk).values()):
            tier = textgrid.IntervalTier(f"N_F_F_SPK{number:03d}{index}", 0.0, length_s)
            for turn in turns:
                tier.add(turn.start_s, min(turn.end_s, length_s), "字")
            grid.append(tier)
        path = home / f"textgrid_dir/{session}.TextGrid"
        path.parent.mkdir(parents=True, exist_ok=True)
        grid.write(str(path))
    files = []
    for part in parts.values():
        files.append(target / ("Train_Ali_far.tar.gz" if part == "Train" else f"{part}_Ali.tar.gz"))
        _tar(files[-1], scratch / part)
    return files


def _librispeech(target: Path, scratch: Path, speech: Path) -> list[Path]:
    """LibriSpeech/<part>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac with transcripts, in a tarball a part."""
    parts = {"train-clean-100": 8, "dev-clean": 4, "test-clean": 4}
    speakers = iter(read_utterances(speech).items())
    files = []
    number = 100
    for part, count in parts.items():
        home = scratch / part / "LibriSpeech" / part
        for _ in range(count):
            number += 1
            _, utterances = next(speakers)
            lines = []
            for index, utterance in enumerate(utterances[:4]):
                samples = utterance.place.load()
                end = len(samples) if utterance.end_s is None else int(utterance.end_s * SAMPLE_RATE_HZ)
                name = f"{number}-1-{index:04d}"
                path = home / f"{number}/1/{name}.flac"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, samples[int(utterance.start_s * SAMPLE_RATE_HZ) : end], SAMPLE_RATE_HZ)
                lines.append(f"{name} SOME WORDS")
            _write(home / f"{number}/1/{number}-1.trans.txt", "\n".join(lines) + "\n")
        files.append(target / f"{part}.tar.gz")
        _tar(files[-1], scratch / part)
    return files


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _zip(target: Path, folder: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))


def _tar(target: Path, folder: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target, "w:gz") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)


def _describe(corpora: Path, name: str, home: Path, files: list[Path]) -> None:
    """The real description, with the files that there are here and their digests."""
    described = yaml.safe_load((DESCRIPTIONS / f"{name}.yaml").read_text(encoding="utf-8"))
    archives = {
        file.get("path", file["url"].rsplit("/", maxsplit=1)[-1]): file.get("unpack_to") for file in described["files"]
    }
    described["files"] = [
        {
            "url": f"http://publisher.invalid/{path.relative_to(home)}",
            "path": path.relative_to(home).as_posix(),
            "sha256": file_digest(path),
            "size_bytes": path.stat().st_size,
            **({"unpack_to": archives[path.name]} if archives.get(path.name) else {}),
        }
        for path in files
    ]
    described["download_gb"] = max(1e-6, sum(path.stat().st_size for path in files) / 1e9)
    corpora.mkdir(parents=True, exist_ok=True)
    (corpora / f"{name}.yaml").write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--speech", type=Path, help="single voices for conversations; made with espeak-ng by default")
    parser.add_argument("--readers", type=Path, help="others for LibriSpeech; made with espeak-ng by default")
    parsed = parser.parse_args()
    places = {"speech": parsed.speech, "readers": parsed.readers}
    for seed, (name, given) in enumerate(places.items()):
        if given is None:
            places[name] = parsed.folder / name
            synthesise_corpus(places[name], num_speakers=16, sentences_each=6, seed=seed)
    print(*make_mirror(parsed.folder, places["speech"], places["readers"]))
