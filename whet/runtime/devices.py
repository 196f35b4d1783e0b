"""Devices by name: those at hand, and those that code is compiled for."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from whet.errors import DeviceError, Error, InvalidSetting
from whet.knobs import knobs
from whet.runtime.cache import Cache
from whet.runtime.prebuilt import mark, nearest

if TYPE_CHECKING:
    from whet.plan.target import Device

logger = logging.getLogger("whet")


def open_device(
    name: str,
    cache: Cache | None = None,
    kernels: Mapping[str, bytes] | None = None,
    threads: int = 1,
    tune: float = 0,
    tries: bool = False,
    built_for: Collection[str] = (),
) -> Device:
    """The device of a name: auto, cpu, cpu:avx2, cuda, cuda:1. Raises DeviceError for any other.

    `tune` is for a GPU: seconds of compiling in which it measures kernels, too. A CPU that `tries`
    does so in the runs asked for.
    Where `kernels` are there for none but other architectures (`built_for`), and the device runs
    what is made for one of them, it is opened as that, unless its cache has better ones.
    """
    kind, _, which = str(name).partition(":")
    is_auto = kind == "auto" and not which
    number = _first_gpu() if is_auto else None
    if kind == "cuda":
        if which and not (which.isdecimal() and which.isascii()):
            raise DeviceError(f"there is no device {name!r}; GPUs are written cuda:0, cuda:1, …")
        number = int(which or 0)
    if number is not None:
        from whet.targets.cuda.device import Device as Gpu

        return Gpu(_gpu_for(built_for, number), cache, kernels, number, tune)
    if kind != "cpu" and not is_auto:
        raise DeviceError(
            f"there is no device {name!r}; whet runs on auto, cpu, cpu:avx2, cpu:sse2, cuda, cuda:1"
        )
    from whet.targets.cpu import host
    from whet.targets.cpu.architecture import Architecture
    from whet.targets.cpu.device import Device as Cpu

    here = host.architecture(which or None)
    own = Cpu(here, cache, kernels, threads, tries)
    other = nearest(built_for, here, Architecture.parse)
    if other in (None, here) or (which and other.level != here.level):
        return own
    if cache is not None and cache.get(mark(own, kernels or ())) is not None:
        return own
    return Cpu(other, cache, kernels, threads, tries)


def _gpu_for(built_for: Collection[str], number: int) -> Any:
    """The architecture that a GPU is opened as; None for its own."""
    if not built_for:
        return None
    from whet.targets.cuda import driver
    from whet.targets.cuda.architecture import Architecture

    return nearest(built_for, driver.find(number).architecture, Architecture.parse)


def _first_gpu() -> int | None:
    """The first GPU that code can be made for: the driver has the fastest one come first."""
    from whet.targets.cuda import driver

    for number in range(driver.count()):
        try:
            driver.find(number)
        except Error as error:
            logger.warning("cuda:%d is not used: %s", number, str(error))  # no frames are kept
        else:
            return number
    return None


def compiler_for(name: str) -> Device:
    """A device of an architecture that need not be here: avx2, avx512+vnni, sm90; `current` is the
    one at hand, on which a GPU measures kernels, too."""
    if name == "current":
        return open_device("auto", tune=knobs.tune)
    if name.startswith("sm"):
        from whet.targets.cuda import architecture as gpu
        from whet.targets.cuda.device import Device as Gpu

        return Gpu(gpu.Architecture.parse(name))
    from whet.targets.cpu import architecture as cpu
    from whet.targets.cpu.device import Device as Cpu

    try:
        return Cpu(cpu.Architecture.parse(name))
    except DeviceError as error:
        raise InvalidSetting(f"{error}; GPUs are written sm80, sm90 and so on") from None


def cache_of(cache: str | os.PathLike[str] | Cache | bool) -> Cache | None:
    """The cache that a session is to use: the default one, a folder's, a given one, or none."""
    if isinstance(cache, Cache):
        return cache
    if cache is False:
        return None
    if cache is None or (isinstance(cache, int) and not isinstance(cache, bool)):
        raise InvalidSetting(
            f'cache={cache!r}; "default", a folder, a whet.Cache or False is needed'
        )
    return Cache.default() if cache in ("default", True) else Cache(cache)  # type: ignore[arg-type]


def stream_for(device: Any, budget: int | str) -> Any:
    """Room for weights outside of a device's memory: with the host, or, for the host, in a file
    beside the kernel cache."""
    if device.capabilities.name == "cuda":
        from whet.targets.cuda.stream import Inflow

        return Inflow(budget, device)
    from whet.targets.cpu.stream import Stream

    return Stream(budget, getattr(device.cache, "folder", None))
