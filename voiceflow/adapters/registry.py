"""MLflow's registry: versions of the model, their aliases, and the log of who moved them."""

import contextlib
import getpass
import json
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from voiceflow.adapters.home import home, tracking_uri
from voiceflow.adapters.signing import DIGEST_VARIABLE, VERIFY_VARIABLE, verify_model
from voiceflow.adapters.tracking import asking, found, mlflow_client, tracking_run
from voiceflow.contract import HALF_FILE, MODEL_FILE
from voiceflow.errors import ModelError, PlatformError
from voiceflow.provenance import Provenance, read_provenance

MODEL_NAME = "voiceflow-diarizer"
ALIASES = ("champion", "challenger", "previous")
LOCK_NAME = f"{MODEL_NAME}.promotion"
LOCK_STALE_S = 120.0
"""Aliases are moved, and manifests written, in seconds."""
DONE = "done"
"""A lock with this tag is of what is done but for the log."""
AUDIT = "audit."
MAX_TAG = 4900
"""Characters that MLflow takes in a tag."""


class MlflowRegistry:
    """`stages.promote.Registry` on MLflow.

    MLflow has no transactions: what moves aliases first makes a registered model named `LOCK_NAME`, which only
    one can, with the aliases as they were among its tags. Whoever finds that of a process that died puts the
    aliases back.
    """

    def __init__(self) -> None:
        self._client = mlflow_client()

    def version_of(self, alias: str) -> str | None:
        """See `Registry`."""
        with asking():
            version = found(lambda: self._client.get_model_version_by_alias(MODEL_NAME, alias))
        return None if version is None else str(version.version)

    def num_versions(self) -> int:
        """See `Registry`."""
        with asking():
            return len(self._client.search_model_versions(f"name='{MODEL_NAME}'"))

    def register(self, folder: Path, *, tags: Mapping[str, str], run_id: str | None) -> str:
        """See `Registry`; without a run one is made to hold the files."""
        import mlflow
        from mlflow.exceptions import MlflowException

        with asking():
            try:
                self._client.create_registered_model(MODEL_NAME)
            except MlflowException as err:
                if err.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            with tracking_run(run_id, name=None if run_id else "register") as run:
                # A run may be registered again, signed or with another card.
                place = f"model-{uuid.uuid4().hex[:8]}"
                mlflow.log_artifacts(str(folder), artifact_path=place)
                source = f"runs:/{run.info.run_id}/{place}"
                version = self._client.create_model_version(MODEL_NAME, source, run_id=run.info.run_id, tags=dict(tags))
        return str(version.version)

    def set_alias(self, alias: str, version: str | None) -> None:
        """See `Registry`."""
        with asking():
            if version is None:
                self._client.delete_registered_model_alias(MODEL_NAME, alias)
            else:
                self._client.set_registered_model_alias(MODEL_NAME, alias, version)

    def tags_of(self, version: str) -> dict[str, str]:
        """See `Registry`.

        Raises:
            ModelError: No such version.
        """
        with asking():
            row = found(lambda: self._client.get_model_version(MODEL_NAME, version))
        if row is None:
            raise ModelError(f"{MODEL_NAME} has no version {version}; see `voiceflow history`")
        return dict(row.tags)

    def download(self, version: str) -> Path:
        """See `Registry`; files are kept under `home()`, a version never changes."""
        import mlflow

        self.tags_of(version)
        with asking():
            folder = home() / "cache" / "models" / f"{MODEL_NAME}-{version}-{self._created(version)}"
            if not (folder / MODEL_FILE).is_file():
                with tempfile.TemporaryDirectory(dir=_made(folder.parent)) as scratch:
                    partial = Path(scratch) / "files"
                    mlflow.artifacts.download_artifacts(f"models:/{MODEL_NAME}/{version}", dst_path=str(partial))
                    try:
                        partial.rename(folder)
                    except OSError:
                        # Of several processes that fetch it at once, another one has put it there.
                        if not (folder / MODEL_FILE).is_file():
                            raise
        return folder

    def download_run(self, run_id: str) -> Path:
        """The files that a run exported: models and reports.

        Raises:
            ModelError: No such run, or one that exported nothing.
        """
        import mlflow

        with asking():
            if found(lambda: self._client.get_run(run_id)) is None:
                raise ModelError(f"{tracking_uri()} has no run {run_id!r}; expected a run id, a version, or nothing")
            if not any(entry.path == "exported" for entry in self._client.list_artifacts(run_id)):
                raise ModelError(f"run {run_id} exported no model; expected one of `voiceflow run`, with its artifacts")
            target = home() / "cache" / "runs" / run_id
            mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="exported", dst_path=str(_made(target)))
        return target / "exported"

    def find_digest(self, digest: str) -> str | None:
        """See `Registry`."""
        with asking():
            versions = self._client.search_model_versions(f"name='{MODEL_NAME}' and tags.digest='{digest}'")
        return max((str(version.version) for version in versions), key=int, default=None)

    @contextmanager
    def moving(self, entry: Mapping[str, str]) -> Iterator[Callable[[], None]]:
        """See `Registry`."""
        self.recover()
        before = {alias: self.version_of(alias) or "" for alias in ALIASES}
        self._lock({"owner": process_name(), "before": json.dumps(before), "entry": json.dumps(dict(entry))[:MAX_TAG]})
        is_done = False

        def done() -> None:
            nonlocal is_done
            with asking():
                self._client.set_registered_model_tag(LOCK_NAME, DONE, "true")
            is_done = True

        try:
            yield done
        except BaseException:
            if not is_done:
                # Where MLflow is gone, the next command does this.
                with contextlib.suppress(PlatformError):
                    self._put_back(before)
                    self._unlock(LOCK_NAME)
            raise
        self._unlock(LOCK_NAME)

    def record(self, entry: Mapping[str, str]) -> None:
        """See `Registry`."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        text = json.dumps(dict(entry))[:MAX_TAG]
        with asking():
            self._client.set_registered_model_tag(MODEL_NAME, f"{AUDIT}{stamp}", text)

    def audit_log(self) -> list[dict[str, str]]:
        """What was recorded, oldest first; `at` is when, in UTC."""
        with asking():
            model = found(lambda: self._client.get_registered_model(MODEL_NAME))
        tags = {} if model is None else dict(model.tags)
        return [
            {"at": name.removeprefix(AUDIT), **json.loads(text)}
            for name, text in sorted(tags.items())
            if name.startswith(AUDIT)
        ]

    def history(self) -> list[dict[str, Any]]:
        """Versions, newest first, with aliases and tags."""
        with asking():
            versions = self._client.search_model_versions(f"name='{MODEL_NAME}'")
        aliases: dict[str, list[str]] = {}
        for alias in ALIASES:
            version = self.version_of(alias)
            if version is not None:
                aliases.setdefault(version, []).append(alias)
        rows = [
            {
                "version": str(version.version),
                "aliases": aliases.get(str(version.version), []),
                "created_ms": version.creation_timestamp,
                "run_id": version.run_id,
                "tags": dict(version.tags),
            }
            for version in versions
        ]
        return sorted(rows, key=lambda row: int(row["version"]), reverse=True)

    def storage_uri(self, version: str) -> str:
        """Where the files of a version lie, for KServe's storageUri."""
        from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository

        with asking():
            uri = str(self._client.get_model_version_download_uri(MODEL_NAME, version))
            return str(RunsArtifactRepository.get_underlying_uri(uri)) if uri.startswith("runs:/") else uri

    def _created(self, version: str) -> int:
        return int(self._client.get_model_version(MODEL_NAME, version).creation_timestamp)

    def _lock(self, tags: Mapping[str, str]) -> None:
        from mlflow.exceptions import MlflowException

        with asking():
            try:
                self._client.create_registered_model(LOCK_NAME, tags=dict(tags))
            except MlflowException as err:
                if err.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                raise PlatformError("another promotion took its turn first; nothing was changed: try again") from err

    def recover(self) -> None:
        """Put right what a process that died in the middle of a promotion left behind.

        Raises:
            PlatformError: It is alive, or may be.
        """
        with asking():
            self._recover()

    def _recover(self) -> None:
        lock = found(lambda: self._client.get_registered_model(LOCK_NAME))
        if lock is None:
            return
        age_s = time.time() - lock.creation_timestamp / 1000.0
        owner = lock.tags.get("owner", "")
        if not is_dead(owner) and age_s < LOCK_STALE_S:
            raise PlatformError(
                f"another promotion is under way ({owner}, for {age_s:.0f} s); try again when it is done. "
                f"If it died, aliases are put back {LOCK_STALE_S:.0f} s after it began"
            )
        # Renaming is what only one of several can do.
        claimed = f"{LOCK_NAME}.{uuid.uuid4().hex}"
        if not found(lambda: [self._client.rename_registered_model(LOCK_NAME, claimed)]):
            return
        tags = self._client.get_registered_model(claimed).tags
        if tags.get("owner", "") != owner:
            self._client.rename_registered_model(claimed, LOCK_NAME)
            raise PlatformError("another promotion is under way; try again when it is done")
        entry = json.loads(tags["entry"])
        if DONE in tags:
            self.record(entry)
        else:
            self._put_back(json.loads(tags["before"]))
            self.record({**entry, "action": f"{entry['action']} undone", "why": f"{owner} died in the middle of it"})
        self._unlock(claimed)

    def _put_back(self, before: Mapping[str, str]) -> None:
        for alias, version in before.items():
            # A version that somebody deleted meanwhile cannot be named again.
            if (self.version_of(alias) or "") != version and (not version or self._exists(version)):
                self.set_alias(alias, version or None)

    def _exists(self, version: str) -> bool:
        return found(lambda: self._client.get_model_version(MODEL_NAME, version)) is not None

    def _unlock(self, name: str) -> None:
        with asking():
            found(lambda: self._client.delete_registered_model(name))


