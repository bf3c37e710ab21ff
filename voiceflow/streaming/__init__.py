"""Streams without a network: one session's state, turns from activities, the words of the wire."""
