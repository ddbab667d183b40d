"""What a training starts from: the tensors of a bundle or checkpoint, and which of the network's they become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speakerkit.bundle import Bundle, read_bundle
from speakerkit.embedding.distillation import PROJECTION
from speakerkit.embedding.model import SpeakerNet, load_backbone, load_tensors
from speakerkit.errors import BundleError
from speakerkit.nn.sharding import whole_shapes
from speakerkit.weights import load_checkpoint, model_of, published_tensors
from speakerkit.wespeaker import CHECKPOINT, wespeaker_tensors

BACKBONE, HEAD = "backbone.", "head."

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Inheritance:
    """Shapes of tensors by name.

    Attributes:
        source: the bundle or checkpoint.
        loaded: what the network has taken from it.
        new: what the network has with random values.
        dropped: what the source holds and the network does not.
        note: what was cut to fit, or "".
    """

    source: str
    loaded: Shapes
    new: Shapes
    dropped: Shapes
    note: str = ""

    def to_lines(self) -> list[str]:
        """What was loaded, in numbers; what is new and what was dropped, by name."""
        values = sum(torch.Size(shape).numel() for shape in self.loaded.values())
        lines = [f"loaded: {len(self.loaded)} tensors ({values / 1e6:.3f} M values) of {self.source}"]
        for kind, shapes in (("new", self.new), ("dropped", self.dropped)):
            named = [f"{name} ({' x '.join(map(str, shape)) or 'one value'})" for name, shape in shapes.items()]
            lines.append(f"{kind}: {', '.join(named) or 'none'}")
        return [*lines, self.note] if self.note else lines


def start_from(model: SpeakerNet, source: str, classes: Mapping[str, Any]) -> Inheritance:
    """Load what a training starts from: the backbone of a bundle, or backbone and head of a checkpoint.

    Speed perturbation gives a checkpoint one class for each speaker at each speed; a training at fewer speeds takes the
    head's rows of these.

    Args:
        source: a bundle, or a checkpoint such as ``checkpoints/average.pt``.
        classes: ``speaker list`` and ``speeds`` of the task's fingerprint.

    Raises:
        BundleError: tensors that do not fit, or a checkpoint of other speakers or without one of the speeds.
    """
    if not Path(source).is_file():
        bundle = read_bundle(source)
        load_backbone(model.backbone, bundle)
        theirs = {f"{BACKBONE}{name}": tensor for name, tensor in bundle.tensors().items()}
        return _inheritance(model, source, {**theirs, **_left_out(bundle)})
    state = load_checkpoint(source)
    theirs = model_of(state, source)
    known = state.get("fingerprint")
    own = model.state_dict()
    fitting, note = _at_speeds(theirs, whole_shapes(model), known if isinstance(known, dict) else {}, classes, source)
    # A projection serves one distillation only: it is left behind, and the next one starts with its own.
    fitting = {name: tensor for name, tensor in fitting.items() if not name.startswith(PROJECTION)}
    projection = {name: tensor for name, tensor in own.items() if name.startswith(PROJECTION)}
    load_tensors(model, {**fitting, **projection}, source)
    return _inheritance(model, source, {**theirs, **fitting}, note)


def _left_out(bundle: Bundle) -> dict[str, Tensor]:
    """What the file of a bundle holds beside its backbone: in WeSpeaker's folders, the classifier."""
    path = bundle.path / bundle.weights
    if bundle.weights != CHECKPOINT:
        return {}
    tensors = published_tensors(path)
    return {name: tensors[name] for name in wespeaker_tensors(path)[1]}


def _inheritance(model: SpeakerNet, source: str, theirs: Mapping[str, Tensor], note: str = "") -> Inheritance:
    own = whole_shapes(model)
    kept = {name for name in theirs.keys() & own.keys() if not name.startswith(PROJECTION)}
    return Inheritance(
        source,
        {name: tuple(shape) for name, shape in own.items() if name in kept},
        {name: tuple(shape) for name, shape in own.items() if name not in kept},
        {name: tuple(tensor.shape) for name, tensor in theirs.items() if name not in kept},
        note,
    )


def _at_speeds(
    tensors: Mapping[str, Tensor],
    own: Mapping[str, torch.Size],
    known: Mapping[str, Any],
    classes: Mapping[str, Any],
    source: str,
) -> tuple[dict[str, Tensor], str]:
    """The tensors of a checkpoint with the head's rows of the speeds that are trained at, and what was done.

    Args:
        own: shapes of the network's tensors.
        known: fingerprint of the checkpoint; empty where it holds none, and is taken as it is.
    """
    theirs, wanted = list(known.get("speeds", [])), list(classes["speeds"])
    if known and known.get("speaker list") != classes["speaker list"]:
        fault = "was trained on other speakers than data.train names"
        raise BundleError(source, fault, "start from its bundle, which brings no classes")
    if not theirs or theirs == wanted:
        return dict(tensors), ""
    missing = [speed for speed in wanted if speed not in theirs]
    if missing:
        fault = f"was trained at the speeds {theirs}, not at {missing[0]}"
        raise BundleError(source, fault, "choose data.speeds from these, or start from its bundle")
    by_class = {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith(HEAD) and tensor.ndim and own.get(name)
        if len(tensor) * len(wanted) == own[name][0] * len(theirs)
    }
    cut = {name: _rows(tensor, theirs, wanted) for name, tensor in by_class.items()}
    note = f"of the head's rows at the speeds {theirs}, those at {wanted} were taken: " + ", ".join(
        f"{len(rows)} of {len(tensors[name])} of {name}" for name, rows in cut.items()
    )
    return {**tensors, **cut}, note


def _rows(tensor: Tensor, theirs: list[float], wanted: list[float]) -> Tensor:
    """Rows of the classes at the speeds wanted; they stand speed by speed, the same speakers in each."""
    by_speed = dict(zip(theirs, tensor.chunk(len(theirs)), strict=True))
    return torch.cat([by_speed[speed] for speed in wanted])
