"""`python -m pipelines`: compile each pipeline into the YAML beside it."""

import warnings
from pathlib import Path

from kfp import compiler

from pipelines.training import training

TARGET = Path(__file__).with_name("training.yaml")


def compile_to(path: Path) -> None:
    """Write the compiled training pipeline; the same source gives the same bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiler.Compiler().compile(training, str(path))


if __name__ == "__main__":
    compile_to(TARGET)
