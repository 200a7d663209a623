"""Connects to a Ray cluster, starts actors, and gives them blocks of work whose results come in order."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

from prunesid_cli.errors import ModelError, PruneSIDError, UsageError
from prunesid_cli.models.loading.checkpoint import first_line
from prunesid_cli.runtime.shutdown import StopRequest

BLOCKS_OF_ACTOR, WAITING_BLOCKS = 2, 4
"""Blocks of an actor at a time, so that it need not wait; and blocks an actor that wait for their turn."""
MAX_FAILED_STARTS = 8
"""How many actors may die, or be lost with their machines, before they have loaded the model."""
POLL_SECONDS, CONNECT_SECONDS, NOTE_SECONDS = 0.2, 10.0, 30.0

logger = logging.getLogger(__name__)
Block = TypeVar("Block")
R = TypeVar("R")


@dataclass(frozen=True)
class RayOptions:
    """Where the actors run.

    Attributes:
        address: "auto", "local" or an address, as `ray.init` takes it.
        min_actors: Actors that must be there before the run begins.
        max_actors: Most actors; None: as many as the cluster has room for.
        num_gpus: GPUs of an actor; None: one, if the cluster has any.
        num_cpus: Cores of an actor; None: its share of the cluster's if it has a GPU, else one.
    """

    address: str
    min_actors: int = 1
    max_actors: int | None = None
    num_gpus: float | None = None
    num_cpus: int | None = None

    @classmethod
    def from_options(
        cls, address: str, workers: int | tuple[int, int] | None, num_gpus: float | None, num_cpus: int | None
    ) -> RayOptions:
        """From a command line, where `workers` is the largest number of actors, or a pair with the smallest.

        0, which may be set for runs without a cluster, stands for no number.
        """
        fewest, most = workers if isinstance(workers, tuple) else (1, workers or None)
        return cls(address, fewest, most, num_gpus, num_cpus)


@contextmanager
def connect(options: RayOptions) -> Iterator[None]:
    """Connect to a cluster, and leave it at the end. With "auto" and no cluster, one is started on this machine.

    Raises:
        ModelError: Ray is not installed.
        UsageError: There is no such cluster.
    """
    if find_spec("ray") is None:
        raise ModelError("--ray needs the package ray", "pip install 'prunesid[ray]'")
    # Without the second one, Ray would hold messages back and print them to stdout when it ends.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    import ray

    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    with redirect_stdout(_StdoutWithoutRay(sys.stdout)):
        try:
            _check_reachable(options.address)
            ray.init(address=options.address, **quiet)
        except ConnectionError as error:
            if options.address != "auto":
                problem = f"there is no Ray cluster at {options.address}"
                raise UsageError(problem, "start one with: ray start --head, or use --ray local") from error
            ray.init(address="local", include_dashboard=False, **quiet)
        except ValueError as error:
            raise UsageError(f"--ray {options.address}: {error}", "auto, local, or HOST:PORT") from error
        try:
            yield
        finally:
            ray.shutdown()


class _StdoutWithoutRay:
    """Stdout without what a thread of Ray prints there, such as the loss of a node; that is logged instead."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        if not threading.current_thread().name.startswith("ray_"):
            return int(self.stream.write(text))
        if text.strip():
            logger.debug("%s", text.strip())
        return len(text)


