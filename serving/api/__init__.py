"""What clients speak: the stream protocols over WebSockets, and plain HTTP."""
