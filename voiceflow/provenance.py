"""Where a model file comes from, as a small statement that travels beside it and is signed with it."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from voiceflow.config import Section
from voiceflow.contract import ModelMetadata
from voiceflow.errors import ModelError
from voiceflow.gates import Verdict

PROVENANCE, BILL = "provenance.json", "bom.cdx.json"
"""Beside the model file: this statement, and the bill of materials."""


class Provenance(Section):
    """Digests of all that made a model, and of what was found out about it."""

    digest: str
    """SHA-256 of the file that CPUs serve."""
    files: dict[str, str]
    """SHA-256 of every model file, by name."""
    name: str
    version: str
    """Semantic version, as in the file."""
    data_revision: str
    """DVC's digest of the data."""
    git_commit: str
    params_digest: str
    """SHA-256 of the sections of params.yaml that it was judged by."""
    run_id: str
    """MLflow run that made it, or an empty string."""
    gates: dict[str, bool]
    gates_digest: str
    """SHA-256 of the verdicts with their figures."""
    made_at: str
    """UTC, ISO 8601."""
    made_by: str


def state_provenance(
    metadata: ModelMetadata,
    *,
    digest: str,
    files: dict[str, str],
    params: Any,
    gates: Sequence[Verdict],
    made_at: str,
    made_by: str,
) -> Provenance:
    """The statement about a file.

    Args:
        metadata: What the file says of itself.
        digest: Of the file that CPUs serve.
        files: Digests of all model files by name.
        params: JSON-able parameters that judged it.
        gates: All verdicts.
        made_at: UTC, ISO 8601.
        made_by: User and host.
    """
    return Provenance(
        digest=digest,
        files=files,
        name=metadata.name,
        version=metadata.version,
        data_revision=metadata.data_revision,
        git_commit=metadata.git_commit,
        params_digest=digest_of(params),
        run_id=metadata.run_id,
        gates={gate.gate: gate.passed for gate in gates},
        gates_digest=digest_of([gate.as_dict() for gate in gates]),
        made_at=made_at,
        made_by=made_by,
    )


def digest_of(value: Any) -> str:
    """SHA-256 of JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_provenance(folder: Path) -> Provenance | None:
    """The statement beside a model file; None where there is none, as for the weights in the package.

    Raises:
        ModelError: It is malformed.
    """
    path = folder / PROVENANCE
    if not path.is_file():
        return None
    try:
        return Provenance.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as err:
        raise ModelError(f"{path}: not a statement of provenance ({err.errors()[0]['loc']})") from err
