"""One file a pipeline: wiring only."""
