"""The stages of the pipeline: typed config and paths in, files out, no platform."""
