"""The backbones by name: what a configuration's ``model`` and ``model_args`` stand for."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from speakerkit.errors import ConfigError
from speakerkit.registry import Registry, suggest

MODEL_FILES = (
    "resnet",
    "ecapa_tdnn",
    "ecapa_zoo",
    "campplus",
    "repvgg",
    "gemini_dfresnet",
    "simam_resnet",
    "redimnet",
    "res2net",
    "eres2net",
    "tdnn",
    "dvector",
    "ssl",
)


class Backbone(nn.Module):
    """Features in, embeddings out; a model file derives from this and registers itself.

    ``forward(feats: (B, T, feat_dim)) -> (B, embed_dim)``, one plain tensor.

    Attributes:
        feat_dim: mel bands (or other features) per frame.
        embed_dim: length of the embedding.
        min_frames: the shortest T of which two frames reach the pooling, so that a standard deviation exists. Shorter
            input still gives a finite embedding, but one that says next to nothing.
        hears: kind of front-end, ``FrontEnd.kind``.
    """

    feat_dim: int
    embed_dim: int
    min_frames: int
    hears: str = "fbank"

    def frame_features(self, feats: Tensor) -> Tensor:
        """What the pooling sees, (B, T, feat_dim) to (B, T', D'), for models that want speaker features per frame."""
        raise NotImplementedError

    def embed_frames(self, frames: Tensor) -> Tensor:
        """The rest of ``forward``: a stretch of what :meth:`frame_features` gives, (B, T', D') to (B, embed_dim)."""
        raise NotImplementedError

    def deployed(self) -> Backbone:
        """The module to run at inference, equal to this one in eval mode; ``self`` unless there is a cheaper form."""
        return self

    def published(self) -> tuple[Backbone, dict[str, Any]]:
        """The module that bundles hold, and the arguments that build it and differ from this one's."""
        return self, {}


Builder = TypeVar("Builder", bound=Callable[..., Backbone])

BACKBONES: Registry[Callable[..., Backbone]] = Registry("backbone")


def register_backbone(name: str) -> Callable[[Builder], Builder]:
    """Decorator that enters a backbone class or factory under ``name``."""

    def enter(builder: Builder) -> Builder:
        BACKBONES.register(name)(builder)
        return builder

    return enter


def backbone_names() -> list[str]:
    """Every registered name, those of the files in this folder included."""
    for file in MODEL_FILES:
        importlib.import_module(f"speakerkit.embedding.{file}")
    return list(BACKBONES)


def build_backbone(name: str, **args: Any) -> Backbone:
    """The backbone of that name with random weights.

    Raises:
        ConfigError: the name or one of the arguments is unknown; the message suggests the nearest one.
    """
    backbone_names()
    builder = BACKBONES[name]
    known = list(inspect.signature(builder).parameters)
    for arg in args:
        if arg not in known:
            raise ConfigError(f"backbone {name!r}", f"has no argument {arg!r}", suggest(arg, known))
    return builder(**args)
