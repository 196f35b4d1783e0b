"""Plans, made anew or as the cache kept them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from whet.engine.encode import encode_with_tokens
from whet.ir.graph import Graph, Token
from whet.plan.legalize import legal
from whet.plan.likely import likely_values
from whet.plan.plan import Plan, make_plan
from whet.plan.stored import Unstorable, pack, unpack
from whet.plan.target import Device

logger = logging.getLogger("whet")


def planned(graph: Graph, device: Device, prepare: bool = False) -> Plan:
    """The plan of a graph that is not in the device's terms yet; with `prepare`, of what other
    plans take as prepared."""
    # What comes after a run is planned after it.
    return make_plan(legal(replace(graph, late=None), device), device.capabilities, prepare)


@dataclass(frozen=True)
class Draft:
    """A plan whose kernels may not be compiled yet."""

    plan: Plan
    keep: Callable[[], None]
    """Puts it into the cache, once its kernels are there: of a session that is cancelled nothing
    stays."""


def drafted(graph: Graph, device: Device, prepare: bool = False) -> Draft:
    """The plan of a graph, from the cache where it is there."""
    if device.cache is None:
        return Draft(planned(graph, device, prepare), lambda: None)
    key, tokens = _key(graph, device, prepare)
    kept = _kept(device, key, tokens)
    if kept is not None:
        return Draft(kept, lambda: None)
    plan = planned(graph, device, prepare)

    def keep() -> None:
        try:
            device.cache.put(key, pack(plan, tokens), device.about)
        except Unstorable:
            logger.debug("a plan with tokens of its own is not kept")

    return Draft(plan, keep)


def _kept(device: Device, key: str, tokens: Sequence[Token]) -> Plan | None:
    """A plan from the cache."""
    found = device.cache.get(key)
    if found is None:
        return None
    try:
        return unpack(found, tokens)
    except Exception as error:  # whatever is wrong with it, a plan can be made anew
        logger.warning("a plan in the cache cannot be read, and is made anew: %r", error)
        return None


def _key(graph: Graph, device: Device, prepare: bool) -> tuple[str, tuple[Token, ...]]:
    """What the cache knows a plan by: all that it depends on; and what is the graph's alone."""
    plain, constants, tokens = encode_with_tokens(replace(graph, late=None))
    about = [device.planned_for, prepare, sorted(likely_values().items())]
    text = json.dumps([about, plain])
    salt = blake2b(text.encode()).digest()
    return blake2b(constants, key=salt, digest_size=20).hexdigest(), tokens
