"""What is known of each model file beside its code, one module a file: tests over all backbones read it from here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from speakerkit.embedding.registry import MODEL_FILES

FEAT_DIM = 24  # mel bands of the features that tests give to the backbones


@dataclass(frozen=True)
class Family:
    """The registered names of one model file.

    Attributes:
        names: all of them.
        small: arguments beside feat_dim and embed_dim that make a member small, by name; "" for all others.
        published: state dictionary entries (``None``: not published) and millions of parameters, with all published
            decimals, by name.
        shapes: published tensors and their shapes, by name.
        pooled_frames: how many frames reach the pooling of so many frames of input.
        export: members that the default run exports to ONNX, and their arguments.
        slow: names too large for the default run.
        blind: endings of parameters that get no gradient by construction (a bias before a softmax over time).
        damp: makes a residual block's branch small, as after training; called with every module.
        pooled: whether ``backbone.pool`` is a :class:`speakerkit.nn.pooling.Pooling`.
        poolings: a small name of which every pooling is tried through ``pooling_func``; ``None`` where it is fixed.
        feat_dim: values in a row of features.
        rows: rows of features in a frame of 10 ms; as many as samples where each is a row.
    """

    names: tuple[str, ...]
    small: dict[str, dict[str, object]] = field(default_factory=dict)
    published: dict[str, tuple[int | None, float]] = field(default_factory=dict)
    shapes: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)
    pooled_frames: Callable[[int], int] = lambda frames: frames
    export: dict[str, dict[str, object]] = field(default_factory=dict)
    slow: tuple[str, ...] = ()
    blind: tuple[str, ...] = ()
    damp: Callable[[nn.Module], None] | None = None
    pooled: bool = True
    poolings: str | None = None
    feat_dim: int = FEAT_DIM
    rows: int = 1


FAMILIES: dict[str, Family] = {
    file: importlib.import_module(f"tests.embedding.families.{file}").FAMILY for file in MODEL_FILES
}


def family_of(name: str) -> Family:
    """The family that a registered name belongs to."""
    return next(family for family in FAMILIES.values() if name in family.names)
