"""What a GPU can do at most, from the clocks and widths that its driver tells."""

from __future__ import annotations

from whet.plan.target import Limits
from whet.targets.cuda import driver
from whet.targets.cuda.architecture import Architecture

LANES = {80: 64}
"""float32 multiply-adds of a multiprocessor in a cycle, where it is not 128."""
MATRIX = {80: 1024, 90: 2048, 100: 4096}
"""16-bit multiply-adds of its matrix units in a cycle, where it is not 512 (CUDA C++ Programming
Guide, arithmetic instructions, and the architectures' white papers)."""


def known(number: int, architecture: Architecture) -> Limits:
    """The limits at the highest clock; a GPU that is hot or shared stays below."""
    api = driver.api()
    device = driver.check(api.cuDeviceGet(number), "opening the device")
    wanted = api.CUdevice_attribute
    clock, memory_clock, width, multiprocessors = (
        int(driver.check(api.cuDeviceGetAttribute(attribute, device), "asking the device"))
        for attribute in (
            wanted.CU_DEVICE_ATTRIBUTE_CLOCK_RATE,
            wanted.CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE,
            wanted.CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH,
            wanted.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
        )
    )
    cycles = 1e3 * clock * multiprocessors
    matrix = 2 * cycles * MATRIX.get(architecture.capability, 512)
    plain = 2 * cycles * LANES.get(architecture.capability, 128)
    operations = {"float32": plain, "float16": matrix, "bfloat16": matrix}
    # Memory moves two words in a cycle of its clock.
    return Limits(operations, 2e3 * memory_clock * width / 8)
