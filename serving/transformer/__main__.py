"""`python -m serving.transformer`: WebSocket streams on KServe's server, with a model here or on a predictor."""

import argparse
import logging

from kserve import Model, ModelServer, model_server
from kserve.model_server import app

from serving.transformer.app import StreamingApp
from serving.transformer.engine import Engine
from serving.transformer.remote import RemotePredictor
from voiceflow.adapters.registry import resolve_model
from voiceflow.config import load_params
from voiceflow.runtime import StepModel

parser = argparse.ArgumentParser(parents=[model_server.parser], description=__doc__, conflict_handler="resolve")
parser.add_argument("--predictor_host", default=None, help="host:port of a predictor; without one the model runs here")
parser.add_argument("--predictor_protocol", default="grpc-v2", choices=["grpc-v2"], help="protocol of the predictor")
parser.add_argument("--model", default="pretrained", help="pretrained, a path, or models:/voiceflow-diarizer@champion")
parser.add_argument("--variant", default="champion", help="told to clients and in metrics")


class StreamingTransformer(Model):
    """KServe's view of the transformer: ready as soon as the engine is."""

    def load(self) -> bool:
        """Nothing more to load."""
        self.ready = True
        return True


def build_engine(arguments: argparse.Namespace) -> Engine:
    """The engine over a model in this process or on a predictor."""
    config = load_params().streaming
    if arguments.predictor_host:
        predictor = RemotePredictor(arguments.predictor_host, arguments.model_name)
        return Engine(predictor.metadata(), predictor.score, config)
    return Engine.local(StepModel(resolve_model(arguments.model)), config)


def main() -> None:
    """Serve until told to stop."""
    arguments, _ = parser.parse_known_args()
    engine = build_engine(arguments)
    app.router.routes.extend(StreamingApp(engine, variant=arguments.variant).routes())
    logging.getLogger("voiceflow").setLevel(logging.INFO)
    transformer = StreamingTransformer(arguments.model_name)
    transformer.load()
    ModelServer().start([transformer])


if __name__ == "__main__":
    main()
