"""The one table: what an error is on HTTP and on a WebSocket."""

from voiceflow.errors import AudioError, StreamError, VoiceflowError

DONE, DRAINED, BAD_REQUEST, NOT_AUTHORISED, IDLE, TOO_LARGE, TOO_MANY, OURS = (
    1000,
    1001,
    4400,
    4401,
    4408,
    4413,
    4429,
    4500,
)

MAX_TOLD_CHARS = 1000
_BY_CODE = {
    "idle": (408, IDLE),
    "too_large": (413, TOO_LARGE),
    "too_many": (429, TOO_MANY),
    "slow_reader": (429, TOO_MANY),
    "too_long": (413, TOO_LARGE),
    "bad_chunk": (400, BAD_REQUEST),
    "not_authorised": (401, NOT_AUTHORISED),
    "bad_token": (401, NOT_AUTHORISED),
    "forbidden": (403, NOT_AUTHORISED),
    "draining": (503, DRAINED),
    "predictor_down": (503, OURS),
    "unavailable": (503, OURS),
}


def http_status(error: Exception) -> int:
    """HTTP status of an error."""
    if isinstance(error, StreamError):
        return _BY_CODE.get(error.code, (400, BAD_REQUEST))[0]
    return 400 if isinstance(error, VoiceflowError) else 500


def close_code(error: Exception) -> int:
    """WebSocket close code of an error."""
    if isinstance(error, StreamError):
        return _BY_CODE.get(error.code, (400, BAD_REQUEST))[1]
    return BAD_REQUEST if isinstance(error, VoiceflowError) else OURS


def wire_code(error: Exception) -> str:
    """The `code` of an error message."""
    if isinstance(error, StreamError):
        return error.code
    if isinstance(error, AudioError):
        return "bad_audio"
    return "bad_request" if isinstance(error, VoiceflowError) else "internal"


def told(error: Exception) -> str:
    """What a client is told of an error; our own failures stay in the log."""
    ours = "internal error; the stream cannot go on, open another"
    return str(error)[:MAX_TOLD_CHARS] if isinstance(error, VoiceflowError) else ours
