"""Several sessions, and several callers of one, at once: against the same runs one after the other.

    python -m benchmarks.callers [NETWORK or MODEL.onnx …] [--sessions N] [--threads N] [--runs N]

1.0 says that running at once costs nothing and, as all processors are busy either way, gains
nothing. Both ways take turns; the median of the ratios is given, with the least and the greatest.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import whet
from benchmarks.networks import FOLDER
from whet.cli.inputs import random_inputs
from whet.cli.models import named_sizes

NETWORKS = ("resnet18", "mobilenetv3_large_100", "bert_base")
WARM_RUNS = 40
"""Until schedules that take turns in the first runs have been weighed."""

Feeds = dict[str, Any]


def one_by_one(sessions: Sequence[whet.Session], feeds: Feeds, runs: int) -> float:
    """Seconds of all runs of all sessions by one caller."""
    start = time.perf_counter()
    for _ in range(runs):
        for session in sessions:
            session.run(feeds)
    return time.perf_counter() - start


def at_once(sessions: Sequence[whet.Session], feeds: Feeds, runs: int) -> float:
    """Seconds until each session's own caller has made its runs."""
    ready = threading.Barrier(len(sessions) + 1)

    def call(session: whet.Session) -> None:
        ready.wait()
        for _ in range(runs):
            session.run(feeds)

    callers = [threading.Thread(target=call, args=(session,)) for session in sessions]
    for caller in callers:
        caller.start()
    ready.wait()
    start = time.perf_counter()
    for caller in callers:
        caller.join()
    return time.perf_counter() - start


def ratios(sessions: Sequence[whet.Session], feeds: Feeds, runs: int, rounds: int) -> list[float]:
    """The seconds at once over those one by one, of each round."""
    turn = sessions, feeds, runs
    return [at_once(*turn) / one_by_one(*turn) for _ in range(rounds)]


def line(what: str, found: Sequence[float]) -> str:
    middle, least, most = statistics.median(found), min(found), max(found)
    return f"  {what}: {middle:.2f} ({least:.2f} to {most:.2f}) x the time one after the other"


def report(model: Path, count: int, threads: int, runs: int, rounds: int) -> None:
    """Measures one model, and prints."""
    engine = whet.build(model)
    feeds = random_inputs(engine, dict.fromkeys(named_sizes(engine), 1), 0)
    sessions = [engine.session("cpu", threads=threads) for _ in range(count)]
    for session in sessions:
        for _ in range(WARM_RUNS):
            session.run(feeds)
    print(f"{model.stem}: {runs} runs each, {threads} threads")
    own = ratios(sessions, feeds, runs, rounds)
    print(line(f"{count} sessions, a caller each", own), flush=True)
    shared = ratios(sessions[:1] * count, feeds, runs, rounds)
    print(line(f"{count} callers of one session", shared), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=NETWORKS)
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=25, help="of each session in a round")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(arguments)
    for name in args.models:
        path = Path(name) if name.endswith(".onnx") else FOLDER / f"{name}.onnx"
        if not path.exists():
            sys.exit(f"{path} does not exist; scripts/bench --export writes networks")
        report(path, args.sessions, args.threads, args.runs, args.rounds)


if __name__ == "__main__":
    main()
