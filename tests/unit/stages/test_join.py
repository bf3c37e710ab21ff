import shutil

import numpy as np
import pytest
import soundfile
from conftest import files_of, small

from voiceflow.corpora.read import read_utterances
from voiceflow.errors import DataError
from voiceflow.stages.join import join
from voiceflow.stages.prepare import prepare, split_speakers


def test_shards_join_to_the_bytes_of_the_whole_though_voices_have_no_speech(params, corpus, tmp_path):
    mute = tmp_path / "mute"
    shutil.copytree(corpus, mute)
    config = small(params).prepare
    splits = split_speakers(read_utterances(corpus), config)
    for speaker in (splits["test"][0], splits["train"][1]):
        path = next(iter(read_utterances(mute)[speaker])).place.path
        soundfile.write(path, np.zeros(soundfile.info(path).frames), 16_000)
    prepare(config, tmp_path / "whole", corpus=mute, revision="x")
    for number in range(3):
        prepare(config, tmp_path / f"part-{number}", corpus=mute, revision="x", shard=(number, 3))
    join([tmp_path / f"part-{number}" for number in range(3)], tmp_path / "joined")
    assert files_of(tmp_path / "joined") == files_of(tmp_path / "whole")
    with pytest.raises(DataError, match="expected all shards of the dataset, each once; got 0 of 3, 2 of 3"):
        join([tmp_path / "part-0", tmp_path / "part-2"], tmp_path / "joined")
    with pytest.raises(ValueError, match="expected a shard from 0 to 2"):
        prepare(config, tmp_path / "x", corpus=mute, revision="x", shard=(3, 3))
