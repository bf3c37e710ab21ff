"""`python -m benchmarks.acceptance PART`: what must hold, run item by item, with figures in docs/results/."""

import argparse
import importlib
import json
import os
import shutil
import sys
from pathlib import Path

from benchmarks.items import IS_TINY, Row
from voiceflow.adapters.data_versions import git_commit

RESULTS = Path("docs/results")
PARTS = ("start", "thread", "model", "streams", "servers", "rollout", "data")


def main() -> None:
    """Run a part, print its table, write docs/results/<part>.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--slow", action="store_true", help="the items that take a quarter of an hour and more")
    parser.add_argument(
        "--item", default="", help="only the items of this number (start, streams, servers, rollout, data)"
    )
    arguments = parser.parse_args()
    part = importlib.import_module(f"benchmarks.acceptance_{arguments.part}")
    path = RESULTS / f"{arguments.part}.json"
    RESULTS.mkdir(parents=True, exist_ok=True)
    kept = json.loads(path.read_text(encoding="utf-8"))["items"] if path.is_file() else {}
    rows: dict[str, Row] = {}
    commit = git_commit()  # before the report itself is a change
    chosen = {"item": arguments.item} if arguments.item else {}
    for name, row in part.items(slow=arguments.slow, **chosen):
        rows[name] = {"commit": commit, **row}
        print_row(name, row)
        write(path, kept | rows)
    if not (arguments.slow or arguments.item):
        # All but the slow items were run: what has another name now is gone.
        slow = {name: row for name, row in kept.items() if name in getattr(part, "SLOW", ())}
        write(path, slow | rows)
    # Tiny figures need not hold; what failed to run did so for another reason.
    broke = [name for name, row in rows.items() if "Traceback" in json.dumps(row["figures"])]
    sys.exit(bool(broke) or (not IS_TINY and any(row["passed"] is False for row in rows.values())))


def write(path: Path, rows: dict[str, Row]) -> None:
    """The report; items that were not run keep the figures of the last time."""
    report = {"cores": os.cpu_count(), "load_average": os.getloadavg()[0], "items": rows}
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def print_row(name: str, row: Row) -> None:
    """One line of the table."""
    state = {True: "holds", False: "FAILS", None: "-"}[row["passed"]]
    width = max(40, shutil.get_terminal_size((200, 20)).columns - 60)
    print(f"{name:46} {state:6} {json.dumps(row['figures'])[:width]}", flush=True)


if __name__ == "__main__":
    main()
