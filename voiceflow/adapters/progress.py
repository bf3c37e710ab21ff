"""Progress of a stage that runs in another process: JSON lines in the file named by $VOICEFLOW_PROGRESS."""

import json
import os
import time
from pathlib import Path
from typing import Any

VARIABLE = "VOICEFLOW_PROGRESS"


class StageProgress:
    """Reports of one stage; without the variable they go to standard output, at most one in ten seconds.

    Args:
        stage: Name of the stage.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._last = 0.0
        path = os.environ.get(VARIABLE)
        self._path = Path(path) if path else None
        self.event("start")

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """Tell that `done` of `total` have been done of something."""
        now = time.monotonic()
        finished = total is not None and done >= total
        if now - self._last >= (0.2 if self._path else 10.0) or finished or done <= 1:
            self._last = now
            self.event("progress", what=what, done=done, total=total)

    def event(self, kind: str, **values: Any) -> None:
        """Write one event."""
        line = json.dumps({"stage": self.stage, "event": kind, **values})
        if self._path is None:
            print(line, flush=True)
        else:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
