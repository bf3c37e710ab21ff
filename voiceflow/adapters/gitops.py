"""Manifests as the record of what runs: writes the promoted model into an overlay, as a commit of its own."""

import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from voiceflow.errors import ConfigError, PlatformError

MODEL_ENV = "model/model.env"
"""In each overlay; kustomize makes the ConfigMap of it that names the model everywhere else."""
FETCHED_BY_KSERVE = ("s3://", "gs://", "hdfs://", "webhdfs://", "https://", "http://", "pvc://", "hf://", "oci://")


@dataclass(frozen=True)
class Deployed:
    """What an overlay names."""

    storage_uri: str
    digest: str
    version: str

    def text(self) -> str:
        """Content of model.env."""
        return f"storageUri={self.storage_uri}\ndigest={self.digest}\nversion={self.version}\n"

    def message(self, paths: Sequence[Path], why: str) -> str:
        """Of the commit."""
        environments = ", ".join(path.parents[1].name for path in paths)
        return f"deploy({environments}): model version {self.version}\n\n{why}\n\ndigest {self.digest}\n"


class Overlays:
    """`stages.promote.Deployment` as overlays of a manifests folder.

    Args:
        manifests: The folder; each environment is a folder under its overlays/.
        environments: Names of those to write.
        storage_uri: Where the files of a version lie.
        commit: Whether each change is a commit.
    """

    def __init__(
        self, manifests: Path, environments: Sequence[str], storage_uri: Callable[[str], str], *, commit: bool
    ) -> None:
        self.manifests = manifests
        self.storage_uri = storage_uri
        self.commit = commit
        known = sorted(path.parents[1].name for path in (manifests / "overlays").glob(f"*/{MODEL_ENV}"))
        for name in environments:
            if name not in known:
                raise ConfigError(
                    f"--env {name}: expected one of {', '.join(known) or 'none: no overlays'} in {manifests}"
                )
        self.paths = [manifests / "overlays" / name / MODEL_ENV for name in environments]

    def check(self, version: str) -> None:
        """Whether KServe can fetch a version, and nobody's changes would be overwritten.

        Raises:
            ConfigError: Says what to do.
        """
        storage_uri = self.storage_uri(version)
        for path in self.paths:
            if path.parents[1].name != "local" and not storage_uri.startswith(FETCHED_BY_KSERVE):
                raise ConfigError(
                    f"KServe cannot fetch {storage_uri} ({path.parents[1].name}): expected s3://, gs:// and the "
                    "like; run MLflow with --no-serve-artifacts --default-artifact-root s3://... (docs/rollout.md)"
                )
        if self.paths and _in_git(self.manifests):
            changed = _git(self.manifests, "status", "--porcelain", "--", *(str(path.resolve()) for path in self.paths))
            if changed.strip():
                raise ConfigError(
                    f"there are changes that nobody committed:\n{changed.rstrip()}\ncommit or undo them first"
                )

    @contextmanager
    def written(self, version: str, digest: str, why: str) -> Iterator[None]:
        """Write the overlays and, if wanted, commit them; if the block fails, all is as it was."""
        deployed = Deployed(self.storage_uri(version), digest, version)
        before = {path: path.read_text(encoding="utf-8") for path in self.paths}
        changed = [path for path, text in before.items() if text != deployed.text()]
        committed = False
        head = _git(self.manifests, "rev-parse", "HEAD").strip() if changed and self.commit else ""
        try:
            for path in changed:
                path.write_text(deployed.text(), encoding="utf-8")
            if changed and self.commit:
                names = [str(path.resolve()) for path in changed]
                _git(
                    self.manifests, "commit", "--quiet", "--only", "-m", deployed.message(self.paths, why), "--", *names
                )
                committed = True
            yield
        except BaseException:
            if committed and _git(self.manifests, "rev-parse", "HEAD~1").strip() == head:
                _git(self.manifests, "reset", "--quiet", "--soft", head)
                _git(self.manifests, "reset", "--quiet", "--", *(str(path.resolve()) for path in changed))
            for path in changed:
                path.write_text(before[path], encoding="utf-8")
            raise

    def push(self, branch: str) -> None:
        """Push the commit to a branch of origin, for a pull request or straight to where a GitOps operator looks.

        Raises:
            PlatformError: What git said.
        """
        _git(self.manifests, "push", "--quiet", "origin", f"HEAD:refs/heads/{branch}")

    def apply(self) -> None:
        """`kubectl apply -k` of each overlay.

        Raises:
            PlatformError: What kubectl said.
        """
        for path in self.paths:
            command = ["kubectl", "apply", "--server-side", "-k", str(path.parents[1])]
            try:
                subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
            except FileNotFoundError as err:
                raise PlatformError("--apply needs kubectl, which is not installed") from err
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as err:
                said = str(err.stderr or err).strip()
                raise PlatformError(f"`{' '.join(command)}` failed: {said[-500:]}") from err


def _in_git(folder: Path) -> bool:
    command = ["git", "-C", str(folder), "rev-parse", "--is-inside-work-tree"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError as err:
        raise PlatformError("git is not installed; use --no-commit") from err
    except subprocess.CalledProcessError as err:
        raise PlatformError(
            f"`git {' '.join(arguments[:3])}` failed: {(err.stderr or err.stdout).strip()[-500:]}"
        ) from err
