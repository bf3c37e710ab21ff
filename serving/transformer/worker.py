"""One process that holds streams: its engine, its front, and KServe's server behind it."""

import argparse
import asyncio
import signal

import uvloop

from serving.api.http import HttpApi
from serving.api.service import Service
from serving.transformer.engine import Engine
from serving.transformer.front import Front, listen
from serving.transformer.kserve_app import KServe
from serving.transformer.remote import RemotePredictor
from voiceflow.adapters.registry import resolve_model
from voiceflow.config import StreamingConfig, load_params
from voiceflow.runtime import StepModel


def run(arguments: argparse.Namespace) -> None:
    """Serve until told to stop."""
    engine, model = build_engine(arguments)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(arguments, engine, model))


def build_engine(arguments: argparse.Namespace) -> tuple[Engine, StepModel | None]:
    """The engine, and its model where that is in this process."""
    config = streaming_config(arguments)
    if arguments.predictor_host:
        predictor = RemotePredictor(arguments.predictor_host, arguments.model_name)
        return Engine(predictor.metadata(), predictor.score, config), None
    model = StepModel(resolve_model(arguments.model))
    return Engine.local(model, config), model


def streaming_config(arguments: argparse.Namespace) -> StreamingConfig:
    """params.yaml with the flags laid over it."""
    flags = {"max_speed": arguments.speed_limit, "max_streams": arguments.max_streams}
    given = {name: value for name, value in flags.items() if value is not None}
    return StreamingConfig.model_validate({**load_params().streaming.model_dump(), **given})


async def _serve(arguments: argparse.Namespace, engine: Engine, model: StepModel | None) -> None:
    service = Service(engine, variant=arguments.variant)
    service.start()
    kserve = KServe(arguments, model, HttpApi(service).routes())
    await kserve.start()
    front = Front(service, kserve.take)
    front.start(listen(arguments.http_port, share=False))
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await stopping.wait()
    service.is_draining = True
    await service.drain()
    front.stop()
    await kserve.stop()
