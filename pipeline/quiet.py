"""Keeping converters and runtimes from writing over our progress."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path


@contextmanager
def quiet() -> Iterator[None]:
    """Turn standard output and standard error away; errors come as exceptions.

    Some libraries print from C++, so the file descriptors themselves are turned away.  Whoever
    shows progress meanwhile writes to a duplicate of them.
    """
    logging.getLogger("torch").setLevel(logging.ERROR)
    logging.getLogger("nncf").setLevel(logging.ERROR)
    saved = [os.dup(1), os.dup(2)]
    with Path(os.devnull).open("w") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        try:
            with redirect_stdout(sink), redirect_stderr(sink), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            for number, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, number)
                os.close(copy)
