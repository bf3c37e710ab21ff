import errno
import hashlib
import os
import shutil
import tarfile
from collections import namedtuple

import numpy as np
import pytest

from benchmarks.file_server import serving
from voiceflow.corpora import download
from voiceflow.corpora.download import Wanted, fetch_files, unpack
from voiceflow.errors import DataError


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(download, "WAIT_S", 0.0)
    monkeypatch.setattr(download, "PIECE_BYTES", 10_000)


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "publisher"
    folder.mkdir()
    (folder / "corpus.bin").write_bytes(np.random.default_rng(0).bytes(300_000))
    with serving(folder) as running:
        yield running


@pytest.fixture
def wanted(server, tmp_path):
    data = (server.folder / "corpus.bin").read_bytes()
    path = tmp_path / "here" / "corpus.bin"
    return Wanted(f"{server.url}/corpus.bin", path, hashlib.sha256(data).hexdigest(), len(data))


def quiet(what, done, total):
    pass


def test_a_file_is_fetched_once_and_verified(server, wanted):
    assert fetch_files([wanted], quiet) == {wanted.path: wanted.sha256}
    assert fetch_files([wanted], quiet) == {wanted.path: wanted.sha256}
    assert len(server.sent) == 1


def test_a_connection_that_breaks_off_is_gone_on_with_where_it_ended(server, wanted):
    server.break_after = 100_000
    fetch_files([wanted], quiet)
    assert [start for _, start, _ in server.sent] == [0, 100_000, 200_000]
    assert wanted.path.read_bytes() == (server.folder / "corpus.bin").read_bytes()


def test_what_came_before_a_failure_is_kept_for_the_next_run(server, wanted):
    server.break_after = 20_000
    with pytest.raises(DataError, match="run the command again"):
        fetch_files([wanted], quiet)
    assert not wanted.path.exists()
    server.break_after = None
    fetch_files([wanted], quiet)
    assert server.sent[-1][1] == 100_000


def test_a_server_that_is_down_for_a_moment_is_asked_again(server, wanted):
    server.num_down = 3
    fetch_files([wanted], quiet)
    assert wanted.path.is_file()


def test_corrupted_files_are_never_there_and_fetched_anew(server, wanted):
    server.spoilt.add("corpus.bin")
    with pytest.raises(DataError, match=r"corrupted: expected SHA-256 .* run the command again"):
        fetch_files([wanted], quiet)
    assert list(wanted.path.parent.iterdir()) == []
    server.spoilt.clear()
    fetch_files([wanted], quiet)
    assert wanted.path.is_file()


def test_a_file_that_somebody_changed_or_moved_is_fetched_again(server, wanted):
    fetch_files([wanted], quiet)
    wanted.path.write_bytes(b"changed")
    with pytest.raises(DataError, match="corrupted"):
        fetch_files([wanted], quiet)
    fetch_files([wanted], quiet)
    wanted.path.rename(wanted.path.with_name("elsewhere"))
    fetch_files([wanted], quiet)
    assert wanted.path.read_bytes() == (server.folder / "corpus.bin").read_bytes()


def test_a_wrong_address_is_told(server, wanted):
    with pytest.raises(DataError, match="404 Not Found; is the address right"):
        fetch_files([Wanted(f"{server.url}/nothing", wanted.path, None, None)], quiet)


def test_too_little_room_is_told_before_anything_is_written(server, wanted, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 1000))
    with pytest.raises(DataError, match=r"the disk is full .* make room and run the command again"):
        fetch_files([wanted], quiet)
    monkeypatch.undo()
    fetch_files([wanted], quiet)


def test_a_disk_that_fills_up_on_the_way_keeps_what_came(server, wanted, monkeypatch):
    came = 0

    def progress(what, done, total):
        nonlocal came
        came = done
        if done > 150_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(DataError, match="the disk is full"):
        fetch_files([wanted], progress)
    fetch_files([wanted], quiet)
    assert server.sent[-1][1] == came


def test_an_archive_is_unpacked_once_and_never_outside_its_folder(tmp_path):
    inside = tmp_path / "word.txt"
    inside.write_text("word")
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(inside, "deep/word.txt")
    unpack(archive, tmp_path / "out", "digest", quiet)
    (tmp_path / "out" / "deep" / "word.txt").write_text("kept")
    unpack(archive, tmp_path / "out", "digest", quiet)
    assert (tmp_path / "out" / "deep" / "word.txt").read_text() == "kept"
    evil = tmp_path / "evil.tar"
    with tarfile.open(evil, "w") as tar:
        tar.add(inside, "../escaped.txt")
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(evil, tmp_path / "evil", "digest", quiet)
    assert not (tmp_path / "escaped.txt").exists()
    (tmp_path / "not.zip").write_text("not an archive")
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(tmp_path / "not.zip", tmp_path / "none", "digest", quiet)
