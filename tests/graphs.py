"""Small ONNX files of the form that the exporters of speaker models write."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_mean_graph(
    path: Path,
    *,
    mels: int | None = 80,
    size: int = 6,
    batch: int | None = None,
    frames: int | None = None,
    names: tuple[str, str] = ("feats", "embs"),
    metadata: dict[str, str] | None = None,
) -> np.ndarray:
    """Write ``embs = mean over time of feats @ matrix``; an axis of ``None`` is free.

    Returns:
        (mels, size) the matrix.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    matrix = np.sin(np.arange(1, (mels or 80) * size + 1, dtype=np.float32)).reshape(-1, size)
    shape = [batch or "B", frames or "T", mels or "F"]
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", [names[0], "axes"], ["mean"], keepdims=0),
            helper.make_node("MatMul", ["mean", "matrix"], [names[1]]),
        ],
        "mean",
        [helper.make_tensor_value_info(names[0], TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(names[1], TensorProto.FLOAT, [batch or "B", size])],
        [numpy_helper.from_array(matrix, "matrix"), numpy_helper.from_array(np.array([1]), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return matrix


def write_gain_graph(path: Path, *, rate: int = 8000, metadata: dict[str, str] | None = None) -> None:
    """Write ``waveform = mixture * mean of voices``, of the form of an exported extraction model."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["voices", "last"], ["gain"], keepdims=1),
            helper.make_node("Unsqueeze", ["mixture", "one"], ["wide"]),
            helper.make_node("Mul", ["wide", "gain"], ["waveform"]),
        ],
        "gain",
        [
            helper.make_tensor_value_info("mixture", TensorProto.FLOAT, ["B", "S"]),
            helper.make_tensor_value_info("voices", TensorProto.FLOAT, ["B", "K", "D"]),
        ],
        [helper.make_tensor_value_info("waveform", TensorProto.FLOAT, ["B", "K", "S"])],
        [numpy_helper.from_array(np.array([-1]), "last"), numpy_helper.from_array(np.array([1]), "one")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(
        model, {"sample_rate": str(rate), "min_samples": "5", "min_enrolment": "0"} | (metadata or {})
    )
    onnx.save(model, path)
