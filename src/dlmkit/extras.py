"""Packages that come with an extra of the kit: imported where they are used, and asked for in one line."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator
from typing import Any


def extra(module: str, name: str, user: str) -> Any:
    """Return a module of a package that an extra installs.

    Args:
        module: such as "torchao.optim".
        name: of the extra, such as "quantized".
        user: the setting that needs it, such as "optimizer=adamw_8bit".

    Raises:
        ValueError: the package is not installed.
    """
    package = module.partition(".")[0]
    try:
        with without_warnings():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise  # installed, and broken
        raise ValueError(f"{user} needs the package {package}: pip install 'dlmkit[{name}]'") from error


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Leave out what packages log at warning level, such as torchao of kernels for a GPU that is not there."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
