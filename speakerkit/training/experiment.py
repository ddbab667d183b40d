"""From a configuration file to a trained model: read, start the ranks, train, leave everything that explains it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from speakerkit.config import apply_overrides, read_config, read_yaml, to_dict, write_yaml
from speakerkit.diarization.config import EENDConfig, TSVADConfig
from speakerkit.embedding.config import EmbeddingConfig
from speakerkit.embedding.task import EmbeddingTask
from speakerkit.errors import ConfigError
from speakerkit.extraction.config import ExtractionConfig
from speakerkit.files import write_json, write_lines
from speakerkit.registry import suggest
from speakerkit.training.config import RunConfig
from speakerkit.training.distributed import ranks
from speakerkit.training.task import Task
from speakerkit.training.trainer import Trainer, TrainingResult

if TYPE_CHECKING:
    from speakerkit.diarization.task import DiarizationTask
    from speakerkit.extraction.task import ExtractionTask

PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class EmbeddingExperiment(EmbeddingConfig, RunConfig):
    """A whole embedding experiment, as its YAML file spells it."""

    task: Literal["embedding"] = "embedding"

    def build(self) -> EmbeddingTask:
        """The task that it describes."""
        return EmbeddingTask(self)


@dataclass(frozen=True, kw_only=True)
class TSVADExperiment(TSVADConfig, RunConfig):
    """A training of TS-VAD."""

    task: Literal["tsvad"] = "tsvad"

    def __post_init__(self) -> None:
        TSVADConfig.__post_init__(self)
        RunConfig.__post_init__(self)

    def build(self) -> DiarizationTask:
        """The task that it describes."""
        from speakerkit.diarization.task import TSVADTask

        return TSVADTask(self)


@dataclass(frozen=True, kw_only=True)
class EENDExperiment(EENDConfig, RunConfig):
    """A training of EEND-EDA."""

    task: Literal["eend"] = "eend"

    def __post_init__(self) -> None:
        EENDConfig.__post_init__(self)
        RunConfig.__post_init__(self)

    def build(self) -> DiarizationTask:
        """The task that it describes."""
        from speakerkit.diarization.task import EENDTask

        return EENDTask(self)


@dataclass(frozen=True, kw_only=True)
class ExtractionExperiment(ExtractionConfig, RunConfig):
    """A training of a model that extracts or separates voices."""

    task: Literal["extraction"] = "extraction"

    def __post_init__(self) -> None:
        ExtractionConfig.__post_init__(self)
        RunConfig.__post_init__(self)

    def build(self) -> ExtractionTask:
        """The task that it describes."""
        from speakerkit.extraction.task import ExtractionTask

        return ExtractionTask(self)


Experiment = EmbeddingExperiment | TSVADExperiment | EENDExperiment | ExtractionExperiment

EXPERIMENTS: dict[str, type[Experiment]] = {
    "embedding": EmbeddingExperiment,
    "tsvad": TSVADExperiment,
    "eend": EENDExperiment,
    "extraction": ExtractionExperiment,
}


def read_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of a YAML file with ``a.b=c`` overrides; ``task`` says which kind, "embedding" if it is missing.

    Raises:
        ConfigError: unknown keys, wrong values, no such file.
    """
    task = apply_overrides(read_yaml(path), overrides).get("task", "embedding")
    if not isinstance(task, str) or task not in EXPERIMENTS:
        raise ConfigError(path, f"task is {task!r}", suggest(str(task), list(EXPERIMENTS)))
    return read_config(EXPERIMENTS[task], path, overrides)


def run_experiment(
    path: str | Path, overrides: Sequence[str] = (), resume: str = "auto", stop_after: int | None = None
) -> TrainingResult:
    """Train what a configuration file describes, on this process or as one of the ranks that torchrun started."""
    config = read_experiment(path, overrides)
    exp_dir = Path(config.exp_dir)
    with ranks(config.trainer.device) as world:
        with world.together():
            task: Task = config.build()
        with world.together():
            trainer = Trainer(
                task,
                exp_dir,
                world,
                trainer=config.trainer,
                optim=config.optim,
                schedule=config.schedule,
                seed=config.seed,
                batch_size=config.data.batch_size,
            )
            trainer.resume(resume)
        with world.together():
            # What explains a complete run is left as it is: nothing is trained with this configuration.
            if world.is_main and not (trainer.complete and (exp_dir / "config.yaml").is_file()):
                write_yaml(exp_dir / "config.yaml", to_dict(config))
                if isinstance(task, EmbeddingTask):
                    write_lines(exp_dir / "speakers.txt", task.classes)
                write_json(exp_dir / "provenance.json", provenance())
        return trainer.fit(stop_after)


def provenance() -> dict[str, Any]:
    """Command, versions and revision: what it takes to run this again."""
    packages = ("speakerkit", "torch", "torchaudio", "numpy", "scipy", "soundfile", "soxr", "onnxruntime")
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "git_revision": _git_revision(),
        "ranks": int(os.environ.get("WORLD_SIZE", "1")),
        "cpus": os.cpu_count(),
    }


def read_provenance(exp_dir: Path) -> dict[str, Any]:
    """What :func:`run_experiment` left, or nothing where it is missing."""
    path = exp_dir / "provenance.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """The revision of speakerkit's own repository; ``None`` where it is installed, also inside another repository."""
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != PACKAGE.resolve().parent:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=12")


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=PACKAGE, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None
