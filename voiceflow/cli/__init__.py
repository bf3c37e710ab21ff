"""The command line; it may import everything, lazily, and nothing imports it."""
