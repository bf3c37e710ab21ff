"""Downloads that go on where they were cut off, and are not believed before their digest is."""

import hashlib
import json
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from voiceflow.audio import file_digest
from voiceflow.errors import DataError

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, how many bytes are there, and of how many."""
PIECE_BYTES = 1 << 20
TRIES, WAIT_S, TIMEOUT_S = 5, 1.0, 60.0
SPARE_BYTES = 50 << 20
DONE_SUFFIX, PART_SUFFIX = ".verified", ".part"


@dataclass(frozen=True)
class Wanted:
    """One file to have."""

    url: str
    path: Path
    sha256: str | None
    size_bytes: int | None


def fetch_files(wanted: Sequence[Wanted], progress: Progress) -> dict[Path, str]:
    """Have files here whose digests hold; those that are here already are not fetched again.

    Returns:
        SHA-256 of each.

    Raises:
        DataError: One cannot be fetched, is not what it should be, or there is no room; what came stays, and the next
            call goes on from there.
    """
    digests = {}
    for one in wanted:
        digests[one.path] = _verified(one) or _fetch(one, progress)
    return digests


def _verified(wanted: Wanted) -> str | None:
    """The digest of a file that was verified before and has not been touched since, or None."""
    note = wanted.path.with_name(wanted.path.name + DONE_SUFFIX)
    try:
        told = json.loads(note.read_text(encoding="utf-8"))
        status = wanted.path.stat()
    except (OSError, ValueError):
        return None
    if (told["size"], told["mtime_ns"]) != (status.st_size, status.st_mtime_ns):
        return None
    digest = str(told["sha256"])
    return digest if wanted.sha256 in (None, digest) else None


def _fetch(wanted: Wanted, progress: Progress) -> str:
    part = wanted.path.with_name(wanted.path.name + PART_SUFFIX)
    try:
        wanted.path.parent.mkdir(parents=True, exist_ok=True)
        if wanted.path.is_file() and not part.exists():
            # Here, but not by us, or touched since: it is as good as its digest.
            wanted.path.rename(part)
        for attempt in range(1, TRIES + 1):
            try:
                _download(wanted, part, progress)
                break
            except urllib.error.HTTPError as err:
                if err.code < 500 or attempt == TRIES:
                    raise DataError(
                        f"{wanted.url}: the server says {err.code} {err.reason}; is the address right?"
                    ) from err
            except (urllib.error.URLError, ConnectionError, TimeoutError, EOFError) as err:
                if attempt == TRIES:
                    reason = getattr(err, "reason", err)
                    raise DataError(
                        f"{wanted.url}: cannot be fetched ({reason}); what came is kept, run the command again to go on"
                    ) from err
            time.sleep(WAIT_S * 2 ** (attempt - 1))
    except OSError as err:
        raise DataError(_no_room(wanted.path, err)) from err
    digest = file_digest(part)
    if wanted.sha256 is not None and digest != wanted.sha256:
        size = part.stat().st_size
        part.unlink()
        raise DataError(
            f"{wanted.url}: corrupted: expected SHA-256 {wanted.sha256}, got {digest} ({size} bytes); it was deleted, "
            "run the command again"
        )
    part.rename(wanted.path)
    status = wanted.path.stat()
    note = {"sha256": digest, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    wanted.path.with_name(wanted.path.name + DONE_SUFFIX).write_text(json.dumps(note), encoding="utf-8")
    return digest


def _download(wanted: Wanted, part: Path, progress: Progress) -> None:
    """The rest of a file; raises EOFError where the server ends before it is whole."""
    have = part.stat().st_size if part.exists() else 0
    if have and have == wanted.size_bytes:
        return
    request = urllib.request.Request(wanted.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as err:
        if err.code == 416 and have:
            # Nothing comes after what we have; its digest will tell whether that is all.
            return
        raise
    with answer:
        resumed = answer.status == 206 if answer.status is not None else False
        have = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length is not None else wanted.size_bytes
        if total is not None:
            _check_room(part.parent, total - have)
        with part.open("ab" if resumed else "wb") as file:
            while piece := answer.read(PIECE_BYTES):
                file.write(piece)
                have += len(piece)
                progress(f"download {wanted.path.name}", have, total)
    if total is not None and have < total:
        raise EOFError(f"the connection ended after {have} of {total} bytes")


def _check_room(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes + SPARE_BYTES:
        raise OSError(28, f"{num_bytes / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free")


def _no_room(path: Path, err: OSError) -> str:
    if err.errno == 28:
        return f"{path}: the disk is full ({err.strerror}); make room and run the command again, it goes on from there"
    return f"{path}: cannot be written ({err.strerror or err})"


def unpack(archive: Path, folder: Path, digest: str, progress: Progress) -> None:
    """Unpack an archive once; an archive of another digest is unpacked again.

    Raises:
        DataError: Not an archive, damaged, or no room.
    """
    done = archive.with_name(archive.name + ".unpacked")
    state = hashlib.sha256(f"{digest} {folder.resolve()}".encode()).hexdigest()
    if done.is_file() and done.read_text(encoding="utf-8") == state and folder.is_dir():
        return
    done.unlink(missing_ok=True)
    progress(f"unpack {archive.name}", 0, 1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(folder)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
    except OSError as err:
        raise DataError(_no_room(folder, err)) from err
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as err:
        raise DataError(f"{archive}: cannot be unpacked ({err}); delete it and run the command again") from err
    progress(f"unpack {archive.name}", 1, 1)
    partial = done.with_name(done.name + PART_SUFFIX)
    partial.write_text(state, encoding="utf-8")
    partial.replace(done)
