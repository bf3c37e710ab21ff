"""Where state lives on a laptop: everything under $VOICEFLOW_HOME, by default ./.voiceflow."""

import os
from pathlib import Path


def home() -> Path:
    """The folder, absolute; not made here."""
    return Path(os.environ.get("VOICEFLOW_HOME", ".voiceflow")).resolve()


def shared() -> Path | None:
    """Folder of shared recordings named by $VOICEFLOW_SHARED (default ../shared), or None where absent."""
    folder = Path(os.environ.get("VOICEFLOW_SHARED", "../shared")).resolve()
    return folder if folder.is_dir() else None


def tracking_uri() -> str:
    """MLflow's tracking URI: $MLFLOW_TRACKING_URI, or SQLite under `home()`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"
