"""Engines: saved and loaded as one portable file, and opened as sessions on devices."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any

from whet.engine.file import EngineFile, is_engine, weight_names, write_engine
from whet.engine.header import HEADER_BYTES, REFITTABLE
from whet.engine.refit import CurrentWeights, LayeredWeights, Names, digest, same_weights
from whet.engine.sources import WeightSource, weights_in
from whet.engine.validity import Validity, architectures_of, check_file, check_header
from whet.engine.weights import Source as Given
from whet.engine.weights import WeightStore
from whet.errors import InvalidEngine, InvalidSetting
from whet.ir.graph import Graph
from whet.ir.types import TensorType, Type
from whet.knobs import knobs
from whet.progress import ProgressMonitor, monitored, phase
from whet.runtime.cache import Cache, kept_in_the_end
from whet.runtime.debug import Source, Tensors, outputs_of, source_in, without_outputs
from whet.runtime.devices import (
    cache_of,
    open_device,
    stream_for,
)
from whet.runtime.memory import Allocator, checked, checked_on_device
from whet.runtime.prebuilt import Better, can_compile
from whet.runtime.prepared import Shared
from whet.runtime.profile import Profile
from whet.runtime.session import Session

if TYPE_CHECKING:
    import onnx

    from whet.plan.target import Device
    from whet.runtime.program import Runner

logger = logging.getLogger("whet")

SPECIALIZE = ("lazy", "eager", "none")


def _no_model() -> None:
    """Of an engine that does not keep it."""


@dataclass(frozen=True, eq=False)
class Engine:
    """An optimised model, free of any device. Make one with `whet.build` or `whet.load`."""

    graph: Graph
    weights: WeightStore
    profiles: tuple[Profile, ...] = ()
    refittable: bool = True
    frozen: Mapping[str, str] = field(default_factory=dict)
    """Weights that were read as shapes or numbers, with digests: with others of them the graph is
    made anew."""
    seen: Mapping[str, str] = field(default_factory=dict)
    """The same of weights that rules looked at, and left as they are."""
    kernels: Mapping[str, bytes] | None = None
    """Code built ahead of time, by cache key; only where the caller allowed it."""
    unused: Collection[str] = ()
    """The model's weights that nothing reads any more."""
    architectures: tuple[str, ...] = ()
    """What the kernels are for."""
    debug: tuple[str, ...] = ()
    """Tensors that were marked to be read out: outputs of the graph besides the model's own."""
    precision: str | None = None
    """What float32 work is done in, where that is something else."""
    model: Callable[[], Source | None] = field(default=_no_model, repr=False)
    """Gives the model's graph as it was read; None where that was not kept."""
    shared: Shared = field(default_factory=Shared, repr=False)
    """What all sessions of the engine have in common."""

    def __post_init__(self) -> None:
        if not isinstance(self.weights, CurrentWeights):
            object.__setattr__(self, "weights", CurrentWeights(self.weights))

    @property
    def _current(self) -> CurrentWeights:
        """The weights, which a refit replaces."""
        assert isinstance(self.weights, CurrentWeights)
        return self.weights

    @property
    def inputs(self) -> dict[str, Type]:
        """What the model is given: name -> type; a size may be an expression over named sizes."""
        return {v.op.name: v.type for v in self.graph.inputs}  # type: ignore[attr-defined]

    @property
    def outputs(self) -> dict[str, Type]:
        """What the model gives: name -> type. Outputs whose rank depends on data are left out."""
        graph = without_outputs(self.graph, self.debug)
        return {name: v.type for name, v in zip(graph.output_names, graph.outputs)}

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names that `debug` can read out of a session's runs: all of the model's, or, of an
        engine that does not keep how it was made, its outputs and those that were marked then."""
        source = self.model()
        if source is None:
            return tuple(dict.fromkeys((*self.graph.output_names, *outputs_of(self.graph))))
        return source.names

    @cached_property
    def names(self) -> Names:
        """Which weights the engine has, and which of them can be exchanged."""
        known = self.weights.types
        types = {name: known[name] for name in weight_names(self.graph)}
        can_be_remade = self.model is not _no_model
        frozen = {name: known[name] for name in self.frozen if can_be_remade and name in known}
        return Names(types, self.frozen, self.unused, frozen)

    @property
    def refittable_weights(self) -> dict[str, TensorType]:
        """The weights that `refit` can exchange, by their names in the model."""
        return self.names.refittable if self.refittable else {}

    @property
    def missing_weights(self) -> tuple[str, ...]:
        """The weights that must be given before the engine runs."""
        return tuple(name for name in self.names.types if name in self.weights.missing)

    def refit(self, source: WeightSource, partial: bool = False) -> None:
        """Exchanges weights, in all sessions of the engine.

        `source`: arrays by name, or a file: .safetensors, .npz, an ONNX model, another engine.
        Weights go by their names in the ONNX model, also those that were folded, packed or merged:
        what was made of them is made anew; one that stands in a body of control flow goes by the
        name of that node, a slash and its own. Where one is another that was read as a shape or a
        number, the graph is made anew and compiled for every session before any goes over; kernels
        that were built ahead of time are dropped then. Arrays are copied, files stay mapped. A run
        that is under way keeps the weights it began with. Unless `partial`, a whole model must hold
        all weights, and anything else those that are missing. Raises RefitError with all that is
        wrong, and what `whet.build` raises of a model that cannot have such shapes; then nothing
        has changed.
        """
        new = weights_in(source)
        if not self.refittable:
            raise InvalidSetting("the engine was built with refittable=False; build it anew")
        with self.shared.still:
            wanted = self.names.types if new.is_whole else self.missing_weights
            chosen = self.names.chosen(new.tensors, () if partial else wanted)
            known = {**self.frozen, **self.seen}
            if any(n in known and digest(source) != known[n] for n, source in chosen.items()):
                self._remake(chosen)
            else:
                self.shared.refit(self._current, chosen)

    def _remake(self, given: Mapping[str, Given]) -> None:
        """Exchanges weights of which the graph itself is made, within `still`."""
        from whet.runtime.build import remade

        store = self._current.store.exchanged(given)
        new = remade(self, store)
        if _is_same(new.graph, self.graph):
            self.shared.refit(self._current, given)
            new = replace(new, graph=self.graph)
        else:
            tensors = partial(Tensors, new.graph, self.debug, new.model)
            go_over = self.shared.remade(store, tensors)
            self._current.store = store
            go_over()
            if self.kernels:
                logger.info("the kernels that were built ahead of time were for another graph")
                object.__setattr__(self, "kernels", {})
                object.__setattr__(self, "architectures", ())
        for name in ("graph", "frozen", "seen", "unused", "model"):
            object.__setattr__(self, name, getattr(new, name))
        self.__dict__.pop("names", None)

    def refit_async(self, source: WeightSource, partial: bool = False) -> Future[None]:
        """`refit` on a thread of its own, while sessions run on; the result raises what it does."""
        done: Future[None] = Future()

        def work() -> None:
            try:
                self.refit(source, partial)
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        threading.Thread(target=work, name="whet-refit", daemon=True).start()
        return done

    def save(
        self,
        path: str | os.PathLike[str],
        strip: bool | WeightSource = False,
        progress: ProgressMonitor | None = None,
    ) -> None:
        """Writes the engine; the file appears whole or not at all. Raises WriteError, Cancelled.

        With `strip` it is written without the weights that `refit` can give it again; where that is
        a model or another source of weights, without those that are the same there.
        """
        with self.shared.still:  # a refit meanwhile is not to be in one half of the file
            graph, store, source = self.graph, self._current.store, self.model()
            frozen, seen, unused = dict(self.frozen), dict(self.seen), sorted(self.unused)
        metadata = {
            "profiles": [p.to_plain() for p in self.profiles],
            "frozen": frozen,
            "unused": unused,
            **({"seen": seen} if source is not None else {}),
            **({"debug": list(self.debug)} if self.debug else {}),
            **({"precision": self.precision} if self.precision else {}),
            **({"architectures": list(self.architectures)} if self.architectures else {}),
        }
        with monitored(progress):
            write_engine(
                path,
                graph,
                store,
                metadata=metadata,
                kernels=self.kernels,
                architectures=self.architectures,
                refittable=self.refittable,
                without={*store.missing, *self._stripped(strip, store)},
                model=None if source is None else source.model,
                more=() if source is None else [n for n in frozen if n in store.types],
            )

    def _stripped(self, strip: bool | WeightSource, store: WeightStore) -> Collection[str]:
        """The weights to be left out of a file."""
        if strip is False:
            return ()
        if not self.refittable:
            raise InvalidSetting("an engine built with refittable=False cannot be stripped")
        if strip is True:
            return self.names.free
        return same_weights(store, weights_in(strip).tensors, self.names.free)

    def session(
        self,
        device: str = "auto",
        threads: int | None = None,
        cache: str | os.PathLike[str] | Cache | bool = "default",
        specialize: str = "lazy",
        deterministic: bool = False,
        progress: ProgressMonitor | None = None,
        tune: float | None = None,
        weight_budget: int | str | None = None,
        allocator: Allocator | None = None,
    ) -> Session:
        """The engine ready to run on a device, its kernels compiled or taken from the cache.

        `device`: "cpu", or "cpu:avx2" for a lower level of it; "cuda", or "cuda:1" for another GPU
        than the first; "auto" for a GPU where there is one. `threads`: how many take part in a run
        on a CPU (by default one for each physical core). `cache`: "default", a folder, a Cache, or
        False. `specialize`: a session starts on kernels that serve every size. "lazy": sizes that
        come back get kernels of their own, made in the background; "eager": each set of sizes has
        them before its first run ends; "none": never. `deterministic`: a run has the same bits
        before and after. `progress` is told of phases and steps, and can cancel. `tune`: on a
        GPU, new kernels of known sizes are made and measured in other ways, too, until compiling
        has taken so many seconds; those of sizes that come back for so many seconds beside runs; 0:
        none (WHET_TUNE). `weight_budget`: how much of what is prepared from weights may be in
        memory at once, in bytes, "500M", "50%" of it, or "auto"; the rest lies in a file beside the
        kernel cache, for a GPU in the host's memory, and comes in ahead of the kernels that read
        it. Such runs come one after the other. `allocator` gives memory for intermediate results,
        such as a whet.Arena; on a GPU an address, or what has `__cuda_array_interface__`. Raises
        DeviceError where there is no such device.
        """
        from whet.targets.cpu import host

        if specialize not in SPECIALIZE:
            raise InvalidSetting(
                f"specialize={specialize!r}; one of {', '.join(SPECIALIZE)} is needed"
            )
        count = knobs.threads or host.default_threads() if threads is None else threads
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise InvalidSetting(f"threads={threads!r}; a number from 1 on is needed")
        start = time.perf_counter()
        seconds = knobs.tune if tune is None else tune
        if not isinstance(seconds, int | float) or not seconds >= 0:
            raise InvalidSetting(f"tune={tune!r}; a number of seconds from 0 on is needed")
        tries, store = specialize != "none", cache_of(cache)
        how = (self.kernels, count, seconds, tries)
        opened = self._device(device, store, how, allocator)
        before = opened.compiled
        undone = nullcontext() if progress is None else kept_in_the_end()
        with undone, monitored(progress), phase("session", 1) as step:
            stream = None if weight_budget is None else stream_for(opened, weight_budget)
            session = self._joined(opened, count, stream, (specialize, deterministic))
            stays = deterministic or not tries or stream is not None or allocator is not None
            if self.kernels and not stays:
                self._improve(session, opened, self._device(device, store, (None, *how[1:])))
            step()
        _report(opened, opened.compiled - before, time.perf_counter() - start)
        return session

    def _joined(self, device: Device, threads: int, stream: Any, way: tuple[str, bool]) -> Session:
        """A session that refits know of, of the graph as it is then."""
        while True:
            graph = self.graph
            prepared = self.shared.prepared(device, self._current, threads, stream)
            tensors = Tensors(graph, self.debug, self.model)
            session = Session(tensors, prepared, device, threads, self.profiles, *way)
            with self.shared.still:
                if self.graph is graph:
                    self.shared.sessions.add(session)
                    return session

    def _improve(self, session: Session, opened: Device, own: Device) -> None:
        """Lets a session go over to the processor's own kernels later, where it begins with those
        that the engine has for another."""
        is_other = opened.architecture != own.architecture
        # A GPU would have to hold all prepared weights twice meanwhile.
        if is_other and own.capabilities.name == "cpu" and can_compile():

            def runner() -> Runner:
                prepared = self.shared.prepared(own, self._current, session.threads)
                return session.runner_on(own, prepared, session.threads)

            session.better = Better(own, runner, self.kernels or ())

    def _device(
        self,
        name: str,
        cache: Cache | None,
        how: tuple[Any, ...],
        allocator: Allocator | None = None,
    ) -> Device:
        """The device that sessions opened in the same way share: its code is loaded once. One with
        an allocator is a session's own."""
        kernels, *rest = how
        how = (*how, self.architectures if kernels else ())
        if allocator is None:
            key = (name, None if cache is None else cache.folder, bool(kernels), *rest)
            return self.shared.device(key, lambda: open_device(name, cache, *how))
        opened = open_device(name, cache, *how)
        check = checked if opened.capabilities.name == "cpu" else checked_on_device
        opened.allocate = check(allocator)  # type: ignore[attr-defined]
        return opened


