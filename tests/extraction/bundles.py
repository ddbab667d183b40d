"""Folders of small extraction models with random weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import torch

from speakerkit.bundle import read_bundle
from speakerkit.config import NamedConfig
from speakerkit.extraction.bundle import VOICE, ExtractionBundle, ExtractorConfig, write_extractor
from speakerkit.extraction.model import build_conditioned

RATE = 8000


def random_extractor(
    path: Path, name: str, args: dict[str, Any], *, embedder: Path | None = None, rate: int = RATE
) -> ExtractionBundle:
    """Write a model; one with an ``embedder`` (a bundle's folder, which is copied) hears its embeddings."""
    args = {key: value for key, value in args.items() if key != "voice_size"} if embedder else args
    size = None if embedder is None else read_bundle(embedder).config.embedding_size
    model = NamedConfig(name, args)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conditioned = build_conditioned(model, rate, size)
    voices: Literal["embedding", "joint", "none"] = "embedding"
    if embedder is None:
        voices = "none" if conditioned.extractor.sources else "joint"
    bundle = write_extractor(path, ExtractorConfig(model, rate, voices, size or 0), conditioned.state_dict())
    if embedder is not None:
        shutil.copytree(embedder, path / VOICE, dirs_exist_ok=True)
    return bundle
