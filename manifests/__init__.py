"""Manifests of the stack, and what checks them: `python -m manifests.check`."""
