"""The streaming transformer: WebSocket streams in, one batched step a tick, turns out."""
