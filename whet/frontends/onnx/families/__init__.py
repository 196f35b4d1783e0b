"""The reader functions, a file per family of operators."""

import importlib
import pkgutil


def load() -> None:
    """Imports every family, which fills the registry."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
