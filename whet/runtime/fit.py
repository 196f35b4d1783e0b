"""Whether code that was compiled elsewhere is of use on this machine."""

from __future__ import annotations

from contextlib import suppress

from whet.errors import Error


def misfit(about: str) -> str | None:
    """Why code cannot be used here, in a few words, or None where it can.

    `about` is how its device described it: the target, the generator's version, the architecture.
    """
    target, generator, architecture = (*about.split(" ", 2), "", "")[:3]
    check = {"cpu": _cpu, "cuda": _cuda}.get(target)
    return "for an unknown target" if check is None else check(generator, architecture)


def _cpu(generator: str, architecture: str) -> str | None:
    from whet.targets.cpu import codegen, host
    from whet.targets.cpu.architecture import Architecture

    if generator != codegen.version():
        return "of another version of whet"
    try:
        fits = host.runs(Architecture.parse(architecture))
    except Error:
        fits = False
    return None if fits else f"for {architecture}, which this processor is not"


def _cuda(generator: str, architecture: str) -> str | None:
    from whet.targets.cuda import codegen, driver

    if generator != codegen.version():
        return "of another version of whet"
    here = set()
    for number in range(driver.count()):
        with suppress(Error):  # one that code is not made for
            here.add(str(driver.find(number).architecture))
    return None if architecture in here else f"for {architecture}, and no such GPU is here"
