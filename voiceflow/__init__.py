"""VoiceFlow: real-time speaker diarization, from versioned data to live streams."""

import os

__version__ = "0.1.0"

# Telemetry of every dependency is off unless the user has said otherwise.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "ITERATIVE_DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
}.items():
    os.environ.setdefault(_name, _value)
