"""A bundle's weights to its ONNX file."""

from __future__ import annotations

import json
from pathlib import Path

from speakerkit.bundle import GRAPH, read_bundle
from speakerkit.config import to_dict
from speakerkit.embedding.model import open_backbone
from speakerkit.errors import BundleError
from speakerkit.export.onnx import Parity, export_onnx


def export_bundle(path: Path) -> Parity:
    """Write ``model.onnx`` into the bundle, with the front-end and the weights' hash in its metadata.

    Raises:
        BundleError: no weights, or an ONNX file that differs from torch by more than 1e-4.
    """
    bundle = read_bundle(path)
    if not bundle.has_weights:
        raise BundleError(path, "has no weights to export", f"this bundle runs from its {GRAPH} as it is")
    config = bundle.config
    backbone = open_backbone(bundle)
    frontend = config.frontend.with_minimum(backbone.min_frames)
    metadata = {
        "framework": "speakerkit",
        "model": config.model.name,
        "sample_rate": str(frontend.sample_rate),
        "output_dim": str(config.embedding_size),
        "min_samples": str(frontend.min_samples),
        "frontend": json.dumps(to_dict(frontend)),
        "weights_sha256": bundle.digest(),
    }
    min_frames = frontend.num_frames(frontend.min_samples)
    return export_onnx(backbone, path / GRAPH, min_frames=min_frames, metadata=metadata)
