"""What every extraction model offers, and the models by name: what ``model`` and its ``args`` stand for."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from speakerkit.errors import ConfigError
from speakerkit.registry import Registry, suggest

MODEL_FILES = ("spex_plus", "voicefilter", "atss_net", "bsrnn", "conv_tasnet", "dprnn", "used", "tune_in")
QUIETEST = 1e-6  # RMS that counts as silence, -120 dB


@dataclass(frozen=True, eq=False)
class Extracted:
    """What a model makes of B mixtures, for K voices each (or K blind sources).

    Attributes:
        waveform: (B, K, S) estimate, as long as the mixture.
        scales: further estimates (B, K, S) of a multi-scale model, which its loss weighs.
        magnitude: (B, K, T, F) masked magnitude of a model that is trained on magnitudes, by its own STFT.
        separated: (B, K', S) what the layers that hear no voice make of the sources, in no order; for training alone.
    """

    waveform: Tensor
    scales: tuple[Tensor, ...] = ()
    magnitude: Tensor | None = None
    separated: Tensor | None = None


class Extractor(nn.Module):
    """Mixtures and voices in, one waveform a voice out; a model file derives from this and registers itself.

    ``forward(mixture (B, S), voices (B, K, D)) -> Extracted``: what depends on the mixture alone is computed once for
    its K voices. A blind separator takes no voices (``voices=None``) and gives its K sources in no order. A model with
    ``can_complete`` takes a third argument ``complete (B,)``, 1 for mixtures in which the voices are all that is heard.
    Any S from ``min_samples`` on; the level of the output follows that of the input.

    Attributes:
        voice_size: D; 0 for a blind separator.
        sources: K of a blind separator; 0 where the voices say how many.
        min_samples: the shortest mixture.
        min_enrolment: samples of the shortest enrolment of a model with a speaker encoder of its own, which hears
            shorter ones as if zeros followed; 0 for the other models.
        can_complete: whether it uses that voices are complete.
    """

    voice_size: int
    sources: int = 0
    min_samples: int
    min_enrolment: int = 0
    can_complete: bool = False

    def enrol(self, enrolment: Tensor, lengths: Tensor) -> Tensor:
        """Voices (N, D) of enrolments (N, S), of which the first ``lengths`` (N,) samples are real, and heard.

        Only for models with a speaker encoder of their own; the others take embeddings of a bundle.
        """
        raise NotImplementedError

    def magnitudes(self, waveform: Tensor) -> Tensor:
        """(..., S) to (..., T, F) of the model's STFT: the target of ``Extracted.magnitude``."""
        raise NotImplementedError


def levelled(mixture: Tensor) -> tuple[Tensor, Tensor]:
    """Mixtures (B, S) brought to an RMS of 1, and their level (B, 1), which an estimate is to be multiplied by.

    Models that are not indifferent to level by themselves begin and end with it. Silence stays silence.
    """
    rms = torch.linalg.vector_norm(mixture, dim=-1, keepdim=True) / mixture.shape[-1] ** 0.5
    level = rms.clamp_min(QUIETEST)
    return mixture / level, level


def blind_sources(sources: int | None, voice_size: int) -> int:
    """``Extractor.sources`` of a model that separates blindly, 2 sources unless told, or hears voices of a size.

    Raises:
        ConfigError: both are given.
    """
    if sources is not None and voice_size:
        raise ConfigError("sources", "cannot be given with a voice_size", "a blind separator hears no voice")
    if voice_size:
        return 0
    if sources is not None and sources < 1:
        raise ConfigError("sources", f"are {sources}", "give 1 or more")
    return sources or 2


Builder = TypeVar("Builder", bound=Callable[..., Extractor])

EXTRACTORS: Registry[Callable[..., Extractor]] = Registry("extraction model")


def register_extractor(name: str) -> Callable[[Builder], Builder]:
    """Decorator that enters a model class or factory under ``name``."""

    def enter(builder: Builder) -> Builder:
        EXTRACTORS.register(name)(builder)
        return builder

    return enter


def extractor_names() -> list[str]:
    """Every registered name, those of the files in this folder included."""
    for file in MODEL_FILES:
        importlib.import_module(f"speakerkit.extraction.{file}")
    return list(EXTRACTORS)


def build_extractor(name: str, **args: Any) -> Extractor:
    """The model of that name with random weights.

    Raises:
        ConfigError: the name or one of the arguments is unknown; the message suggests the nearest one.
    """
    known = extractor_arguments(name)
    for arg in args:
        if arg not in known:
            raise ConfigError(f"extraction model {name!r}", f"has no argument {arg!r}", suggest(arg, known))
    return EXTRACTORS[name](**args)


def extractor_arguments(name: str) -> list[str]:
    """Names of what a model may be told.

    Raises:
        ConfigError: the name is unknown.
    """
    extractor_names()
    return list(inspect.signature(EXTRACTORS[name]).parameters)
