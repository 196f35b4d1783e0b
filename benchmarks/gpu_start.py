"""The start of a session in a process of its own: gpu_start ENGINE CACHE BATCH.

Prints the seconds from before `import whet` to the first result in the host's memory, and how many
kernels had to be compiled.
"""

from __future__ import annotations

import sys
import time


def main(engine: str, cache: str, batch: int) -> None:
    start = time.perf_counter()
    import numpy as np

    import whet

    session = whet.load(engine, allow_code=True).session(device="cuda", cache=cache)
    rng, inputs = np.random.default_rng(0), {}
    for name, kind in session.inputs.items():
        shape = [n if isinstance(n, int) else 128 for n in kind.shape]  # type: ignore[union-attr]
        made = rng.integers(0, 2, (batch, *shape[1:]))
        inputs[name] = made.astype(kind.numpy)  # type: ignore[union-attr]
    session.run(inputs)
    taken = time.perf_counter() - start
    print(f"{taken:.3f} {session._runner.device.compiled}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
