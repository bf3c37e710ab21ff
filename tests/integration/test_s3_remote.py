"""Data in an S3 remote: pulled at a revision by whoever has git and the bucket; compared between revisions."""

import os
import shutil
import subprocess
import sys

import httpx
import pytest

from benchmarks.server import free_port
from tests.conftest import dvc_repository, eventually
from voiceflow.adapters.data_versions import fetch
from voiceflow.errors import PlatformError

BUCKET = "voiceflow-data"


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """A real S3 server of its own (moto) with a bucket; its address."""
    port = free_port()
    log = (tmp_path_factory.mktemp("s3") / "log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
    )
    url = f"http://127.0.0.1:{port}"
    eventually(lambda: httpx.put(f"{url}/{BUCKET}", timeout=20).status_code == 200, "moto's S3")
    yield url
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def environment():
    """The bucket's credentials."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield


@pytest.fixture(scope="module")
def origin(tmp_path_factory, s3, environment):
    """A repository whose data has two versions in the bucket, and none of it in its cache any more."""
    folder = tmp_path_factory.mktemp("origin") / "repo"
    run = dvc_repository(folder, "team", f"s3://{BUCKET}/team")
    (folder / "data" / "talks").mkdir(parents=True)
    run("dvc", "remote", "modify", "-q", "team", "endpointurl", s3)
    for version, (name, turns) in enumerate({"one": [(1.0, 2.0)], "two": [(1.0, 2.0), (4.0, 3.0)]}.items()):
        (folder / "data" / "talks" / f"{name}.wav").write_bytes(name.encode())
        lines = [f"SPEAKER {name} 1 {start} {length} <NA> <NA> s{start:.0f} <NA> <NA>" for start, length in turns]
        (folder / "data" / "talks" / f"{name}.rttm").write_text("\n".join(lines) + "\n")
        run("dvc", "add", "-q", "data/talks")
        run("dvc", "push", "-q")
        run("git", "add", ".")
        run("git", "commit", "-q", "-m", f"version {version}")
    for left in (".dvc/cache", "data/talks"):
        shutil.rmtree(folder / left)
    return folder


@pytest.fixture
def repo(tmp_path, origin, monkeypatch):
    """A copy of it."""
    folder = tmp_path / "repo"
    shutil.copytree(origin, folder)
    monkeypatch.chdir(folder)
    return folder


def test_a_revision_is_pulled_from_the_bucket_with_its_digest(repo, tmp_path):
    now = fetch(str(repo), "data/talks", tmp_path / "now", rev="HEAD")
    before = fetch(str(repo), "data/talks", tmp_path / "before", rev="HEAD~1")
    assert sorted(path.name for path in (tmp_path / "now").iterdir()) == ["one.rttm", "one.wav", "two.rttm", "two.wav"]
    assert sorted(path.name for path in (tmp_path / "before").iterdir()) == ["one.rttm", "one.wav"]
    assert now != before
    assert fetch(str(repo), "data/talks", tmp_path / "again", rev="HEAD") == now


def test_a_remote_that_is_away_is_told(repo, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "dvc", "remote", "modify", "-q", "team", "endpointurl", "http://127.0.0.1:9"], check=True
    )
    subprocess.run(["git", "commit", "-q", "-am", "moved"], check=True)
    with pytest.raises(PlatformError, match="dvc get"):
        fetch(str(repo), "data/talks", tmp_path / "none", rev="HEAD")
    assert not (tmp_path / "none").exists() or not any((tmp_path / "none").iterdir())


def test_two_revisions_are_compared_without_their_audio(repo):
    command = [sys.executable, "-m", "voiceflow.cli", "data", "diff", "HEAD~1", "HEAD", "--path", "data/talks"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "recordings: 1 -> 2" in done.stdout
    assert "added: 1 (two)" in done.stdout
    assert "speakers: 1 -> 2" in done.stdout
    same = subprocess.run(
        [*command[:-4], "HEAD", "HEAD", "--path", "data/talks"], capture_output=True, text=True, check=False
    )
    assert same.stdout.strip() == "nothing has changed"
    wrong = subprocess.run([*command[:-4], "nowhere", "HEAD"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert "nowhere cannot be had" in wrong.stderr
