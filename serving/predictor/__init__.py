"""The predictor: one batched model step over the Open Inference Protocol, REST and gRPC."""

from serving.predictor.lean import import_kserve

import_kserve()
