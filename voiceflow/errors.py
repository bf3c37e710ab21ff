"""Everything a user can put right, as one small tree of exceptions.

VoiceflowError
|- ConfigError              params.yaml or a flag is wrong
|- AudioError               the audio cannot be used
|  |- AudioFormatError      not audio, or damaged
|  `- SampleRateError       a rate outside what we resample
|- DataError                a corpus, manifest or RTTM is wrong
|  `- DataRefusedError      `validate` found critical faults
|- ModelError               a model file cannot be found or loaded
|  |- ContractError         a model file breaks a clause of the contract
|  `- SignatureError        a model's files are not what was signed
|- StreamError              a client broke the stream protocol
`- PlatformError            MLflow, DVC, KFP or a server said no
"""

from collections.abc import Sequence
from pathlib import Path


class VoiceflowError(Exception):
    """Base of all errors that a user can put right."""


class ConfigError(VoiceflowError):
    """A configuration value is missing, unknown or out of range."""


class AudioError(VoiceflowError):
    """Audio was given that cannot be used."""


class AudioFormatError(AudioError):
    """The bytes are not audio we can read, or are damaged."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class SampleRateError(AudioError):
    """A sample rate outside the range that is resampled."""

    def __init__(self, actual_hz: float, minimum_hz: int, maximum_hz: int) -> None:
        super().__init__(actual_hz, minimum_hz, maximum_hz)
        self.actual_hz = actual_hz
        self.minimum_hz = minimum_hz
        self.maximum_hz = maximum_hz

    def __str__(self) -> str:
        return (
            f"expected a sample rate from {self.minimum_hz} to {self.maximum_hz} Hz, "
            f"got {self.actual_hz} Hz; resample on your side or correct the declared rate"
        )


class DataError(VoiceflowError):
    """A corpus, manifest or RTTM file is missing or malformed."""


class DataRefusedError(DataError):
    """Validation found critical faults; training on this data is refused."""

    def __init__(self, faults: Sequence[str], report: str) -> None:
        super().__init__(list(faults), report)
        self.faults = list(faults)
        self.report = report

    def __str__(self) -> str:
        listed = "\n".join(f"  - {fault}" for fault in self.faults)
        return (
            f"the data was refused for {len(self.faults)} fault(s):\n{listed}\nfull report: {self.report}\n"
            "what to do: look at the report; mend those recordings or take them away; or leave them out with "
            "`validate.quarantine: true` in params.yaml; or make a rule a warning under `validate.severity`"
        )


class ModelError(VoiceflowError):
    """A model cannot be found or loaded."""


class ContractError(ModelError):
    """A model file breaks a clause of the servable-model contract."""

    def __init__(self, clause: str, expected: object, actual: object) -> None:
        super().__init__(clause, expected, actual)
        self.clause = clause
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        return (
            f"model contract, clause '{self.clause}': expected {self.expected}, got {self.actual}; "
            "export the model again with `voiceflow stage export`"
        )


class SignatureError(ModelError):
    """The files of a model are not what somebody we trust has signed."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(folder, reason)
        self.folder = folder
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.folder}: the signature does not hold: {self.reason}; sign with `voiceflow promote --sign-key KEY`"
        )


class StreamError(VoiceflowError):
    """A stream cannot be had or cannot go on; `code` is the word sent on the wire."""

    def __init__(self, code: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        """When it may be tried again, where that would help."""

    def __str__(self) -> str:
        return self.message


class PlatformError(VoiceflowError):
    """MLflow, DVC, KFP or a server refused or could not be reached."""
