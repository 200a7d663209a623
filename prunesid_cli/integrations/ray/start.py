"""Starts the actors of `compress --ray`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from prunesid_cli.integrations.ray.actor import EncodeActor, actor_setup
from prunesid_cli.integrations.ray.cluster import ActorPool, RayOptions, connect
from prunesid_cli.pipeline.session import Session


@contextmanager
def start_actors(options: RayOptions, session: Session, downscale: bool) -> Iterator[tuple[Session, ActorPool[Any]]]:
    """Connect to a cluster, and start actors that encode.

    Args:
        options: Where they run.
        session: The model, as the driver found it.
        downscale: Whether large JPEGs are decoded smaller.

    Yields:
        The session, with the precision of the actors, and the actors.

    Raises:
        PruneSIDError: There is no cluster, or a node of it is not like the driver.
    """

    with connect(options):
        actors = ActorPool[Any](EncodeActor, partial(actor_setup, session, downscale=downscale), options)
        placement = replace(session.placement, dtype=getattr(torch, actors.facts[0]))
        yield replace(session, placement=placement), actors
