import json
import shutil

import numpy as np
import pytest
import soundfile
import soxr

from benchmarks.bad_data import FAULTS, Planter, plant_all
from tests.conftest import small
from voiceflow.audio import file_digest
from voiceflow.errors import ConfigError, DataRefusedError
from voiceflow.stages.dataset import adopt_quarantine, items_in, read_recordings, read_samples, write_recordings
from voiceflow.stages.prepare import prepare
from voiceflow.stages.validate import check as check_items
from voiceflow.stages.validate import require_valid, validate


@pytest.fixture(scope="module")
def bounds(params):
    return params.validate_.model_copy(update={"min_speakers": {"train": 2, "dev": 2, "test": 2}})


def test_a_clean_dataset_passes_with_both_reports(bounds, dataset, tmp_path):
    verdict = validate(bounds, dataset, tmp_path)
    assert verdict["passed"], verdict["faults"]
    assert json.loads((tmp_path / "validate.json").read_text())["passed"]
    assert "Data accepted" in (tmp_path / "validate.html").read_text()
    require_valid(verdict, tmp_path / "validate.html")


def test_planted_faults_are_refused_each_by_its_name_and_row(bounds, dataset, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(dataset, bad)
    recordings = read_recordings(bad)
    rate, silent, clipped, nan, copied, original, late, empty, _, slow = recordings[:10]
    samples = {row.name: read_samples(bad, row) for row in recordings}

    def rewrite(row, audio, rate_hz=16_000):
        soundfile.write(bad / row.audio, audio, rate_hz, format="FLAC", subtype="PCM_16")

    rewrite(rate, soxr.resample(samples[rate.name], 16_000, 44_100), 44_100)
    rewrite(slow, soxr.resample(samples[slow.name], 16_000, 44_100))
    rewrite(silent, samples[silent.name] * 0)
    rewrite(clipped, np.clip(samples[clipped.name] * 80, -1, 1))
    with_nan = samples[nan.name].copy()
    with_nan[5] = np.nan
    soundfile.write(bad / nan.audio, with_nan, 16_000, format="WAV", subtype="FLOAT")
    shutil.copyfile(bad / original.audio, bad / copied.audio)
    with (bad / late.rttm).open("a") as file:
        file.write(f"SPEAKER {late.name} 1 11.0 9.0 <NA> <NA> {late.speakers[0]} <NA> <NA>\n")
    (bad / empty.audio).write_text("not audio")
    train, test = (next(row for row in recordings if row.split == split) for split in ("train", "test"))
    shared_speaker = train.speakers[0]
    changed = test.model_copy(update={"speakers": [*test.speakers, shared_speaker]})
    write_recordings(bad, [changed if row.name == test.name else row for row in recordings])

    verdict = validate(bounds, bad, tmp_path / "report")
    faults = {fault["check"]: fault for fault in verdict["faults"]}
    expected = {
        "sample_rate": rate.name,
        "sample_rate_content": slow.name,
        "silent_recording": silent.name,
        "clipped": clipped.name,
        "nan_samples": nan.name,
        "duplicate_audio": copied.name,
        "unreadable_audio": empty.name,
        "speaker_in_two_splits": shared_speaker,
    }
    for check, row in expected.items():
        assert row in faults[check]["rows"], check
    assert any(late.name in row for row in faults["turn_past_end"]["rows"])
    assert [fault["rows"] for fault in verdict["faults"] if fault["check"] == "sample_rate_content"] == [[slow.name]]
    assert "file 44100 Hz, labelled 16000 Hz" in faults["sample_rate"]["message"]
    assert "test, train" in faults["speaker_in_two_splits"]["message"]
    with pytest.raises(DataRefusedError, match=silent.name):
        require_valid(verdict, tmp_path / "report" / "validate.html")


def test_warnings_do_not_refuse_and_too_few_speakers_do(bounds, dataset, tmp_path):
    quiet = tmp_path / "quiet"
    shutil.copytree(dataset, quiet)
    recording = read_recordings(quiet, "train")[0]
    offset = read_samples(quiet, recording) + np.float32(0.05)
    soundfile.write(quiet / recording.audio, np.clip(offset, -1, 1), 16_000, format="FLAC", subtype="PCM_16")
    fixed = recording.model_copy(update={"digest": file_digest(quiet / recording.audio)})
    rows = [fixed if row.name == recording.name else row for row in read_recordings(quiet)]
    write_recordings(quiet, rows)
    lenient = bounds.model_copy(update={"min_label_contrast_db": -99.0})
    verdict = validate(lenient, quiet, tmp_path / "a")
    assert verdict["passed"], verdict["faults"]
    assert [warning["check"] for warning in verdict["warnings"]].count("dc_offset") == 1
    strict = bounds.model_copy(update={"min_speakers": {"train": 99}})
    assert {fault["check"] for fault in validate(strict, quiet, tmp_path / "b")["faults"]} >= {"too_few_speakers"}


def test_labels_and_manifest_that_do_not_fit_the_audio_are_refused_but_recorded_ones_warned_of(
    bounds, dataset, tmp_path
):
    wrong = tmp_path / "wrong"
    shutil.copytree(dataset, wrong)
    unlabelled, stranger, swapped, reencoded, real = recordings = read_recordings(wrong)[:5]
    (wrong / unlabelled.rttm).write_text("")
    (wrong / stranger.rttm).write_text(f"SPEAKER {stranger.name} 1 1.0 2.0 <NA> <NA> nobody <NA> <NA>\n")
    samples = read_samples(wrong, swapped)
    soundfile.write(wrong / reencoded.audio, samples, 16_000, format="WAV", subtype="PCM_16")
    noise = np.random.default_rng(5).normal(0, 0.01, len(samples)).astype(np.float32)
    soundfile.write(wrong / swapped.audio, samples, 16_000, format="FLAC", subtype="PCM_16")
    soundfile.write(wrong / real.audio, noise, 16_000, format="FLAC", subtype="PCM_16")
    recorded = real.model_copy(update={"split": "recorded", "digest": file_digest(wrong / real.audio)})
    write_recordings(wrong, [*recordings[:4], recorded])

    verdict = validate(bounds, wrong, tmp_path / "report")
    faults = {fault["check"]: fault["rows"] for fault in verdict["faults"]}
    assert faults["missing_turns"] == [unlabelled.name]
    assert stranger.name in faults["speakers_disagree"]
    assert set(faults["duplicate_audio"]) == {swapped.name, reencoded.name}
    assert reencoded.name in faults["digest"]
    assert "recorded_labels_disagree" in {
        warning["check"] for warning in verdict["warnings"] if real.name in warning["rows"]
    }
    assert all(real.name not in rows for rows in faults.values())


@pytest.fixture(scope="module")
def talks(params, corpus, tmp_path_factory):
    """Thirty conversations of 20 s."""
    counts = params.prepare.conversations.model_copy(update={"train": 4, "dev": 2, "test": 24})
    folder = tmp_path_factory.mktemp("talks") / "prepared"
    config = small(params, conversations=counts, conversation_s=20.0, num_workers=0).prepare
    prepare(config, folder, corpus=corpus, revision="test")
    return folder


# One voice under two names takes real voices, and more of them: tests/unit/checks/test_voices.py.
PLANTED = [check for check in FAULTS if check != "voice_under_two_names"]


def test_planted_faults_of_practice_are_named_with_their_rows_and_clean_data_has_none(bounds, talks, tmp_path):
    clean = validate(bounds, talks, tmp_path / "clean")
    assert not {finding["check"] for finding in [*clean["faults"], *clean["warnings"]]} & set(FAULTS)
    planted = plant_all(talks, tmp_path / "bad", PLANTED)
    verdict = validate(bounds, tmp_path / "bad", tmp_path / "report")
    found = {finding["check"]: finding["rows"] for finding in [*verdict["faults"], *verdict["warnings"]]}
    missed = {check for check, rows in planted.items() if not all(_is_named(row, found.get(check, [])) for row in rows)}
    assert not missed, found
    assert not verdict["passed"]
    page = (tmp_path / "report" / "validate.html").read_text()
    assert page.count("<audio") >= len(PLANTED)
    summary = (tmp_path / "report" / "validate.md").read_text()
    assert all(f"`{check}`" in summary for check in PLANTED)
    assert len(summary) < 65_536


def _is_named(row, rows):
    return any(name.startswith(row) for name in rows)


def test_a_quarantine_keeps_bad_recordings_out_and_accepts_the_rest(bounds, talks, tmp_path):
    planter = Planter(talks, tmp_path / "bad")
    for check in ("digital_silence", "annotation_units", "near_duplicate"):
        FAULTS[check](planter)
    planter.done()
    verdict = validate(bounds.model_copy(update={"quarantine": True}), tmp_path / "bad", tmp_path / "report")
    assert verdict["passed"]
    silent, units = planter.planted["digital_silence"][0], planter.planted["annotation_units"][0]
    copies = set(planter.planted["near_duplicate"])
    assert set(verdict["quarantined"]) - copies == {silent, units}
    assert len(set(verdict["quarantined"]) & copies) == 1
    assert len(read_recordings(tmp_path / "bad")) == 30
    adopt_quarantine(tmp_path / "bad", tmp_path / "report")
    assert len(read_recordings(tmp_path / "bad")) == 30 - 3
    assert len(read_recordings(tmp_path / "bad", all_of_them=True)) == 30
    strict = bounds.model_copy(update={"quarantine": True, "min_speakers": {"test": 99}})
    assert not validate(strict, tmp_path / "bad", tmp_path / "again")["passed"]


def test_every_rule_has_a_severity_and_off_means_off(bounds, talks, tmp_path):
    planter = Planter(talks, tmp_path / "bad")
    FAULTS["digital_silence"](planter)
    planter.done()
    without = {**bounds.severity, "digital_silence": "off"}
    verdict = validate(bounds.model_copy(update={"severity": without}), tmp_path / "bad", tmp_path / "report")
    assert verdict["passed"]
    del without["digital_silence"]
    with pytest.raises(ConfigError, match="digital_silence"):
        validate(bounds.model_copy(update={"severity": without}), talks, tmp_path / "report")


def test_recordings_as_they_come_may_have_any_rate_and_as_much_treble_as_is_heard(bounds, talks, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for row in read_recordings(talks, "test")[:4]:
        samples = read_samples(talks, row)
        soundfile.write(raw / f"{row.name}.wav", soxr.resample(samples, 16_000, 48_000), 48_000)
        shutil.copy(talks / row.rttm, raw / f"{row.name}.rttm")
    verdict = check_items(bounds, items_in(raw), tmp_path / "report")
    assert verdict["passed"], verdict["faults"]
    assert not {"narrow_band", "codec_artefacts"} & {finding["check"] for finding in verdict["warnings"]}
