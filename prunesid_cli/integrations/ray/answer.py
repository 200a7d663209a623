"""`answer --ray`: actors answer the prompts, and the driver prints the answers or appends them to a file, in order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from prunesid_cli.errors import CacheError
from prunesid_cli.integrations.ray.actor import Actor, ActorSetup, actor_setup, see
from prunesid_cli.integrations.ray.cluster import ActorPool, RayOptions, connect
from prunesid_cli.pipeline.query import Query, Reply
from prunesid_cli.pipeline.session import Session, find_checkpoint
from prunesid_cli.pipeline.settings import Engine
from prunesid_cli.runtime.shutdown import StopRequest
from prunesid_cli.types import Generation

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK_QUERIES = 256
"""Queries of a block. Queries about one item follow each other, and its tokens are read once for a block."""


@dataclass(frozen=True)
class AnswerSetup:
    """What answering actors have in common.

    Attributes:
        machine: What all actors have in common.
        cache: The cache's folder.
        generation: How to decode.
        engine: What runs the language model.
        engine_args: Its arguments.
    """

    machine: ActorSetup
    cache: str
    generation: Generation
    engine: Engine
    engine_args: Mapping[str, Any]


class AnswerActor(Actor):
    """Answers blocks of queries."""

    def __init__(self, setup: AnswerSetup) -> None:
        super().__init__(setup.machine)
        self.answer_setup = setup

    @property
    def session(self) -> Session:
        return self._loaded[0]

    def prepare(self) -> str:
        """See `Actor.prepare`. The cache must be here as well."""
        see(os.chdir, self.setup.folder)
        see(os.listdir, self.answer_setup.cache)
        return super().prepare()

    @cached_property
    def _loaded(self) -> tuple[Session, Callable[[Iterator[Query]], Iterator[list[Reply]]]]:
        import torch

        from prunesid_cli.pipeline.answer import answer

        os.chdir(self.setup.folder)
        torch.set_num_threads(self.setup.num_cpus)
        setup, session = self.answer_setup, Session.open(self.setup.settings, find_checkpoint(self.setup.settings))
        if setup.engine is Engine.vllm:
            from prunesid_cli.integrations.vllm.engine import VllmEngine

            return session, VllmEngine(session, setup.generation, setup.engine_args).answer
        language, batch_sizes = session.load_language(), session.answer_batch_size()
        return session, lambda queries: answer(language, queries, setup.generation, batch_sizes)

    def answer(self, queries: Sequence[Query]) -> list[Reply]:
        """Answer queries; one reply for each, in their order."""
        _, answer = self._loaded
        return [reply for replies in answer(iter(queries)) for reply in replies]


def answer_on_cluster(
    options: RayOptions,
    session: Session,
    make_setup: Callable[[ActorSetup], AnswerSetup],
    queries: Iterator[Query],
    stop: StopRequest,
) -> Iterator[list[Reply]]:
    """Answer queries on a cluster.

    Args:
        options: Where the actors run.
        session: The model, as the driver found it.
        make_setup: What all actors have in common -> what answering actors do.
        queries: Prompts about items.
        stop: Whether the user asked to stop.

    Yields:
        Replies, in the order of the queries.
    """

    def take_block() -> list[Query]:
        block = list(islice(queries, BLOCK_QUERIES))
        if not block:
            raise StopIteration
        return block

    def on_lost(block: Sequence[Query], reason: str) -> Reply:
        source, hint = block[0].item.source, "the same command tries it again"
        problem = f"{source}: each process that worked on it was lost ({reason})"
        return Reply(block[0], None, 0.0, CacheError(problem, hint))

    with connect(options):
        setup = partial(actor_setup, session)
        pool = ActorPool[list[Query]](AnswerActor, lambda num_cpus: make_setup(setup(num_cpus)), options)
        pool.stop = stop
        for _, replies in pool.run_in_order(
            take_block,
            call=lambda actor, block: actor.answer.remote(block),
            split=lambda block: [[query] for query in block],
            on_lost=on_lost,
        ):
            yield replies
