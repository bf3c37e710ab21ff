import json

from voiceflow.stages.data_diff import compare_versions, describe_changes, read_version
from voiceflow.stages.dataset import read_recordings, write_recordings


def test_a_dataset_is_the_same_as_itself_and_every_change_is_named(dataset, tmp_path):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(dataset, other)
    rows = read_recordings(other)
    gone, moved, relabelled, changed = rows[0], rows[5], rows[6], rows[7]
    assert describe_changes(compare_versions(read_version(dataset), read_version(other))) == ["nothing has changed"]
    (other / relabelled.rttm).write_text(
        f"SPEAKER {relabelled.name} 1 1.0 2.0 <NA> <NA> {relabelled.speakers[0]} <NA> <NA>\n"
    )
    kept = [row for row in rows if row is not gone]
    kept[kept.index(moved)] = moved.model_copy(update={"split": "recorded"})
    kept[kept.index(changed)] = changed.model_copy(update={"digest": "0" * 64})
    write_recordings(other, kept)
    changes = compare_versions(read_version(dataset), read_version(other))
    assert changes["removed"] == [gone.name]
    assert changes["added"] == []
    assert changes["moved"] == [moved.name]
    assert relabelled.name in changes["relabelled"]
    assert changes["other_audio"] == [changed.name]
    told = "\n".join(describe_changes(changes))
    assert f"removed: 1 ({gone.name})" in told
    assert "speech hours" in told
    json.dumps(changes)
