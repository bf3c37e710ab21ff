import time
from datetime import UTC, datetime

import pytest

from voiceflow.adapters.stream_log import FolderLog, line_of, stream_log_at
from voiceflow.errors import DataError, PlatformError

START = 1_800_000_000.0


def rows(count, digest="a" * 64, at=START):
    return [
        line_of({"audio_s": 60.0, "snr_db": float(n)}, model="1.0", digest=digest, variant="champion", now=at + 60 * n)
        for n in range(count)
    ]


@pytest.fixture(params=["folder", "redis"])
def log(request, tmp_path):
    if request.param == "folder":
        return stream_log_at(str(tmp_path / "log"), name="a")
    import redis

    url = request.getfixturevalue("redis")
    redis.Redis.from_url(url).flushall()
    return stream_log_at(url)


def test_the_last_rows_come_back_oldest_first(log):
    log.add(rows(30))
    log.add(rows(10, digest="b" * 64, at=START + 10_020))
    assert [row["snr_db"] for row in log.last(5)] == [5.0, 6.0, 7.0, 8.0, 9.0]
    assert {row["digest"] for row in log.last(100, digest="a" * 64)} == {"a" * 16}
    assert len(log.last(100, digest="c" * 64)) == 0
    assert len(log.last(100, since=START + 10_000)) == 10
    assert len(log.last(100)) == 40


def test_a_line_has_no_id_no_key_no_address_and_a_time_to_the_minute():
    line = rows(1, at=START + 59.9)[0]
    assert set(line) == {"at", "model", "digest", "variant", "audio_s", "snr_db"}
    assert line["at"] % 60 == 0


def test_old_days_are_forgotten(tmp_path):
    log = FolderLog(tmp_path)
    log.add(rows(1))
    old = tmp_path / "2020-01-01.streams.jsonl"
    old.write_text("{}\n")
    log.forget(before=time.time() - 30 * 86_400)
    assert not old.exists()
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    assert (tmp_path / f"{today}.streams.jsonl").exists()


def test_half_a_line_of_a_server_that_died_is_passed_over(tmp_path):
    log = FolderLog(tmp_path)
    log.add(rows(3))
    with next(tmp_path.glob("*.jsonl")).open("a") as file:
        file.write('{"at": 18')
    assert len(log.last(10)) == 3


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(DataError, match="serve --statistics"):
        FolderLog(tmp_path / "none").last(1)
    with pytest.raises(PlatformError, match=r"127\.0\.0\.1:1"):
        stream_log_at("redis://127.0.0.1:1/0").last(1)
