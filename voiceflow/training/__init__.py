"""Training: data in memory, losses, checkpoints, and a loop that yields what happened."""