def load(
    path: str | os.PathLike[str] | bytes | bytearray | memoryview,
    allow_code: bool = False,
    weights: bool = True,
) -> Engine:
    """An engine from its file or its bytes; raises InvalidEngine with what is wrong.

    Kernels in the file are machine code: they are used only with `allow_code=True`. With
    `weights=False` those in the file are left alone: sessions compile, and raise MissingWeights
    when they run, until `refit` has given them weights, from this file or another.
    """
    file = EngineFile.open(path, allow_code is True)
    profiles = tuple(Profile.from_plain(p) for p in file.metadata.get("profiles", ()))
    withheld = () if weights else file.weights.types.keys() - _digests(file, "frozen").keys()
    precision = file.metadata.get("precision")
    return Engine(
        file.graph,
        LayeredWeights(file.weights, withheld=withheld),
        profiles,
        bool(file.header.flags & REFITTABLE),
        _digests(file, "frozen"),
        _digests(file, "seen"),
        file.kernels,
        frozenset(str(name) for name in file.metadata.get("unused", ())),
        architectures_of(file) if file.kernels else (),
        tuple(str(name) for name in file.metadata.get("debug", ())),
        precision if isinstance(precision, str) else None,
        cache(partial(_model_in, file)) if file.has_model else _no_model,
    )


