"""Checkpoints to a bundle: average, keep the backbone, say where it comes from."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speakerkit.bundle import Bundle, BundleConfig, copy_bundle, read_bundle, write_bundle
from speakerkit.diarization.bundle import build_network, write_model
from speakerkit.diarization.task import described as described_diarizer
from speakerkit.embedding.distillation import PROJECTION
from speakerkit.embedding.model import backbone_for, load_tensors
from speakerkit.errors import BundleError
from speakerkit.extraction.bundle import VOICE, ExtractionBundle, write_extractor
from speakerkit.extraction.model import open_conditioned
from speakerkit.extraction.task import described
from speakerkit.training.checkpoint import average_states, list_checkpoints, load_checkpoint, save_checkpoint, step_of
from speakerkit.training.experiment import (
    EENDExperiment,
    EmbeddingExperiment,
    Experiment,
    ExtractionExperiment,
    TSVADExperiment,
    read_experiment,
    read_provenance,
)
from speakerkit.zoo.store import open_name

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("speakerkit.training")

PREFIX = "backbone."
AVERAGE = "average.pt"  # backbone and head, for fine-tuning


def publish(
    exp_dir: Path, out: Path, *, last: int | None = None, best: bool = False, ema: bool | None = None
) -> Bundle | ExtractionBundle | Path:
    """Write the average of an experiment's newest checkpoints (``trainer.average`` of them, or ``last``) as a bundle.

    A model that diarizes is a folder of another kind (:mod:`speakerkit.diarization.bundle`), whose path is returned; so
    is one that extracts (:mod:`speakerkit.extraction.bundle`), with the embedding model that it hears voices by in it.

    Args:
        best: take the checkpoint that was best in validation instead.
        ema: take the moving averages of the weights that the checkpoints hold; by default where the run kept them.

    Raises:
        BundleError: there are no checkpoints, fewer than asked for, or none with a moving average.
    """
    if not (exp_dir / "config.yaml").is_file():
        raise BundleError(exp_dir, "holds no config.yaml", "name the exp_dir of a training run")
    experiment = read_experiment(exp_dir / "config.yaml")
    folder = exp_dir / "checkpoints"
    found = list_checkpoints(folder)
    if best:
        paths = [folder / "best.pt"]
    else:
        if last is not None and last > len(found):
            raise BundleError(
                folder, f"holds {len(found)} checkpoints, not {last}", "raise trainer.average, or ask less"
            )
        paths = found[-(last or experiment.trainer.average) :]
    ema = experiment.trainer.ema > 0 if ema is None else ema
    averaged = average_states(paths, ema)
    missing = 0 if best or last else experiment.trainer.average - len(paths)
    _warn(exp_dir, experiment, found, missing)
    newest = load_checkpoint(paths[-1])
    made = {
        "data": experiment.data.train,
        "seed": experiment.seed,
        "steps": int(newest["step"]),
        "averaged": [path.name for path in paths],
        "ema": ema,
        **_teachers(experiment),
        **read_provenance(exp_dir),
    }
    if isinstance(experiment, ExtractionExperiment):
        return _published_extractor(experiment, out, averaged, made)
    if not isinstance(experiment, EmbeddingExperiment):
        return _published_model(experiment, out, averaged, made)
    kept = {name: tensor for name, tensor in averaged.items() if not name.startswith(PROJECTION)}
    save_checkpoint(folder / AVERAGE, {"model": kept, "fingerprint": newest.get("fingerprint")})
    tensors = _part(averaged, PREFIX)
    backbone = backbone_for(experiment.model, experiment.frontend)
    load_tensors(backbone, tensors, paths[-1])
    published, arguments = backbone.published()
    config = BundleConfig(
        model=replace(experiment.model, args={**experiment.model.args, **arguments}),
        frontend=experiment.frontend.with_minimum(backbone.min_frames),
        embedding_size=backbone.embed_dim,
        provenance=made,
    )
    return write_bundle(out, config, published.state_dict() if arguments else tensors)


def _published_model(
    experiment: TSVADExperiment | EENDExperiment, out: Path, tensors: dict[str, Tensor], made: dict[str, Any]
) -> Path:
    config = replace(described_diarizer(experiment), provenance=made)
    load_tensors(build_network(config), tensors, out)
    return write_model(out, config, tensors)


def _published_extractor(
    experiment: ExtractionExperiment, out: Path, tensors: dict[str, Tensor], made: dict[str, Any]
) -> ExtractionBundle:
    config = replace(described(experiment), provenance=made)
    bundle = write_extractor(out, config, _part(tensors, "conditioned."))
    open_conditioned(bundle)
    if config.voices == "embedding":
        embedder = read_bundle(open_name(Path(str(experiment.embedder))))
        if experiment.tune:
            write_bundle(out / VOICE, embedder.config, _part(tensors, "encoder.backbone."))
        else:
            copy_bundle(embedder, out / VOICE)
    return bundle


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _teachers(experiment: Experiment) -> dict[str, str]:
    """The models that the training started from and learned from."""
    if not isinstance(experiment, EmbeddingExperiment):
        return {"init": experiment.init} if experiment.init else {}
    started = {"init": experiment.init} if experiment.init else {}
    if experiment.pretrained and not experiment.init:
        started = {"pretrained": experiment.pretrained}
    return {**started, "teacher": experiment.distillation.teacher} if experiment.distillation else started


def _warn(exp_dir: Path, experiment: Experiment, found: list[Path], missing: int) -> None:
    """Say in one line where a bundle is made of less than the experiment plans."""
    steps, average = experiment.trainer.steps, experiment.trainer.average
    faults = []
    if missing > 0:
        faults.append(f"{average - missing} checkpoints are averaged, trainer.average is {average}")
    if found and step_of(found[-1]) < steps:
        faults.append(f"training is at step {step_of(found[-1])} of {steps}")
    if faults:
        logger.warning("%s: %s", exp_dir, "; ".join(faults))
