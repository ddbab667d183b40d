"""What a run says: a plain ``train.log``, TensorBoard, and a bar with an ETA on a terminal."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

logger = logging.getLogger("speakerkit.training")


class RunLog:
    """Messages and numbers of the main rank; a silent one on the others.

    Args:
        exp_dir: gets ``train.log`` (appended to on resuming) and ``tensorboard/``.
        start, steps: where the run begins and ends.
    """

    def __init__(self, exp_dir: Path, start: int, steps: int, enabled: bool) -> None:
        self.enabled = enabled
        self.start, self.steps = start, steps
        self.began = time.monotonic()
        self._writer: Any = None
        self._handlers: list[logging.Handler] = []
        self._bar = tqdm(
            total=steps, initial=start, unit="step", disable=not (enabled and sys.stderr.isatty()), leave=False
        )
        if enabled:
            exp_dir.mkdir(parents=True, exist_ok=True)
            file = logging.FileHandler(exp_dir / "train.log", encoding="utf-8")
            file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            self._handlers = [file, _AboveBar()]
            for handler in self._handlers:
                logger.addHandler(handler)
            logger.setLevel(logging.INFO)
            logger.propagate = False
            self._writer = _tensorboard(exp_dir / "tensorboard", start)

    def message(self, text: str, level: int = logging.INFO) -> None:
        """One line to the log file and to stderr."""
        if self.enabled:
            logger.log(level, text)

    def step(self, step: int) -> None:
        """Count one step on the bar."""
        self._bar.update(step - self._bar.n)

    def numbers(self, step: int, values: dict[str, float], prefix: str) -> None:
        """Numbers after ``step`` steps: one line, with the time that is left, and TensorBoard scalars."""
        if not self.enabled:
            return
        done = max(1, step - self.start)
        left = (time.monotonic() - self.began) / done * (self.steps - step)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.message(f"{prefix} {step}/{self.steps}  {shown}  ETA {int(left) // 60}:{int(left) % 60:02d}")
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{prefix}/{name}", value, step)

    def close(self) -> None:
        """Flush and let go of the files."""
        self._bar.close()
        if self._writer is not None:
            self._writer.close()
        for handler in self._handlers:
            logger.removeHandler(handler)
            handler.close()
        if self.enabled:
            logger.propagate = True


class _AboveBar(logging.Handler):
    """Messages to stderr, above the bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def _tensorboard(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=start + 1)  # hides what was logged after the checkpoint resumed
