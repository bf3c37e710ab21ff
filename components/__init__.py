"""Thin KFP shells, one a stage: fetch inputs, call voiceflow.stages, log to MLflow, hand on outputs."""

BASE_IMAGE = "ghcr.io/voiceflow/voiceflow-python:0.1.0"
"""Image with the package, its `train`, `pipelines` and `validation` extras, and kfp."""
