"""Folders of small extraction models with random weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import torch

from speakerkit.bundle import CONFIG, GRAPH, read_bundle
from speakerkit.config import NamedConfig, to_dict, write_yaml
from speakerkit.extraction.bundle import VOICE, ExtractionBundle, ExtractorConfig, write_extractor
from speakerkit.extraction.model import build_conditioned
from tests.graphs import write_gain_graph

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


def gain_extractor(path: Path, embedder: Path, *, rate: int = RATE) -> ExtractionBundle:
    """Write a model without weights whose output is the mixture times the mean of the voice."""
    size = read_bundle(embedder).config.embedding_size
    config = ExtractorConfig(NamedConfig("gain"), rate, "embedding", size)
    path.mkdir(parents=True, exist_ok=True)
    write_yaml(path / CONFIG, to_dict(config))
    write_gain_graph(path / GRAPH, rate=rate)
    shutil.copytree(embedder, path / VOICE)
    return ExtractionBundle(path, config)
