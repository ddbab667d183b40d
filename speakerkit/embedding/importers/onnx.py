"""WeSpeaker's exported graphs: what an ONNX file of ``feats`` and ``embs`` says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from speakerkit.bundle import GRAPH_ONLY, BundleConfig
from speakerkit.config import NamedConfig
from speakerkit.errors import BundleError, ConfigError, first_line
from speakerkit.features import FrontEnd

SCALES = {"0": "int16", "1": "unit"}  # sherpa-onnx's note on whether samples are to be normalised
TRIED_FRAMES = 200


def describe_graph(path: Path, window: str | None, scale: str | None, num_mels: int | None) -> BundleConfig:
    """The configuration of a bundle that runs this file.

    Mels and embedding size are the graph's own. A front-end is in no graph: it is WeSpeaker's (hamming window, range of
    16-bit integers) unless the file's metadata or the arguments say otherwise.

    Raises:
        BundleError: no ONNX file of this kind, one for a fixed number of frames, or one that does not run.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises several classes of its own without a common base
        raise BundleError(path, f"cannot be loaded ({first_line(error)})", "copy it again") from None
    names = [node.name for node in session.get_inputs()], [node.name for node in session.get_outputs()]
    if names != (["feats"], ["embs"]):
        raise BundleError(path, f"has inputs and outputs {names}", "feats and embs are expected")
    shape = session.get_inputs()[0].shape
    if len(shape) != 3:
        raise BundleError(path, f"has feats of {len(shape)} axes", "(batch, frames, mels) are expected")
    batch, frames, mels = (size if isinstance(size, int) else None for size in shape)
    if frames is not None:
        raise BundleError(path, f"takes exactly {frames} frames", "export it again with a free number of frames")
    if mels is None and num_mels is None:
        raise BundleError(path, "does not tell its number of mels", "say it with --num-mels")
    metadata = session.get_modelmeta().custom_metadata_map
    try:
        frontend = FrontEnd(
            num_mels=num_mels or mels or 0,
            sample_rate=int(metadata.get("sample_rate", 16000)),
            window=window or "hamming",
            scale=scale or SCALES.get(metadata.get("normalize_samples", "0"), "int16"),
        )
    except (ConfigError, ValueError) as error:
        raise BundleError(path, f"cannot be given a front-end ({error})", "check its metadata") from None
    size = _embedding_size(session, path, batch or 1, frontend.num_mels)
    args = {"batch": batch} if batch is not None else {}
    return BundleConfig(NamedConfig(GRAPH_ONLY, args), frontend, size)


def _embedding_size(session: Any, path: Path, batch: int, mels: int) -> int:
    feats = np.random.default_rng(0).standard_normal((batch, TRIED_FRAMES, mels)).astype(np.float32)
    try:
        (vectors,) = session.run(["embs"], {"feats": feats})
    except Exception as error:
        raise BundleError(
            path, f"fails on features of shape {feats.shape} ({first_line(error)})", "export it again"
        ) from None
    if np.ndim(vectors) != 2 or len(vectors) != batch:
        raise BundleError(path, f"gives embeddings of shape {np.shape(vectors)}", "(batch, size) are expected")
    return int(np.shape(vectors)[1])
