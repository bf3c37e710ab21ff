import csv
import errno
import os
from pathlib import Path

import lhotse
import pytest
import soundfile
from conftest import files_of, small

from voiceflow.audio import load_audio
from voiceflow.corpora.read import AudioPlace, Utterance, read_utterances
from voiceflow.errors import DataError
from voiceflow.stages.dataset import read_recordings, read_samples, read_turns
from voiceflow.stages.prepare import prepare, split_speakers


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_processes(params, corpus, dataset, tmp_path):
    config = small(params, num_workers=2).prepare
    prepare(config, tmp_path / "again", corpus=corpus, revision="test")
    first, second = files_of(dataset), files_of(tmp_path / "again")
    first.pop(next(name for name in first if name.name == "prepare.json"))
    second.pop(next(name for name in second if name.name == "prepare.json"))
    assert first == second


def test_another_seed_gives_other_conversations(params, corpus, dataset, tmp_path):
    counts = params.prepare.conversations.model_copy(update={"train": 1, "dev": 1, "test": 1})
    prepare(small(params, seed=99, conversations=counts).prepare, tmp_path / "other", corpus=corpus, revision="x")
    other = read_recordings(tmp_path / "other", "test")[0]
    assert other.digest not in {recording.digest for recording in read_recordings(dataset)}


def test_no_speaker_is_in_two_splits(params, corpus):
    splits = split_speakers(read_utterances(corpus), small(params).prepare)
    assert (
        sum(len(names) for names in splits.values()) == len({name for names in splits.values() for name in names}) == 16
    )


def voices(names, source="x", split=""):
    place = AudioPlace(Path("none.flac"))
    return {name: [Utterance(place, name, source=source, split=split)] for name in names}


def test_voices_that_are_held_out_stay_so_whatever_comes_with_them(params):
    """ls-150 and so-0044 are tested on, ls-163 and so-0005 chosen by, by whatever name they come."""
    known = voices(["ls-150", "ls-163", "ls-19", "ls-26"], "LibriSpeech train-clean-100")
    others = voices([f"so-{number:04d}" for number in (44, 5, 9999)], "speechocean762")
    alone = split_speakers(known | others | voices(["gc-1", "gc-2"], "words"), params.prepare)
    assert alone["dev"] == ["ls-163", "so-0005"]
    assert alone["test"] == ["ls-150", "so-0044"]
    assert set(alone["train"]) == {"ls-19", "ls-26", "so-9999", "gc-1", "gc-2"}
    more = split_speakers(known | others | voices([f"mine-{number}" for number in range(40)], "mine"), params.prepare)
    assert {"ls-163", "so-0005"} < set(more["dev"])
    assert {"ls-150", "so-0044"} < set(more["test"])
    assert {name for name in {*more["dev"], *more["test"]} if not name.startswith("mine-")} == {
        *alone["dev"],
        *alone["test"],
    }
    for prefix in ("", "librispeech-"):  # `data get` puts the corpus before the name
        names = [f"{prefix}{number}" for number in (150, 163, 19, 26)]
        got = voices(names, "librispeech", split="train") | voices("abcdefgh", "mine")
        named_by_source = split_speakers(got, params.prepare)
        assert names[0] in named_by_source["test"]
        assert names[1] in named_by_source["dev"]
        assert set(names[2:]) < set(named_by_source["train"])


def test_fewer_voices_to_train_on_leave_those_held_out_alone(params):
    names = [f"voice{number:02d}" for number in range(60)]
    whole, half = (
        split_speakers(voices(names), params.prepare.model_copy(update={"train_share": share})) for share in (1.0, 0.5)
    )
    assert half["dev"] == whole["dev"]
    assert half["test"] == whole["test"]
    assert len(half["train"]) == round(len(whole["train"]) / 2)
    assert set(half["train"]) < set(whole["train"])
    assert whole["train"] == [name for name in names if name in whole["train"]]


def test_turns_lie_where_the_speech_is(dataset):
    for recording in read_recordings(dataset):
        samples, turns = read_samples(dataset, recording), read_turns(dataset, recording)
        assert turns
        assert max(turn.end_s for turn in turns) <= recording.duration_s + 1e-3
        assert len(samples) == 12 * 16_000


def test_recorded_conversations_are_taken_as_they_are(params, corpus, tmp_path, dataset):
    recording = read_recordings(dataset, "test")[0]
    (tmp_path / "real").mkdir()
    soundfile.write(tmp_path / "real" / "talk.wav", read_samples(dataset, recording), 16_000)
    text = (dataset / recording.rttm).read_text().replace(recording.name, "talk")
    (tmp_path / "real" / "talk.rttm").write_text(text)
    counts = params.prepare.conversations.model_copy(update={"train": 1, "dev": 1, "test": 1})
    config = small(params, conversations=counts).prepare
    prepare(config, tmp_path / "out", corpus=corpus, recorded=tmp_path / "real", revision="x")
    taken = read_recordings(tmp_path / "out", "recorded")[0]
    assert read_turns(tmp_path / "out", taken) == read_turns(dataset, recording)
    assert abs(read_samples(tmp_path / "out", taken) - read_samples(dataset, recording)).max() < 1e-3


