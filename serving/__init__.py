"""What runs on servers: the KServe predictor, the streaming transformer, and clients."""
