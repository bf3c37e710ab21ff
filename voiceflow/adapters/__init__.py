"""The one place of the library for platforms: MLflow, DVC, git."""
