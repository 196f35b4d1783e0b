"""The figures of scripts/bench-gpu as Markdown, with what they were measured on."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import subprocess
import time
from typing import Any

Row = dict[str, Any]

HEAD = """\
# Networks on a GPU

{date}, {device}, driver {driver}, CUDA {cuda}, {versions}, commit {commit}.

Written by `scripts/bench-gpu --products --report docs/gpu-report.md`; every figure is measured by
it, in one run. float16; times are medians, in milliseconds, from asking for a run to its end on the
device, with fresh inputs at other addresses each time. PyTorch: eager in a CUDA graph,
`torch.compile` with reduce-overhead and with max-autotune, channels last for convolutional
networks. Errors are the norm of the difference from PyTorch in float32 by its norm.
"""


def report(rows: list[Row], products: list[str]) -> str:
    """All tables."""
    parts = [head(), times(rows), starts(rows), memory(rows)]
    if products:
        lines = "\n".join(products)
        parts.append(
            "## Products and attention\n\nPyTorch's products are cuBLAS's, whet's its own "
            "kernels.\n\n"
            f"```\n{lines}\n```\n"
        )
    return "\n".join(parts)


def head() -> str:
    """What it was measured on."""
    import torch

    from whet.targets.cuda import driver

    found = driver.find(0)
    names = ("torch", "triton", "timm", "transformers", "cuda-bindings")
    return HEAD.format(
        date=time.strftime("%Y-%m-%d"),
        device=found.name,
        driver=found.driver,
        cuda=torch.version.cuda,
        versions=", ".join(f"{n} {metadata.version(n)}" for n in names),
        commit=os.environ.get("WHET_COMMIT") or commit(),
    )


def commit() -> str:
    """The commit that is checked out, and whether the sources are others."""
    commands = ["git rev-parse HEAD", "git status --porcelain -uno"]
    head, changes = (
        subprocess.run(c.split(), capture_output=True, text=True).stdout.strip() for c in commands
    )
    return f"{head[:12] or 'unknown'}{' with changes' if changes else ''}"


def times(rows: list[Row]) -> str:
    """Times and errors."""
    text = [
        "| network | batch | whet | device alone | eager | reduce-overhead | max-autotune | "
        "of the best | error | PyTorch's |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if "failed" in row:
            text.append(f"| {row['network']} | {row['batch']} | failed: {row['failed']} |")
            continue
        peers = {k: row[k] for k in ("eager", "reduce-overhead", "max-autotune") if k in row}
        best = min(peers, key=peers.__getitem__, default=None)
        theirs = " | ".join(
            f"{peers[k]:.3f}" if k in peers else "not run" if f"{k} failed" not in row else "failed"
            for k in ("eager", "reduce-overhead", "max-autotune")
        )
        ratio = f"{row['whet'] / peers[best]:.2f}" if best else ""
        error = f"{row[f'{best} error']:.1e}" if best else ""
        text.append(
            f"| {row['network']} | {row['batch']} | {row['whet']:.3f} | {row['device only']:.3f} | "
            f"{theirs} | {ratio} | {row['error']:.1e} | {error} |"
        )
    return "\n".join(text) + "\n"


def starts(rows: list[Row]) -> str:
    """Compiling and starting."""
    text = [
        "## Starting\n",
        "Cold: a session with an empty cache, up to its first result, by wall clock and in seconds "
        "of all processors, 4 compile workers; other tiles than the model of costs chose are tried "
        "until compiling has taken 7 seconds. Warm: a new process with the engine's file and that "
        "cache, from before `import whet` to the first result on the host. Host: from asking for a "
        "run until it is asked for, behind another run, and after waiting for the device.\n",
        "| network | batch | kernels | by libraries | host steps | cold, s | processors, s | "
        "warm, s | host, us | after waiting | same bits twice |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    text += [
        f"| {r['network']} | {r['batch']} | {r['kernels']} | {r['libraries']} | "
        f"{r['references']} | {r['cold s']:.1f} | {r['cold processor s']:.0f} | "
        f"{r['warm s']:.2f} | {r['host us']:.0f} | {r['host us idle']:.0f} | "
        f"{'yes' if r['same bits'] else 'NO'} |"
        for r in rows
        if "failed" not in r
    ]
    return "\n".join(text) + "\n"


def memory(rows: list[Row]) -> str:
    """What is taken on the device."""
    text = [
        "## Memory\n",
        "In a new process, by NumPy arrays. Used: free memory of the device once it is open, less "
        "that after the first run. Foreseen: what `whet show --memory` says without a device. "
        "Least: weights as kernels read them, and the arena with counters and partial sums; inputs "
        "and outputs that find no room in it come on top, then code, each in pieces of 2 MiB.\n",
        "| network | batch | used, MB | foreseen, MB | used / foreseen | weights + arena, MB | "
        "used / (weights + arena) | arena, MB | alive at once, MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    text += [
        f"| {r['network']} | {r['batch']} | {r['memory'] / 1e6:.1f} | {r['foreseen'] / 1e6:.1f} | "
        f"{r['memory'] / r['foreseen']:.2f} | {r['least'] / 1e6:.1f} | "
        f"{r['memory'] / r['least']:.2f} | {r['arena'] / 1e6:.1f} | {r['live'] / 1e6:.1f} |"
        for r in rows
        if "failed" not in r
    ]
    return "\n".join(text) + "\n"
