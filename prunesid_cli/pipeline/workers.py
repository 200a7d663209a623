"""The worker processes that decode inputs: how many, and how they are started. torch is imported in them, not here."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.pipeline.settings import Settings
from prunesid_cli.runtime.worker_pool import WorkerPool

logger = logging.getLogger(__name__)

THREADS_WITHOUT_WORKERS = 2
"""Threads that decode in this process if there are no workers."""


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker needs to know to decode and preprocess inputs."""

    checkpoint: Checkpoint
    settings: Settings
    downscale: bool = False


@contextmanager
def worker_pool(setup: WorkerSetup) -> Iterator[WorkerPool | None]:
    """Workers within the block. They are prepared in the background.

    Yields:
        None if the settings, or the system, are against workers: inputs are decoded in this process then.
    """
    pool = None
    if setup.settings.workers != 0:
        try:
            pool = WorkerPool("prunesid_cli.pipeline.load:make_decoder", setup)
        except OSError as error:
            logger.warning("inputs are decoded in this process: no worker processes can be started (%s)", error)
    try:
        yield pool
    finally:
        if pool:
            pool.close()


def count_loading(pool: WorkerPool | None, settings: Settings, device_type: str) -> int:
    """How many inputs are decoded at the same time.

    A GPU needs all cores but the one that feeds it. On a CPU, the vision tower needs the cores more than decoding does.
    """
    if pool is None:
        return THREADS_WITHOUT_WORKERS
    if settings.workers and not isinstance(settings.workers, tuple):
        return settings.workers
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(THREADS_WITHOUT_WORKERS, num_cores) if device_type == "cpu" else max(1, num_cores - 1)
