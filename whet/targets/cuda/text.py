"""The text of one Triton function as it is written: lines, and names for what they compute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

from whet.ir.atoms import Atom, symbols_of
from whet.ir.sizes import Expr, Size
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.source import WAIT

INDENT = "    "
LINE = 128  # bytes
MOST_LINES = 4096  # that one block asks for


class Text:
    """Lines of a function. Equal expressions get one name, as long as control flow lets them.

    What depends on `open` sizes alone is computed before the launch, and is an argument.
    """

    def __init__(self, open: Iterable[str] = ()) -> None:
        self.open = frozenset(open)
        self.sizes: dict[Expr, str] = {}
        """The arguments that are sizes."""
        self.lines: list[str] = []
        self.depth = 1
        self.known: list[dict[str, str]] = [{}]
        self.count = 0

    def line(self, text: str) -> None:
        """One line."""
        self.lines.append(INDENT * self.depth + text)

    def assign(self, expression: str, prefix: str = "v") -> str:
        """The name of an expression's value, computed here unless it was before."""
        for scope in reversed(self.known):
            if expression in scope:
                return scope[expression]
        name = self.fresh(prefix)
        self.line(f"{name} = {expression}")
        self.known[-1][expression] = name
        return name

    def is_told(self, atom: Atom) -> bool:
        """Whether a factor of an index expression is known before the launch."""
        return all(symbol.name in self.open for symbol in symbols_of(atom))

    def number(self, size: Size) -> str:
        """A number, or the argument that is this size."""
        if not isinstance(size, Expr):
            return str(size)
        return self.sizes.setdefault(size, f"size{len(self.sizes)}")

    def fresh_line(self, expression: str) -> str:
        """The name of a value that must be computed here, whatever is known."""
        name = self.fresh()
        self.line(f"{name} = {expression}")
        return name

    def fresh(self, prefix: str = "v") -> str:
        """A name that is not in use."""
        self.count += 1
        return f"{prefix}{self.count}"

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """Indented lines under `head`; what they compute is known in there only."""
        self.line(head)
        self.depth += 1
        self.known.append({})
        yield
        self.known.pop()
        self.depth -= 1

    def prefetch(
        self, pointer: str, count: int, block: str, blocks: int, more: bool = False
    ) -> None:
        """Asks for so many bytes that all blocks will read, each block for its part: the kernels
        before, which may still run, leave the memory idle. There may be `more` blocks, which ask
        for nothing.

        Only the second-level cache is touched, so that it does not matter who writes there.
        """
        lines = -(-count // LINE)
        each = -(-lines // blocks)
        lanes = 1 << (each - 1).bit_length()
        if lanes > MOST_LINES:
            return
        line = f"({block}) * {each} + tl.minimum(tl.arange(0, {lanes}), {each - 1})"
        at = f"tl.minimum({line}, {lines - 1}).to(tl.int64) * {LINE}"
        assembly = '"prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l"'
        with self.block(f"if {block} < {blocks}:") if more else nullcontext():
            self.line(f"line = {pointer}.to(tl.int64) + {at}")
            self.line(f"tl.inline_asm_elementwise({assembly}, [line], tl.int32, False, 1)")

    def wait(self, architecture: Architecture) -> None:
        """Waits for what the kernels before have written, and lets the next one's blocks start.

        Nothing that others may write is read above this line, and nothing is written.
        """
        if architecture.has_dependent_launch:
            # Blocks that come before this one waits would hold room that its own may need.
            self.line(WAIT)
            self.line("gdc_launch_dependents()")

    def function(self, name: str, arguments: tuple[str, ...], language: str = "triton") -> str:
        """The whole function."""
        head = f"@{language}.jit\ndef {name}({', '.join(arguments)}):\n"
        return head + "\n".join(self.lines) + "\n"
