"""`python -m serving.transformer`: streams and KServe's endpoints on one port, with a model here or on a predictor."""

import argparse
import os
import sys

from serving import logs
from voiceflow.adapters.splits import SPLIT_VARIABLE
from voiceflow.errors import VoiceflowError


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Our flags; KServe reads its own from the same command line."""
    parser = argparse.ArgumentParser(prog="serving.transformer", description=__doc__)
    parser.add_argument("--model_name", default="voiceflow-diarizer", help="name of the model in KServe's protocols")
    parser.add_argument(
        "--host",
        default=os.environ.get("VOICEFLOW_HOST", "127.0.0.1"),
        help="address to listen on: 0.0.0.0 or :: for all of this machine's",
    )
    parser.add_argument("--http_port", type=int, default=8080, help="HTTP and WebSocket port")
    parser.add_argument("--grpc_port", type=int, default=8081, help="gRPC port (Open Inference Protocol)")
    parser.add_argument("--model", default="pretrained", help="pretrained, a path, or models:/NAME@champion")
    parser.add_argument("--variant", default="champion", help="told to clients and in metrics")
    parser.add_argument(
        "--predictor_host", default=None, help="host:port of a predictor; without one the model is here"
    )
    parser.add_argument("--predictor_protocol", default="grpc-v2", choices=["grpc-v2"])
    parser.add_argument(
        "--split",
        default=os.environ.get(SPLIT_VARIABLE),
        help="file or redis:// address that says which models new streams get; see `voiceflow rollout`",
    )
    parser.add_argument(
        "--statistics",
        default=os.environ.get("VOICEFLOW_STATISTICS"),
        help="folder or redis:// address for statistics of some streams, never audio; see docs/privacy.md",
    )
    parser.add_argument("--speed_limit", type=float, default=None, help="audio seconds a second of one stream; 0: none")
    parser.add_argument(
        "--log_format", default=os.environ.get("VOICEFLOW_LOG_FORMAT", "json"), choices=["json", "text"]
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that share the port")
    parser.add_argument("--worker_index", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--worker_dir", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--max_streams", type=int, default=None, help="streams that are held at most")
    return parser.parse_known_args(arguments)[0]


def main() -> None:
    """Serve until told to stop."""
    arguments = parse_arguments()
    if arguments.workers > 1 and arguments.worker_index is None:
        from serving.transformer.supervisor import supervise

        raise SystemExit(supervise(arguments))
    logs.configure(arguments.log_format)
    from serving.transformer.worker import run

    try:
        run(arguments)
    except VoiceflowError as err:
        print(f"error: {err}", file=sys.stderr)
        raise SystemExit(1) from err


if __name__ == "__main__":
    main()
