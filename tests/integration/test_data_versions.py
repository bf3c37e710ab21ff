import shutil
import subprocess
import sys

import pytest

from tests.conftest import dvc_repository
from voiceflow.adapters.data_versions import data_commit, digest_of, fetch, revision_of, tracked_folders
from voiceflow.errors import DataError, PlatformError


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A git repository whose data has two versions under DVC, the second not committed."""
    folder = tmp_path_factory.mktemp("origin") / "repo"
    run = dvc_repository(folder, "local", str(folder.parent / "remote"))
    for version in ("first", "second"):
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / "words.txt").write_text(version)
        run("dvc", "add", "-q", "data")
        run("dvc", "push", "-q")
        if version == "first":
            run("git", "add", ".")
            run("git", "commit", "-q", "-m", "first")
    return folder


@pytest.fixture
def repo(tmp_path, origin, monkeypatch):
    """A copy of it."""
    folder = tmp_path / "repo"
    shutil.copytree(origin, folder)
    monkeypatch.chdir(folder)
    return folder


def test_data_is_checked_out_at_a_revision_or_from_the_working_tree(repo, tmp_path):
    now = fetch(str(repo), "data", tmp_path / "now", rev=None)
    before = fetch(str(repo), "data", tmp_path / "before", rev="HEAD")
    assert (tmp_path / "now" / "words.txt").read_text() == "second"
    assert (tmp_path / "before" / "words.txt").read_text() == "first"
    assert now == digest_of("data", repo)
    assert before != now


def test_untracked_data_and_unknown_revisions_are_told(repo, tmp_path):
    with pytest.raises(DataError, match="dvc add"):
        digest_of("nothing", repo)
    with pytest.raises(PlatformError, match="failed"):
        fetch(str(repo), "data", tmp_path / "x", rev="no-such-revision")


def test_the_commit_of_the_data_stays_while_other_things_change(repo):
    def commit(message):
        subprocess.run(["git", "add", "."], check=True)
        subprocess.run(["git", "commit", "-q", "-m", message], check=True)

    with pytest.raises(PlatformError, match=r"expected data\.dvc to be committed"):
        data_commit({"corpus": "data"})
    commit("second")
    second = data_commit({"corpus": "data"})
    (repo / "code.py").write_text("pass\n")
    commit("code")
    assert data_commit({"corpus": "data"}) == second
    (repo / "data" / "words.txt").write_text("third")
    subprocess.run([sys.executable, "-m", "dvc", "add", "-q", "data"], check=True)
    commit("third")
    assert data_commit({"corpus": "data"}) not in ("", second)


def test_sounds_that_no_version_tells_of_are_refused(repo, params):
    config = params.prepare.model_copy(update={"corpus": "data", "recorded": None})
    assert tracked_folders(config) == {"corpus": "data"}
    mine = repo / "data" / "noises" / "mine"
    mine.mkdir(parents=True)
    (mine / "fan.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"fan\.wav is not tracked by DVC: run `dvc add"):
        tracked_folders(config)
    (repo / "data" / "noises" / "mine.dvc").write_text("outs: [{md5: abc.dir, path: mine}]")
    assert tracked_folders(config) == {"corpus": "data", "noises": "data/noises"}
    assert revision_of(tracked_folders(config)).endswith("+noises=mine:abc.dir")
    (repo / "data" / "noises" / "stored").mkdir()
    (repo / "data" / "noises" / "stored" / "corpus.json").write_text("{}")
    with pytest.raises(DataError, match="not tracked"):
        tracked_folders(config)
