"""What `make bench` and `make acceptance` run: speed, memory, and what must hold; each writes JSON."""