def process_name() -> str:
    """Who moves aliases: user, host and process."""
    return f"{getpass.getuser()}@{socket.gethostname()}:{os.getpid()}"


def is_dead(owner: str) -> bool:
    """Whether a process of this host is gone."""
    host, _, pid = owner.partition("@")[2].rpartition(":")
    return host == socket.gethostname() and pid.isdigit() and not Path(f"/proc/{pid}").exists()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def resolve_model(uri: str) -> Path:
    """The model file behind a URI.

    Args:
        uri: ``pretrained``; a path of a file or a folder with diarizer.onnx; or
            ``models:/voiceflow-diarizer@champion`` (or ``.../3``).

    Raises:
        ModelError: Nothing there.
    """
    from voiceflow.runtime import pretrained_path

    if uri == "pretrained":
        return pretrained_path()
    if not uri.startswith("models:/"):
        path = Path(uri)
        path = path / MODEL_FILE if path.is_dir() else path
        if not path.is_file():
            raise ModelError(f"{uri}: no such model; expected 'pretrained', a path, or models:/{MODEL_NAME}@champion")
        return path
    registry = MlflowRegistry()
    name, _, which = uri.removeprefix("models:/").replace("@", "/@").partition("/")
    version = registry.version_of(which[1:]) if which.startswith("@") else which
    if name != MODEL_NAME or not version:
        raise ModelError(f"{uri}: no such version in {tracking_uri()}; see `voiceflow history`, or run `voiceflow run`")
    return registry.download(version) / MODEL_FILE


def served_model(uri: str, *, provider: str = "cpu", digest: str | None = None) -> tuple[Path, Provenance | None]:
    """The file behind a URI, checked as the environment asks, and where it comes from; a GPU gets the fp16 file
    beside it, where there is one.

    `VOICEFLOW_MODEL_DIGEST` is the SHA-256 that it must have, unless `digest` says another; `VOICEFLOW_VERIFY_KEY`
    the public key that its folder must be signed for.

    Raises:
        ModelError: Nothing there, or not what was promised.
        SignatureError: Unsigned, or changed since.
    """
    path = resolve_model(uri)
    key = os.environ.get(VERIFY_VARIABLE)
    expected = os.environ.get(DIGEST_VARIABLE, "") if digest is None else digest
    verify_model(path, digest=expected, public_key=Path(key) if key else None)
    provenance = read_provenance(path.parent)
    half = path.with_name(HALF_FILE)
    if provider != "cpu" and half.is_file():
        expected = "" if provenance is None else provenance.files.get(HALF_FILE, "")
        verify_model(half, digest=expected)
        path = half
    return path, provenance
