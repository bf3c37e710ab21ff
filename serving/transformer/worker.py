"""One process that holds streams: its engine, its front, and in the first of them KServe's server behind it."""

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
from pathlib import Path

import uvloop

from serving.api.access import Access
from serving.api.conversation import Tokens
from serving.api.guard import tell_what_is_open
from serving.api.keeper import NOT_YOURS
from serving.api.service import Service, token_key
from serving.api.store import store_from_environment
from serving.tracing import Tracer
from serving.transformer.engine import Engine, measure_cost
from serving.transformer.fellows import HTTP_WORKER, Fellows
from serving.transformer.front import Front, listen
from serving.transformer.observer import Observer
from serving.transformer.variants import Variant, Variants
from voiceflow.adapters.fetch import fetch_model
from voiceflow.adapters.registry import served_model
from voiceflow.adapters.splits import Notes, notes_at, read_split
from voiceflow.adapters.stream_log import stream_log_at
from voiceflow.audio import file_digest
from voiceflow.config import StreamingConfig, load_params
from voiceflow.errors import ModelError, PlatformError, VoiceflowError
from voiceflow.runtime import StepModel
from voiceflow.split import Served, Split

logger = logging.getLogger("voiceflow.worker")
REMOTE = "grpc://"
"""Begins the address of a predictor; several with commas between them."""
IMPATIENCE_S = 3.0
"""So long a step of a challenger waits for some replica of its predictor before the champion goes on."""
GC_THRESHOLD = 20_000
"""Objects that come before the youngest are looked through for cycles."""


def run(arguments: argparse.Namespace) -> None:
    """Serve until told to stop."""
    variants = build_variants(arguments)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(arguments, variants))


def build_variants(arguments: argparse.Namespace) -> Variants:
    """The champion of the split, or of the flags where that is the same or there is none, and how to come by others."""
    config = streaming_config(arguments)
    notes = notes_at(arguments.split) if arguments.split else None
    split = None if notes is None else _split_now(notes)
    uri = REMOTE + arguments.predictor_host if arguments.predictor_host else arguments.model
    champion = load_variant(Served(uri=uri), arguments.variant, config, model_name=arguments.model_name, is_given=True)
    if split is not None and split.champion.key != champion.served.key:
        try:
            champion = load_variant(split.champion, "champion", config, model_name=arguments.model_name)
        except VoiceflowError as err:
            logger.warning("the split's champion cannot be loaded; serving what the flags name instead: %s", err)
    if champion.file is not None:
        champion.engine.cost = measure_cost(champion.file)
    return Variants(
        champion,
        config,
        load=lambda served, role: load_variant(served, role, config, model_name=arguments.model_name),
        read=None if notes is None else lambda: read_split(notes),
        observer=None if not arguments.statistics else _observer(arguments.statistics),
    )


def _observer(where: str) -> Observer:
    name = f"{socket.gethostname()}-{os.getpid()}"
    return Observer(stream_log_at(where, name=name), load_params().drift)


def _split_now(notes: Notes) -> Split | None:
    try:
        return read_split(notes)
    except PlatformError as err:  # it is looked for again each second
        logger.warning("serving what the flags name: %s", err)
        return None


def load_variant(
    served: Served, role: str, config: StreamingConfig, *, model_name: str, is_given: bool = False
) -> Variant:
    """A model with an engine: in this process, or on a predictor.

    Args:
        served: Where it is, and the digest that it must have.
        role: What it is to be.
        config: Limits.
        model_name: Its name on a predictor.
        is_given: The one of the flags, whose digest is checked as the environment asks.

    Raises:
        ModelError: Nothing there, or not what was promised.
        SignatureError: Unsigned, or changed since.
    """
    if served.uri.startswith(REMOTE):
        from serving.predictor.lean import import_kserve

        import_kserve()  # before the next line would bring all of it
        from serving.transformer.remote import PATIENCE_S, RemotePredictor

        patience_s = PATIENCE_S if role == "champion" else IMPATIENCE_S
        predictor = RemotePredictor(served.uri.removeprefix(REMOTE), model_name, patience_s=patience_s)
        metadata = predictor.metadata()
        digest = "" if predictor.provenance is None else predictor.provenance.digest
        if served.digest not in ("", digest):
            raise ModelError(
                f"{served.uri}: expected the model {served.digest[:12]}, it serves {digest[:12] or 'another'}"
            )
        known = served.model_copy(update={"digest": digest})
        engine = Engine(metadata, predictor.score, config, variant=role)
        return Variant(known, engine, role, predictor.provenance)
    if is_given:
        path, provenance = served_model(served.uri)
    else:
        path, provenance = fetch_model(served.uri, digest=served.digest)
    file = StepModel(path)
    known = served.model_copy(update={"digest": served.digest or file_digest(path)})
    return Variant(known, Engine.local(file, config, variant=role), role, provenance, file)


def streaming_config(arguments: argparse.Namespace) -> StreamingConfig:
    """params.yaml with the flags laid over it."""
    flags = {"max_speed": arguments.speed_limit, "max_streams": arguments.max_streams}
    given = {name: value for name, value in flags.items() if value is not None}
    return StreamingConfig.model_validate({**load_params().streaming.model_dump(), **given})


async def _serve(arguments: argparse.Namespace, variants: Variants) -> None:
    key = token_key()
    champion = variants.champion
    store = store_from_environment(key, keep_s=10.0 * champion.engine.config.resume_s)
    if store is not None:
        await store.check()
    service = Service(
        variants,
        tokens=Tokens(key),
        tracer=Tracer(**{"service.version": champion.engine.metadata.version}),
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

        routes = HttpApi(service).routes()
        kserve = KServe(arguments, champion.file, routes, service.access, provenance=champion.provenance)
        await kserve.start()
        variants.on_changed = lambda: kserve.serve(variants.champion.file, variants.champion.provenance)
        pass_on = kserve.take
    else:
        assert fellows is not None
        pass_on = fellows.pass_on
    front = Front(service, pass_on)
    if fellows is not None:
        fellows.take_over(front.take)
    front.start(listen(arguments.host, arguments.http_port, share=fellows is not None))
    if fellows is None or arguments.worker_index == HTTP_WORKER:
        tell_what_is_open(service.access, arguments.host, arguments.http_port, arguments.grpc_port)
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
        saved: bytes | None = await fellows.ask_all("take", session_id, owner)
        return saved

    async def keep_after_all(saved: bytes | None, session_id: str, owner: str) -> None:
        if saved not in (None, NOT_YOURS):
            await service.keeper.take_in(session_id, saved)

    async def redeem(ticket_id: str) -> bool:
        return bool(await fellows.ask(HTTP_WORKER, "redeem", ticket_id))

    service.keeper.fetch = fetch
    service.fellows = fellows

    async def count(owner: str) -> int:
        return int(await fellows.ask(HTTP_WORKER, "count", owner) or 0)

    if index != HTTP_WORKER:
        service.redeem_elsewhere = redeem
        service.count_elsewhere = count
    answers = {"take": service.keeper.give_away, "redeem": service.redeem, "count": service.count}
    await fellows.start(answers, undo={"take": keep_after_all})
