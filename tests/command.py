"""Runs the command line inside the test process, as a user would from a shell."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from speakerkit.cli.main import main


@dataclass(frozen=True)
class Ran:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """Its lines ``speakerkit: error: ...``."""
        return [line for line in self.err.splitlines() if line.startswith("speakerkit: error: ")]


def speakerkit(*arguments: object) -> Ran:
    """Run ``speakerkit ARGUMENTS`` in this process; an exception that would print a traceback comes through."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with (
        patch.object(sys, "argv", ["speakerkit", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        _fresh_logging(),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    return Ran(code or 0, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _fresh_logging() -> Iterator[None]:
    """Without pytest's handlers, so that warnings go where the command line sends them."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    root.handlers[:] = []
    try:
        yield
    finally:
        root.handlers[:] = handlers


@contextlib.contextmanager
def descriptors_silenced() -> Iterator[Path]:
    """File with what C libraries write to the standard error meanwhile."""
    saved = os.dup(2)
    with tempfile.NamedTemporaryFile() as stream:
        os.dup2(stream.fileno(), 2)
        try:
            yield Path(stream.name)
        finally:
            os.dup2(saved, 2)
            os.close(saved)
