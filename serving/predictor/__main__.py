"""`python -m serving.predictor`: the predictor as a KServe server."""

import argparse
from pathlib import Path

from kserve import ModelServer, model_server

from serving.api.access import Access
from serving.api.guard import HttpGuard
from serving.predictor.grpc_server import GuardedServer
from serving.predictor.model import StepPredictor

parser = argparse.ArgumentParser(parents=[model_server.parser], description=__doc__)
parser.add_argument(
    "--model",
    default=None,
    help="pretrained, a path, or models:/voiceflow-diarizer@champion (default: --model_dir if there, else pretrained)",
)
parser.add_argument("--model_dir", default="/mnt/models", help="where KServe's storage initializer puts the model")
parser.add_argument("--provider", default="cpu", choices=["cpu", "cuda", "tensorrt"], help="where steps run")


def main() -> None:
    """Serve until told to stop."""
    arguments, _ = parser.parse_known_args()
    uri = arguments.model or (arguments.model_dir if Path(arguments.model_dir).is_dir() else "pretrained")
    model = StepPredictor(arguments.model_name, uri, provider=arguments.provider)
    model.load()
    model_server.app.add_middleware(HttpGuard, access=Access.from_environment())
    model_server.GRPCServer = GuardedServer  # what `start` makes
    ModelServer().start([model])


if __name__ == "__main__":
    main()
