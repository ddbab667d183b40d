"""A backbone as one ONNX file: features in, embeddings out, compared with torch before it replaces anything."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from speakerkit.embedding.registry import Backbone
from speakerkit.errors import BundleError
from speakerkit.files import atomic_path

OPSET = 18
TOLERANCE = 1e-4
BATCHES = (1, 3)
LENGTHS = {"fbank": (200, 278, 1000, 6000), "waveform": (16000, 22240, 80000)}  # T, by what a model hears


@dataclass(frozen=True)
class ParityRow:
    """Difference between torch and onnxruntime at one input shape; ``relative_diff`` is to the largest value."""

    batch: int
    frames: int
    max_abs_diff: float
    relative_diff: float


@dataclass(frozen=True)
class Parity:
    """How far an ONNX file is from its torch model, over all shapes compared; no rows where it was not compared."""

    rows: tuple[ParityRow, ...] = ()

    @property
    def max_abs_diff(self) -> float:
        """The largest difference; NaN without rows."""
        return max((row.max_abs_diff for row in self.rows), default=float("nan"))

    @property
    def relative_diff(self) -> float:
        """The largest relative difference, which is the one that is checked; NaN without rows."""
        return max((row.relative_diff for row in self.rows), default=float("nan"))


def export_onnx(
    backbone: Backbone, path: str | Path, *, min_frames: int, metadata: dict[str, str], check: bool = True
) -> Parity:
    """Write ``feats (B, T, feat_dim) -> embs (B, D)`` with B and T free; the backbone itself is left as it is.

    Args:
        backbone: the model, in whatever mode and on whatever device; a copy of it is exported, in its deployed form.
        path: the file to write; what was there stays until the new file has passed the check.
        min_frames: the shortest T that users of the file may feed; it goes into the file's metadata.
        metadata: further entries of the file's ``metadata_props``.
        check: compare with torch, see :func:`check_parity`.

    Raises:
        BundleError: the file does not compute what the model computes.
    """
    model = _plain_copy(backbone)
    with quiet_exporter(), sdpa_kernel(SDPBackend.MATH):  # other kernels leave memory layouts that ONNX has no view of
        program = torch.onnx.export(
            model.deployed(),
            (torch.zeros(2, min_frames + 200, backbone.feat_dim),),
            input_names=["feats"],
            output_names=["embs"],
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("B"), 1: torch.export.Dim("T", min=max(min_frames, 2))},),
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {"min_frames": str(min_frames), **metadata})
    with atomic_path(path) as temporary:
        onnx.save(proto, temporary)
        try:
            return check_parity(model, temporary, min_frames) if check else Parity()
        except BundleError as error:
            raise BundleError(path, error.fault, error.remedy) from None


def check_parity(backbone: Backbone, path: str | Path, min_frames: int) -> Parity:
    """Compare torch with onnxruntime at B = 1, 3 and T = min_frames and longer ones, on random normal features.

    Both run on the CPU in float32. The difference that counts is the largest one divided by the largest value of the
    embeddings, since neither float rounding nor a cosine knows the scale of a model's embeddings. A model whose float32
    is itself not good to 1e-4 (a very deep one before training) fails as well.

    Raises:
        BundleError: a relative difference is above 1e-4, or not a number.
    """
    model = _plain_copy(backbone)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    rows = []
    for frames in (min_frames, *(frames for frames in LENGTHS[backbone.hears] if frames > min_frames)):
        for batch in BATCHES:
            feats = torch.randn(batch, frames, backbone.feat_dim, generator=generator)
            with torch.inference_mode():
                expected = model(feats).numpy()
            (actual,) = session.run(["embs"], {"feats": feats.numpy()})
            row = _compare(np.asarray(actual), expected, frames)
            if not row.relative_diff <= TOLERANCE:
                fault = f"is {row.relative_diff:.2g} off its torch model at B={batch}, T={frames}"
                raise BundleError(path, fault, f"at most {TOLERANCE:g} is allowed; do not ship it")
            rows.append(row)
    return Parity(tuple(rows))


def _compare(actual: np.ndarray, expected: np.ndarray, frames: int) -> ParityRow:
    difference = float(np.abs(actual - expected).max()) if actual.shape == expected.shape else float("inf")
    largest = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    return ParityRow(len(expected), frames, difference, difference / largest)


def _plain_copy(backbone: Backbone) -> Backbone:
    return copy.deepcopy(backbone).cpu().float().eval()


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Without the exporter's remarks on packages that it could use and on its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
