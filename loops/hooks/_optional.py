"""Imports of packages that only some hooks need."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["needed"]


def needed(package: str, by: str, has: str) -> Any:
    """Imports a package.

    Args:
        package: its name, which is that of the extra too.
        by: the hook that needs it.
        has: a name in the package. A folder that happens to have the package's name, such as one with W&B's runs, can be imported too.

    Raises:
        ImportError: if it is not installed, with the extra that brings it.

    Example:
        >>> needed("no_such_package", "NoSuchHook", "run")
        Traceback (most recent call last):
            ...
        ImportError: hooks.NoSuchHook needs the package no_such_package: pip install "tapeloops[no_such_package]".
    """
    try:
        module = importlib.import_module(package)
        getattr(module, has)
    except (ImportError, AttributeError) as error:
        raise ImportError(f'hooks.{by} needs the package {package}: pip install "tapeloops[{package}]".') from error
    return module
