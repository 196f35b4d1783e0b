"""Plans, made anew or as the cache kept them."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from hashlib import blake2b

from whet.engine.encode import encode
from whet.ir.graph import Graph
from whet.plan.likely import likely_values
from whet.plan.plan import Plan, make_plan
from whet.plan.sources import digest
from whet.plan.stored import Unstorable, pack, unpack
from whet.plan.target import Device

logger = logging.getLogger("whet")


def legal(graph: Graph, device: Device) -> Graph:
    """The graph in the device's own terms."""
    while True:
        new = graph.map(device.legalize)
        if new is graph:
            return graph
        graph = new


def planned(graph: Graph, device: Device, prepare: bool = False) -> Plan:
    """The plan of a graph that is not in the device's terms yet; with `prepare`, of what other
    plans take as prepared."""
    if device.cache is None:
        return _new(graph, device, prepare)
    key = _key(graph, device, prepare)
    kept = device.cache.get(key)
    if kept is not None:
        try:
            return unpack(kept)
        except Exception as error:  # whatever is wrong with it, a plan can be made anew
            logger.warning("a plan in the cache cannot be read, and is made anew: %r", error)
    plan = _new(graph, device, prepare)
    try:
        device.cache.put(key, pack(plan), device.about)
    except Unstorable:
        logger.debug("a plan with inner graphs or effects is not kept")
    return plan


def _new(graph: Graph, device: Device, prepare: bool) -> Plan:
    return make_plan(legal(graph, device), device.capabilities, prepare)


def _key(graph: Graph, device: Device, prepare: bool) -> str:
    """What the cache knows a plan by: all that it depends on."""
    # What comes after a run is planned after it.
    plain, constants = encode(replace(graph, late=None))
    about = [
        device.planned_for,
        digest("ir", "ops", "plan"),
        prepare,
        sorted(likely_values().items()),
    ]
    text = json.dumps([about, plain])
    return blake2b(constants, key=blake2b(text.encode()).digest(), digest_size=20).hexdigest()
