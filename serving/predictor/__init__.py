"""The predictor: one batched model step over the Open Inference Protocol, REST and gRPC."""
