"""What code is generated for: a processor level, its extras, and LLVM's names for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from whet.errors import DeviceError


@dataclass(frozen=True)
class Level:
    """A processor generation: its registers, what LLVM may use, and what a CPU may have on top."""

    machine: str
    vector_bytes: int
    vector_registers: int
    tuning: str
    features: tuple[str, ...]
    extras: Mapping[str, tuple[str, ...]]


_V2 = ("sse2", "sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "cx16", "sahf")
_V3 = (*_V2, "avx", "avx2", "fma", "f16c", "bmi", "bmi2", "lzcnt", "movbe")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")

# The tuning names are measured: LLVM's own name for the host (`rocketlake` on a Sapphire Rapids
# virtual machine) spills more and costs 5 %. The first level that fits is taken.
LEVELS: dict[str, Level] = {
    "avx512": Level("x86_64", 64, 32, "sapphirerapids", _V4, {
        "amx": ("amx-tile", "amx-int8", "amx-bf16"),
        "bf16": ("avx512bf16",),
        "fp16": ("avx512fp16",),
        "vbmi": ("avx512vbmi",),
        "vnni": ("avx512vnni",),
    }),
    "avx2": Level("x86_64", 32, 16, "haswell", _V3, {"vnni": ("avxvnni",)}),
    "sse2": Level("x86_64", 16, 16, "x86-64", ("sse2",), {"sse4": _V2}),
    "neon": Level("aarch64", 16, 32, "generic", ("neon", "fp-armv8"), {
        "bf16": ("bf16",),
        "fp16": ("fullfp16",),
        "i8mm": ("i8mm",),
        "vnni": ("dotprod",),
    }),
}  # fmt: skip

# All that detection has to tell apart.
FEATURES = frozenset(
    feature
    for level in LEVELS.values()
    for features in (level.features, *level.extras.values())
    for feature in features
)

# What the tuning names switch on and an architecture without the extra must not have.
_OPTIONAL = (
    *("amx-tile", "amx-int8", "amx-bf16", "amx-fp16", "avxvnni", "gfni", "vaes", "vpclmulqdq"),
    *("avx512vnni", "avx512bf16", "avx512fp16", "avx512vbmi", "avx512vbmi2", "avx512ifma"),
    *("avx512bitalg", "avx512vpopcntdq"),
)


@dataclass(frozen=True)
class Architecture:
    """What code is generated for; `str()` names it exactly and is part of every cache key."""

    level: str
    extras: tuple[str, ...] = ()
    system: str = "linux"

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            known = ", ".join(LEVELS)
            raise DeviceError(f"unknown processor level {self.level!r}; whet knows {known}")
        unknown = [name for name in self.extras if name not in self._level.extras]
        if unknown:
            known = ", ".join(self._level.extras)
            raise DeviceError(f"{self.level} has no extra {unknown[0]!r}; it knows {known}")
        object.__setattr__(self, "extras", tuple(sorted(set(self.extras))))

    @classmethod
    def parse(cls, text: str, system: str = "linux") -> Architecture:
        """The architecture named by `avx2`, `avx512+amx+vnni` or the whole `str()` of one."""
        *prefix, name = text.split("-")
        level, *extras = name.split("+")
        return cls(level, tuple(extras), prefix[-1] if prefix else system)

    def __str__(self) -> str:
        return f"{self.machine}-{self.system}-" + "+".join((self.level, *self.extras))

    def runs(self, other: Architecture) -> bool:
        """Whether a processor of this architecture runs code that was made for another."""
        same_kind = (self.machine, self.system) == (other.machine, other.system)
        return same_kind and other.requirements <= self.requirements

    @property
    def likeness(self) -> tuple[int, int]:
        """How much of a processor code for it makes use of."""
        return -list(LEVELS).index(self.level), len(self.extras)

    @property
    def _level(self) -> Level:
        return LEVELS[self.level]

    @property
    def machine(self) -> str:
        """The instruction set: x86_64 or aarch64."""
        return LEVELS[self.level].machine

    @property
    def vector_bytes(self) -> int:
        """Width of a vector register: 64, 32 or 16 bytes."""
        return self._level.vector_bytes

    @property
    def vector_registers(self) -> int:
        """Number of vector registers that a tile may fill."""
        return self._level.vector_registers

    @property
    def fma(self) -> bool:
        """Whether a fused multiply-add is one instruction (else `llvm.fma` calls the C library)."""
        return self.level != "sse2"

    @property
    def rounding(self) -> bool:
        """Whether floor, ceil, trunc and round-to-even are one instruction."""
        return self.level != "sse2" or "sse4" in self.extras

    @property
    def half_conversion(self) -> bool:
        """Whether float16 to float32 and back is one instruction."""
        return self.level != "sse2"

    @property
    def vnni(self) -> bool:
        """Whether 8-bit dot products into int32 are one instruction."""
        return "vnni" in self.extras

    @property
    def bf16(self) -> bool:
        """Whether bfloat16 conversions and dot products are one instruction."""
        return "bf16" in self.extras

    @property
    def fp16(self) -> bool:
        """Whether float16 arithmetic is native."""
        return "fp16" in self.extras

    @property
    def amx(self) -> bool:
        """Whether the tile registers (int8 and bfloat16) are there and permitted."""
        return "amx" in self.extras

    @property
    def requirements(self) -> frozenset[str]:
        """LLVM's names of all that this architecture needs."""
        extras = (feature for name in self.extras for feature in self._level.extras[name])
        return frozenset((*self._level.features, *extras))

    @property
    def triple(self) -> str:
        """LLVM's target triple."""
        vendor = {"linux": "unknown-linux-gnu", "windows": "pc-windows-msvc"}
        return f"{self.machine}-{vendor.get(self.system, 'apple-darwin')}"

    @property
    def features(self) -> str:
        """LLVM's feature string: all that this architecture has, and a minus on what it lacks."""
        on = self.requirements
        flags = [f"+{name}" for name in sorted(on)]
        if self.machine == "x86_64":
            flags += [f"-{name}" for name in _OPTIONAL if name not in on] + ["-prefer-256-bit"]
        return ",".join(flags)

    def target_machine(self) -> Any:
        """A new LLVM TargetMachine; each engine needs its own, since an engine frees it."""
        # Opened here because importing llvmlite takes longer than a warm start may.
        import llvmlite.binding as llvm

        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        llvm.initialize_native_asmparser()
        # The default code model of llvmlite is "large": it takes a register for each constant.
        return llvm.Target.from_triple(self.triple).create_target_machine(
            cpu=self._level.tuning, features=self.features, opt=3, reloc="pic", codemodel="small"
        )


def best_level(machine: str, flags: frozenset[str]) -> str:
    """The highest level of an instruction set whose features are all among `flags`."""
    for name, level in LEVELS.items():
        if level.machine == machine and flags.issuperset(level.features):
            return name
    raise DeviceError(f"whet generates no code for this processor ({machine})")


def extras_present(level: str, flags: Iterable[str]) -> tuple[str, ...]:
    """The extras of a level whose features are all among `flags`."""
    have = frozenset(flags)
    return tuple(name for name, needs in LEVELS[level].extras.items() if have.issuperset(needs))
