"""Several ranks on this machine through torchrun's own launcher, with our messages and exit codes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from speakerkit.errors import PeerFailed, SpeakerKitError, TrainingError
from speakerkit.training.trainer import TrainingResult

# Exit code of a rank that a signal has stopped. A plain return would wait for the launcher, which is stopping too.
STOPPED = 75


def launch(
    nproc: int, config: Path, overrides: Sequence[str], resume: str, stop_after: int | None
) -> TrainingResult | None:
    """Train on ``nproc`` ranks, which share the processor's cores; when one ends with an error, all are ended.

    A signal to stop is passed on: the ranks save a checkpoint and end, and there is no result.

    Raises:
        TrainingError: a rank was killed.
        PeerFailed: a rank failed and has said why.
    """
    for name in list(logging.root.manager.loggerDict):  # each has a level of its own: their parent's is not enough
        if name.startswith(("torch.distributed", "torch.multiprocessing")):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // nproc)))
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        run_id="speakerkit",
        start_method="spawn",
        max_restarts=0,
    )
    try:
        results = elastic_launch(settings, _rank)(str(config), list(overrides), resume, stop_after)
    except SignalException:
        return None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode == STOPPED:
            return None
        if failure.exitcode == SpeakerKitError.exit_code:
            raise PeerFailed(None, f"rank {rank} failed") from None
        raise TrainingError(
            f"rank {rank}",
            f"was killed or crashed (exit code {failure.exitcode}); the other ranks were ended",
            "the same command goes on from the last checkpoint",
        ) from None
    return results[0]


def _rank(config: str, overrides: list[str], resume: str, stop_after: int | None) -> TrainingResult:
    """What each rank runs."""
    from speakerkit.training.experiment import run_experiment

    logging.basicConfig(level=logging.WARNING, format="speakerkit: %(levelname)s: %(message)s", stream=sys.stderr)
    try:
        result = run_experiment(config, overrides, resume, stop_after)
    except PeerFailed as error:
        sys.exit(error.exit_code)
    except (SpeakerKitError, OSError, MemoryError) as error:
        print(f"speakerkit: error: {error}", file=sys.stderr, flush=True)
        sys.exit(SpeakerKitError.exit_code)
    if result.step < min(result.steps, stop_after or result.steps):
        sys.exit(STOPPED)
    return result
