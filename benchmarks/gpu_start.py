"""The start of a session in a process of its own: gpu_start ENGINE CACHE BATCH.

Prints the seconds from before `import whet` to the first result in the host's memory, how many
kernels had to be compiled, and bytes of the device: those taken, those that `whet show` foresees,
and those of weights and arena.
"""

from __future__ import annotations

import sys
import time
from typing import Any


def main(engine: str, cache: str, batch: int) -> None:
    start = time.perf_counter()
    import numpy as np

    import whet

    session = whet.load(engine, allow_code=True).session(
        device="cuda", cache=cache, specialize="eager"
    )
    device: Any = session._runner.device
    context = device.context  # its own memory is not the session's
    free = context.free_bytes()
    rng, inputs = np.random.default_rng(0), {}
    for name, kind in session.inputs.items():
        shape = [n if isinstance(n, int) else 128 for n in kind.shape]  # type: ignore[union-attr]
        made = rng.integers(0, 2, (batch, *shape[1:]))
        inputs[name] = made.astype(kind.numpy)  # type: ignore[union-attr]
    session.run(inputs)
    taken = time.perf_counter() - start
    used = free - context.free_bytes()
    foreseen = footprint(session)
    least = foreseen.weights + foreseen.arena
    print(f"{taken:.3f}", session._runner.device.compiled, used, foreseen.taken, least)


def footprint(session: Any) -> Any:
    """What `whet show` says of the plan that ran."""
    from whet.runtime.ahead import needed

    plan = session.plans[-1]
    return session._runner.device.footprint(plan, needed(plan))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