def test_a_tree_and_a_lhotse_manifest_are_read_like_the_table(corpus, tmp_path):
    table = read_utterances(corpus)
    speaker, utterances = next(iter(table.items()))
    chapter = tmp_path / "tree" / speaker / "chapter"
    chapter.mkdir(parents=True)
    samples = load_audio(utterances[0].place.path)
    soundfile.write(chapter / "0001.flac", samples, 16_000)
    assert list(read_utterances(tmp_path / "tree")) == [speaker]
    recording = lhotse.Recording.from_file(utterances[0].place.path, recording_id="r")
    (tmp_path / "lhotse").mkdir()
    lhotse.RecordingSet.from_recordings([recording]).to_file(tmp_path / "lhotse" / "recordings.jsonl.gz")
    span = lhotse.SupervisionSegment("s", "r", utterances[0].start_s, 1.0, speaker=speaker)
    lhotse.SupervisionSet.from_segments([span]).to_file(tmp_path / "lhotse" / "supervisions.jsonl.gz")
    found = read_utterances(tmp_path / "lhotse")[speaker][0]
    assert found.place.path == utterances[0].place.path
    assert found.end_s == pytest.approx(utterances[0].start_s + 1.0)


def test_a_corpus_that_is_not_there_or_malformed_is_told(tmp_path):
    with pytest.raises(DataError, match="no such corpus"):
        read_utterances(tmp_path / "none")
    with (tmp_path / "utterances.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "speaker", "start_s", "end_s"], ["a.wav", "x", "2.0", "1.0"]])
    with pytest.raises(DataError, match="line 2"):
        read_utterances(tmp_path)


def test_a_prepare_that_was_killed_leaves_nothing_whole_and_goes_on_where_it_was(params, corpus, tmp_path):
    config = small(params).prepare
    prepare(config, tmp_path / "whole", corpus=corpus, revision="x")
    target = tmp_path / "out" / "prepared"

    class Killed(BaseException):
        pass

    def die_at_five(what, done, total):
        if what == "simulate" and done == 5:
            raise Killed

    with pytest.raises(Killed):
        prepare(config, target, corpus=corpus, revision="x", progress=die_at_five)
    assert not target.exists()
    partial = target.with_name("prepared.partial")
    # One of those made is damaged, and the ledger breaks off in the middle of a line.
    kept = sorted(partial.rglob("*.flac"))
    kept[0].write_bytes(b"half")
    ledger = partial / "done.jsonl"
    ledger.write_text(ledger.read_text() + '{"key": "trai')
    times = {path.name: path.stat().st_mtime_ns for path in kept[1:4]}
    said = []
    prepare(config, target, corpus=corpus, revision="x", progress=lambda what, done, total: said.append((what, total)))
    assert ("simulate", 10 - 3) in said or ("simulate", 10 - 4) in said
    assert not partial.exists()
    files = {path.relative_to(target): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    whole = tmp_path / "whole"
    assert files == {path.relative_to(whole): path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert sum(path.stat().st_mtime_ns == times.get(path.name) for path in target.rglob("*.flac")) >= 2


def test_what_another_configuration_left_is_not_used(params, corpus, tmp_path):
    config = small(params).prepare
    partial = tmp_path / "prepared.partial"
    (partial / "audio").mkdir(parents=True)
    (partial / "audio" / "stranger.flac").write_bytes(b"x")
    prepare(config, tmp_path / "prepared", corpus=corpus, revision="x")
    assert not list((tmp_path / "prepared").rglob("stranger.flac"))


def test_a_full_disk_is_told_and_what_is_whole_is_kept(params, corpus, tmp_path, monkeypatch):
    from voiceflow.stages import prepare as module

    written = 0
    real = module.write_flac

    def fills_up(path, samples):
        nonlocal written
        written += 1
        if written > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, samples)

    monkeypatch.setattr(module, "write_flac", fills_up)
    with pytest.raises(DataError, match=r"No space left .* run the command again to go on"):
        prepare(small(params).prepare, tmp_path / "prepared", corpus=corpus, revision="x")
    monkeypatch.undo()
    assert not (tmp_path / "prepared").exists()
    said = []
    prepare(
        small(params).prepare,
        tmp_path / "prepared",
        corpus=corpus,
        revision="x",
        progress=lambda what, done, total: said.append((what, total)),
    )
    assert ("simulate", 7) in said
