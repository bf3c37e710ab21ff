"""Clients of the streams."""