def _check_reachable(address: str) -> None:
    """Raises ConnectionError if nothing listens at HOST:PORT. Ray itself would try for minutes."""
    match = re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", address)
    if match is None:
        return
    try:
        socket.create_connection((match[1], int(match[2])), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(address) from error


class ActorPool(Generic[Block]):
    """Actors of one class.

    Args:
        actor_class: The class. Its method `prepare` makes an actor ready, or raises `PruneSIDError`. What it returns
            must be the same for all.
        make_setup: Cores of an actor -> the argument of the class.
        options: How many actors there are, and what each takes.

    Attributes:
        stop: Whether the user asked to stop; set by the owner.
        facts: What `prepare` returned, for each actor that is ready.
    """

    def __init__(self, actor_class: type, make_setup: Callable[[int], object], options: RayOptions) -> None:
        import ray

        self.ray, self.stop = ray, StopRequest()
        resources = ray.cluster_resources()
        num_gpus = min(resources.get("GPU", 0), 1) if options.num_gpus is None else options.num_gpus
        num_cpus = options.num_cpus or cpus_of_actor(num_gpus, resources)
        count = options.max_actors or room_for(num_gpus, num_cpus, resources)
        # Ray does not restart them: a dead actor would wait for its place, which another one may have taken.
        remote = ray.remote(actor_class).options(
            num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=0, scheduling_strategy="SPREAD"
        )
        self.start = partial(remote.remote, make_setup(num_cpus))
        self.preparing = dict[Any, Any]()  # reference to the result of `prepare` -> actor
        self.ready: list[Any] = []
        self.facts: list[Any] = []
        self.num_failed_starts = 0
        for _ in range(max(count, options.min_actors)):
            self._start_actor()
        next_note = time.monotonic() + NOTE_SECONDS
        while len(self.ready) < options.min_actors:
            self._take_prepared(POLL_SECONDS)
            if time.monotonic() > next_note:
                room = room_for(num_gpus, num_cpus, ray.cluster_resources())
                ready = f"{len(self.ready)} of {options.min_actors} workers are ready"
                logger.info("%s, and the cluster has room for %d: waiting", ready, room)
                next_note += NOTE_SECONDS

    def _start_actor(self) -> None:
        actor = self.start()
        self.preparing[actor.prepare.remote()] = actor

    def _take_prepared(self, timeout: float) -> None:
        """Add the actors that became ready. Raises what `prepare` raised."""
        if self.preparing:
            done, _ = self.ray.wait(list(self.preparing), num_returns=1, timeout=timeout)
            for reference in done:
                try:
                    self.facts.append(self.get(reference))
                except self.ray.exceptions.RayActorError as error:
                    self.preparing.pop(reference)
                    self.num_failed_starts += 1
                    if self.num_failed_starts <= MAX_FAILED_STARTS:
                        self._start_actor()
                        continue
                    problem = f"a worker of the cluster died while it loaded the model: {first_line(error)}"
                    raise ModelError(problem, "see its log in /tmp/ray/session_latest/logs, on its node") from error
                if self.facts[-1] != self.facts[0]:
                    problem = f"the nodes of the cluster differ: {self.facts[0]} and {self.facts[-1]}"
                    raise ModelError(problem, "name --dtype and --device")
                self.ready.append(self.preparing.pop(reference))

    def get(self, reference: Any) -> Any:
        """The result of a call.

        Raises:
            PruneSIDError: The call raised it, or failed otherwise.
        """
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, PruneSIDError):
                raise error.cause from None
            raise

    def run_in_order(
        self,
        take_block: Callable[[], Block | None],
        call: Callable[[Any, Block], Any],
        split: Callable[[Block], list[Block]],
        on_lost: Callable[[Block, str], R],
    ) -> Iterator[tuple[Block, list[R]]]:
        """Give blocks to actors.

        Args:
            take_block: Gives the next block; None if there is none for now. Raises StopIteration after the last one.
            call: Starts the work on a block by an actor, and returns a reference to its list of results. None: there is
                nothing to do for this block.
            split: A block -> blocks of one part each, which are tried if actors die of the block.
            on_lost: Gives the result of a part that was lost again. Its second argument is the name of the error.

        Yields:
            Each block with its results, in the order of the blocks. Few results wait in memory, also behind a slow one.
            Nothing is given once a stop was requested.
        """
        waiting = deque[tuple[Block, Any, Any]]()  # block, actor, reference
        load = Counter[Any]()
        has_more = True
        while (has_more or waiting) and not self.stop.requested:
            self._take_prepared(0 if self.ready else POLL_SECONDS)
            while has_more and self.ready and len(waiting) < WAITING_BLOCKS * len(self.ready):
                actor = min(self.ready, key=lambda actor: load[actor])
                if load[actor] >= BLOCKS_OF_ACTOR:
                    break
                try:
                    block = take_block()
                except StopIteration:
                    has_more = False
                    break
                if block is None:
                    break
                reference = call(actor, block)
                waiting.append((block, actor, reference))
                load[actor] += reference is not None
            pending = [reference for _, _, reference in waiting if reference is not None]
            if pending and waiting[0][2] is not None:
                self.ray.wait(pending[:1], timeout=POLL_SECONDS)
            finished = set(self.ray.wait(pending, num_returns=len(pending), timeout=0)[0]) if pending else set()
            load = Counter(
                actor for _, actor, reference in waiting if reference is not None and reference not in finished
            )
            while waiting and (waiting[0][2] is None or waiting[0][2] in finished):
                block, actor, reference = waiting.popleft()
                results = [] if reference is None else self._get_or_lose(actor, reference)
                if isinstance(results, str):  # try the whole block again, and then each part alone
                    results = self._try_again(block, call)
                if isinstance(results, str):
                    tried = [(part, self._try_again(part, call)) for part in split(block)]
                    results = [
                        result
                        for part, found in tried
                        for result in ([on_lost(part, found)] if isinstance(found, str) else found)
                    ]
                yield block, results

    def _try_again(self, block: Block, call: Callable[[Any, Block], Any]) -> Any:
        """The results of a block by an actor that is alive, while the driver waits; or why it died, too."""
        while not self.ready:
            self._take_prepared(POLL_SECONDS)
            self.stop.raise_if_requested()
        actor = self.ready[0]
        return self._get_or_lose(actor, call(actor, block))

    def _get_or_lose(self, actor: Any, reference: Any) -> Any:
        """As `get`; the name of the error if the actor, its node or the result was lost. A dead actor is replaced."""
        try:
            return self.get(reference)
        except self.ray.exceptions.RayTaskError:
            raise
        except self.ray.exceptions.RayError as error:
            if isinstance(error, self.ray.exceptions.RayActorError) and actor in self.ready:
                self.ready.remove(actor)
                logger.info("a worker of the cluster was lost (%s); another one is started", type(error).__name__)
                self._start_actor()
            return type(error).__name__


def cpus_of_actor(num_gpus: float, resources: Mapping[str, float]) -> int:
    """Cores of an actor: its share of those of the cluster if it has a GPU, which they feed."""
    if not num_gpus or not resources.get("GPU"):
        return 1
    return max(1, int(resources.get("CPU", 1) * num_gpus / resources["GPU"]))


def room_for(num_gpus: float, num_cpus: int, resources: Mapping[str, float]) -> int:
    """How many actors a cluster has room for; at least one, for which it may grow."""
    rooms = [resources.get("CPU", 0) // num_cpus]
    if num_gpus:
        rooms.append(resources.get("GPU", 0) // num_gpus)
    return max(1, int(min(rooms)))
