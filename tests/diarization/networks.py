"""Small networks with random weights, as folders of models."""

from __future__ import annotations

from pathlib import Path

import torch

from speakerkit.bundle import read_bundle
from speakerkit.config import to_dict
from speakerkit.diarization.bundle import DiarizationModelConfig, build_network, write_model
from speakerkit.diarization.config import EENDSettings, TSVADSettings
from speakerkit.features import FrontEnd


def write_tsvad(path: Path, embedder: Path) -> Path:
    """A TS-VAD for the embeddings of a bundle; its slots are three."""
    bundle = read_bundle(embedder)
    settings = TSVADSettings(size=32, feed_forward=16, slots=3, average=4)
    told = bundle.config
    parts = (told.frontend, to_dict(settings), 2.0, told.model, told.embedding_size, bundle.digest())
    return _written(path, DiarizationModelConfig("tsvad", *parts), seed=2)


def write_eend(path: Path) -> Path:
    """An EEND at 8000 Hz, which finds attractors without end."""
    settings = EENDSettings(size=32, feed_forward=16, layers=1)
    return _written(
        path, DiarizationModelConfig("eend", FrontEnd(sample_rate=8000, num_mels=23), to_dict(settings), 2.0)
    )


def _written(path: Path, config: DiarizationModelConfig, seed: int = 0) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return write_model(path, config, build_network(config).state_dict())