def _model_in(file: EngineFile) -> Source | None:
    return None if file.model is None else source_in(file.model)[0]


def _digests(file: EngineFile, what: str) -> dict[str, str]:
    """Names and digests; files of the first days have names only."""
    found = file.metadata.get(what, ())
    digests = found if isinstance(found, Mapping) else dict.fromkeys(found, "")
    return {str(name): str(found) for name, found in digests.items()}


def _is_same(graph: Graph, other: Graph) -> bool:
    """Whether two graphs are known to be one; a late region is never looked into."""
    has_late = graph.late is not None or other.late is not None
    return not has_late and graph.key == other.key and graph.definers == other.definers


def engine_validity(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview,
    device: str = "auto",
    whole: bool = True,
) -> Validity:
    """Whether an engine can be used on a device, with a reason for all that speaks against it.

    `source` is a file, its bytes, or only the first 64 of them, which already tell the format's
    version, architectures and bytes of weights; with `whole` every byte of a file is read. Raises
    OSError where a file cannot be opened.
    """
    from whet.targets.cpu import host

    opened = open_device(device)
    is_cpu = opened.capabilities.name == "cpu"
    memory = host.available_memory() if is_cpu else opened.context.free_bytes()  # type: ignore[attr-defined]
    asked: dict[str, Any] = {"architecture": str(opened.architecture), "memory": memory}
    if isinstance(source, bytes | bytearray | memoryview):
        source = bytes(source)
        whole = whole and len(source) != HEADER_BYTES
        return (check_file if whole else check_header)(source, **asked)
    if not isinstance(source, str | os.PathLike):
        kind = type(source).__name__
        raise InvalidEngine(f"an engine is given as a path or its bytes, not as a {kind}")
    if whole:
        return check_file(source, **asked)
    with open(source, "rb") as file:
        return check_header(file.read(HEADER_BYTES), **asked)


def session(model: str | os.PathLike[str] | bytes | onnx.ModelProto, **options: Any) -> Session:
    """A session for a model or an engine file in one step; the options are those of
    `Engine.session`."""
    is_named_so = isinstance(model, str | os.PathLike) and str(model).endswith(".whet")
    if is_named_so or is_engine(model):
        return load(model).session(**options)
    from whet.runtime.build import build  # the passes take longer to load than a start may

    return build(model, progress=options.get("progress")).session(**options)


def _report(device: Any, compiled: int, seconds: float) -> None:
    if compiled:
        is_kept = device.cache is not None and device.cache.problem is None
        where = f", cached in {device.cache.folder}" if is_kept else ""
        logger.info("compiled %d kernels in %.1f s%s", compiled, seconds, where)
    else:
        logger.info("ready in %.2f s, no kernel was compiled", seconds)
