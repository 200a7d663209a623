"""What runs on the machines of the cluster: actors, each with a model. This one encodes and prunes inputs."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from prunesid_cli import __version__
from prunesid_cli.errors import MediaError, ModelError
from prunesid_cli.inputs.files import FILES
from prunesid_cli.inputs.listing import ListedFile
from prunesid_cli.pipeline.settings import Settings

if TYPE_CHECKING:
    from prunesid_cli.pipeline.batches import BatchRunner
    from prunesid_cli.pipeline.compress import Result
    from prunesid_cli.pipeline.load import DecodeRequest, LoadedInput
    from prunesid_cli.pipeline.measure import MeasuredInput
    from prunesid_cli.pipeline.results import CachedInput, FailedInput
    from prunesid_cli.pipeline.session import Session
    from prunesid_cli.tokencache import IndexEntry


@dataclass(frozen=True)
class ActorSetup:
    """What all actors of a run have in common.

    Attributes:
        settings: The settings of the run, with the model's commit.
        revision: The model's revision on the driver.
        version: Version of prunesid on the driver.
        folder: The driver's current folder, to which paths are relative.
        num_cpus: Cores of an actor.
        downscale: Whether large JPEGs are decoded smaller.
    """

    settings: Settings
    revision: str
    version: str
    folder: str
    num_cpus: int
    downscale: bool = False


def actor_setup(session: Session, num_cpus: int, downscale: bool = False) -> ActorSetup:
    """The setup for a model that the driver found."""
    checkpoint = session.checkpoint
    settings = replace(session.settings, model=checkpoint.name, revision=checkpoint.commit)
    return ActorSetup(settings, checkpoint.revision, __version__, os.getcwd(), num_cpus, downscale)


class Actor(ABC):
    """An actor with a model, which a subclass loads."""

    def __init__(self, setup: ActorSetup) -> None:
        self.setup = setup

    @property
    @abstractmethod
    def session(self) -> Session:
        """The model as this machine found it. Loads it."""

    def prepare(self) -> str:
        """Load the model, and check that this machine is like the driver's.

        Returns:
            The precision, as torch calls it.

        Raises:
            ModelError: There is another version of prunesid here, or another revision of the model.
            MediaError: The driver's folder is not here.
        """
        node, setup = os.uname().nodename, self.setup
        if __version__ != setup.version:
            problem = f"node {node} has prunesid {__version__}, and the driver {setup.version}"
            raise ModelError(problem, "install the same version everywhere")
        see(os.chdir, setup.folder)
        revision = self.session.checkpoint.revision
        if revision != setup.revision:
            problem = f"node {node} has the model at {revision}, and the driver at {setup.revision}"
            raise ModelError(problem, "give all nodes the same files, or name --revision")
        return self.session.dtype_name


def see(look_at: Callable[[str], object], path: str) -> None:
    """Look at a path that the driver sees. Raises `MediaError` if it is not here: nothing else would be, either."""
    try:
        look_at(path)
    except OSError as error:
        problem = f"node {os.uname().nodename} does not see {path}: {error.strerror}"
        raise MediaError(problem, "mount the folders of the run at the same places on all nodes") from error


@dataclass(frozen=True)
class BlockItem:
    """An input for an actor, and what the cache holds of an earlier version of it."""

    request: DecodeRequest
    entry: IndexEntry | None


class EncodeActor(Actor):
    """Encodes and prunes blocks of inputs, with worker processes of its own that decode them."""

    def __init__(self, setup: ActorSetup) -> None:
        super().__init__(setup)
        self.resources, self.sees_inputs = ExitStack(), False

    @property
    def session(self) -> Session:
        return self._loaded[1]

    @cached_property
    def _loaded(self) -> tuple[BatchRunner, Session]:
        from prunesid_cli.pipeline.session import LazyVision, Session, find_checkpoint
        from prunesid_cli.pipeline.workers import WorkerSetup, worker_pool

        os.chdir(self.setup.folder)
        settings = replace(self.setup.settings, workers=max(1, self.setup.num_cpus - 1))
        checkpoint = find_checkpoint(settings)
        pool = self.resources.enter_context(worker_pool(WorkerSetup(checkpoint, settings, self.setup.downscale)))
        import torch

        from prunesid_cli.pipeline.batches import make_runner

        torch.set_num_threads(self.setup.num_cpus)
        session = Session.open(settings, checkpoint)
        pruner = replace(session.pruner(vision=LazyVision(session.load_vision)), downscale=self.setup.downscale)  # type: ignore[arg-type]
        return make_runner(session, pruner, pool), session

    def compress(self, block: Sequence[BlockItem], counts: Sequence[int] | None) -> list[Result]:
        """Encode and prune inputs.

        Args:
            block: The inputs.
            counts: How many tokens each keeps; None: what the budget says.
        """
        from prunesid_cli.pipeline.compress import compress
        from prunesid_cli.pipeline.token_budgets import PlannedAllocator, UniformAllocator

        runner = self._runner(block)
        allocator = UniformAllocator(runner.pruner) if counts is None else PlannedAllocator(counts, {})
        files = [ListedFile(item.request.source) for item in block]
        return list(compress(runner, files, allocator, lambda results: None))

    def measure(self, block: Sequence[BlockItem]) -> list[MeasuredInput]:
        """Measure the information of inputs."""
        from prunesid_cli.pipeline.measure import measure

        return list(measure(self._runner(block), [ListedFile(item.request.source) for item in block]))

    def _runner(self, block: Sequence[BlockItem]) -> BatchRunner:
        """A runner that decodes the inputs of a block."""
        from prunesid_cli.pipeline.results import CachedInput

        if not self.sees_inputs:
            for item in block[:1]:
                if item.request.stamp:
                    see(FILES.stat, item.request.source)
                    self.sees_inputs = True
        runner, _ = self._loaded
        decode_input = runner.loader.decode

        def decode(numbered: DecodeRequest) -> LoadedInput | CachedInput | FailedInput:
            item = block[numbered.number]
            request, entry = replace(item.request, number=numbered.number), item.entry
            loaded = decode_input(request)
            if loaded is None and entry is not None:
                return CachedInput(request.source, entry, request.stamp if entry.stamp != request.stamp else None)
            return loaded  # type: ignore[return-value]

        return replace(runner, loader=replace(runner.loader, decode=decode))
