"""Networks, one a file, config on top."""
