"""Getting a corpus by name: downloaded, verified, unpacked, read by its recipe, stored in shards."""

import hashlib
import json
from pathlib import Path
from typing import Any

from voiceflow.corpora.description import Corpus
from voiceflow.corpora.download import Progress, Wanted, fetch_files, unpack
from voiceflow.corpora.read import ABOUT, about
from voiceflow.corpora.recipes import names_of, read_parts
from voiceflow.corpora.store import store_corpus
from voiceflow.errors import DataError

DATA = Path("data")
DIGESTS = "digests"
"""Below the descriptions: SHA-256 of files whose publishers state none, as they were first seen."""


def stored_path(corpus: Corpus, data: Path = DATA) -> Path:
    """Where a corpus lies once it was got: data/<kind>/<name>."""
    return data / corpus.kind / corpus.name


def get_corpus(
    corpus: Corpus,
    *,
    downloads: Path,
    descriptions: Path,
    data: Path = DATA,
    mirror: str | None = None,
    source: Path | None = None,
    num_workers: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Have a corpus in `stored_path`; what is there already, at the same digests, is not made again.

    Args:
        corpus: Which.
        downloads: Where files are downloaded to and unpacked.
        descriptions: Folder of the descriptions, for digests of files whose publishers state none.
        data: Folder of stored corpora.
        mirror: URL or folder that has <name>/<path> of each file, instead of where it comes from.
        source: A folder that holds the unpacked corpus already; nothing is downloaded.
        num_workers: Processes; 0 takes all cores.
        progress: Called as work goes on.

    Returns:
        The content of corpus.json.

    Raises:
        DataError: It cannot be fetched, verified, unpacked or read; the next call goes on from there.
    """
    for name in corpus.needs:
        if not (downloads / name).is_dir():
            raise DataError(f"{corpus.name} is made of {name}: run `voiceflow data get {name}` first")
    raw = downloads / corpus.name
    if source is not None:
        if not source.is_dir():
            raise DataError(f"{source}: no such folder; --from takes the unpacked corpus")
        raw, revision = source, _listing(source)
    elif corpus.access != "open":
        raise DataError(f"{corpus.name} cannot be downloaded without asking: {corpus.how}")
    else:
        revision = _download(corpus, raw, descriptions, mirror, progress)
    revision = hashlib.sha256(f"{revision}{corpus.model_dump_json()}".encode()).hexdigest()
    target = stored_path(corpus, data)
    if (target / ABOUT).is_file() and about(target).get("made_of") == revision:
        return about(target)
    parts = read_parts(corpus.recipe, raw, corpus.options)
    return store_corpus(corpus, parts, target, revision=revision, num_workers=num_workers, progress=progress)


def _download(corpus: Corpus, raw: Path, descriptions: Path, mirror: str | None, progress: Progress) -> str:
    """Have all files of a corpus, verified and unpacked; returns a digest of them all."""
    ledger = descriptions / DIGESTS / f"{corpus.name}.json"
    seen: dict[str, str] = json.loads(ledger.read_text(encoding="utf-8")) if ledger.is_file() else {}
    wanted, archives = [], []
    for file in corpus.files:
        for name in names_of(file.each) if file.each else [""]:
            path = file.local_path.replace("{name}", name)
            url = file.url.replace("{name}", name) if mirror is None else f"{_as_url(mirror)}/{corpus.name}/{path}"
            wanted.append(Wanted(url, raw / path, file.sha256 or seen.get(path), file.size_bytes))
            if file.unpack_to is not None:
                archives.append((raw / path, raw / file.unpack_to))
    digests = fetch_files(wanted, progress)
    for archive, folder in archives:
        unpack(archive, folder, digests[archive], progress)
    found = {path.relative_to(raw).as_posix(): digest for path, digest in digests.items()}
    unstated = {path: digest for path, digest in found.items() if path not in _stated(corpus)}
    if unstated and unstated != seen:
        ledger.parent.mkdir(exist_ok=True)
        ledger.write_text(json.dumps(unstated, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return json.dumps(found, sort_keys=True)


def _stated(corpus: Corpus) -> set[str]:
    return {file.local_path for file in corpus.files if file.sha256 is not None}


def _as_url(mirror: str) -> str:
    if "://" in mirror:
        return mirror.rstrip("/")
    folder = Path(mirror)
    if not folder.is_dir():
        raise DataError(f"--mirror {mirror}: expected a URL, or a folder with <corpus>/<file>; there is none")
    return folder.resolve().as_uri()


def _listing(folder: Path) -> str:
    """A digest of the names, sizes and times of all files: whether a folder is the one that was stored."""
    lines = [
        f"{path.relative_to(folder).as_posix()} {path.stat().st_size} {path.stat().st_mtime_ns}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
