"""`python -m pipelines`: compile each pipeline into the YAML beside it."""

import warnings
from pathlib import Path
from typing import Any

from kfp import compiler

from pipelines.drift import drift
from pipelines.training import training

PIPELINES: dict[str, Any] = {"training": training, "drift": drift}


def compile_to(folder: Path) -> None:
    """Write the compiled pipelines; the same source gives the same bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, pipeline in PIPELINES.items():
            compiler.Compiler().compile(pipeline, str(folder / f"{name}.yaml"))


if __name__ == "__main__":
    compile_to(Path(__file__).parent)
