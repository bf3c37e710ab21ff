"""One process that holds streams: its engine, its front, and in the first of them KServe's server behind it."""

import argparse
import asyncio
import gc
import signal
from pathlib import Path

import uvloop

from serving.api.access import Access
from serving.api.conversation import Tokens
from serving.api.service import Service, token_key
from serving.api.store import store_from_environment
from serving.tracing import Tracer
from serving.transformer.engine import Engine
from serving.transformer.fellows import HTTP_WORKER, Fellows
from serving.transformer.front import Front, listen
from voiceflow.adapters.registry import served_model
from voiceflow.config import StreamingConfig, load_params
from voiceflow.provenance import Provenance
from voiceflow.runtime import StepModel

FETCH_TRIES, FETCH_AGAIN_S = 3, 0.1
GC_THRESHOLD = 20_000
"""Objects that come before the youngest are looked through for cycles."""
"""A stream on its way from one worker to another is asked for again."""


def run(arguments: argparse.Namespace) -> None:
    """Serve until told to stop."""
    engine, model, provenance = build_engine(arguments)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(arguments, engine, model, provenance))


def build_engine(arguments: argparse.Namespace) -> tuple[Engine, StepModel | None, Provenance | None]:
    """The engine, its model where that is in this process, and where the model comes from."""
    config = streaming_config(arguments)
    if arguments.predictor_host:
        from serving.transformer.remote import RemotePredictor

        predictor = RemotePredictor(arguments.predictor_host, arguments.model_name)
        return Engine(predictor.metadata(), predictor.score, config), None, predictor.provenance
    path, provenance = served_model(arguments.model)
    model = StepModel(path)
    return Engine.local(model, config), model, provenance


def streaming_config(arguments: argparse.Namespace) -> StreamingConfig:
    """params.yaml with the flags laid over it."""
    flags = {"max_speed": arguments.speed_limit, "max_streams": arguments.max_streams}
    given = {name: value for name, value in flags.items() if value is not None}
    return StreamingConfig.model_validate({**load_params().streaming.model_dump(), **given})


async def _serve(
    arguments: argparse.Namespace, engine: Engine, model: StepModel | None, provenance: Provenance | None
) -> None:
    key = token_key()
    store = store_from_environment(key, keep_s=10.0 * engine.config.resume_s)
    if store is not None:
        await store.check()
    service = Service(
        engine,
        variant=arguments.variant,
        provenance=provenance,
        tokens=Tokens(key),
        tracer=Tracer(**{"service.version": engine.metadata.version}),
        access=Access.from_environment(),
        store=store,
    )
    fellows = None
    if arguments.worker_dir is not None:
        fellows = Fellows(Path(arguments.worker_dir), arguments.worker_index, arguments.workers)
        await _join(service, fellows, arguments.worker_index)
    service.start()
    kserve = None
    if fellows is None or arguments.worker_index == HTTP_WORKER:
        from serving.api.http import HttpApi
        from serving.transformer.kserve_app import KServe

        kserve = KServe(arguments, model, HttpApi(service).routes(), provenance=provenance)
        await kserve.start()
        pass_on = kserve.take
    else:
        assert fellows is not None
        pass_on = fellows.pass_on
    front = Front(service, pass_on)
    if fellows is not None:
        fellows.take_over(front.take)
    front.start(listen(arguments.http_port, share=fellows is not None))
    # What is here by now stays: the collector would walk it for a tenth of a second whenever many streams come.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 50)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await stopping.wait()
    service.is_draining = True
    await service.drain()
    front.stop()
    if kserve is not None:
        await kserve.stop()
    service.tracer.shut_down()


async def _join(service: Service, fellows: Fellows, index: int) -> None:
    """Let streams, tickets and counts be those of all workers together."""

    async def fetch(session_id: str, owner: str) -> bytes | None:
        for _ in range(FETCH_TRIES):
            saved: bytes | None = await fellows.ask_all("take", session_id, owner)
            if saved is not None:
                return saved
            await asyncio.sleep(FETCH_AGAIN_S)
        return None

    async def redeem(ticket_id: str) -> bool:
        return bool(await fellows.ask(HTTP_WORKER, "redeem", ticket_id))

    service.fetch = fetch
    service.fellows = fellows

    async def count(owner: str) -> int:
        return int(await fellows.ask(HTTP_WORKER, "count", owner) or 0)

    if index != HTTP_WORKER:
        service.redeem_elsewhere = redeem
        service.count_elsewhere = count
    await fellows.start({"take": service.give_away, "redeem": service.redeem, "count": service.count})
