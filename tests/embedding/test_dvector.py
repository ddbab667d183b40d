"""d-vector: what no shape tells."""

import numpy as np
import pytest
import torch

from speakerkit.embedding.dvector import DVector, windows
from speakerkit.embedding.registry import build_backbone
from speakerkit.errors import ConfigError
from tests.embedding import formula

SMALL = {"feat_dim": 6, "embed_dim": 4, "hidden_dim": 5, "proj_dim": 3, "layers": 2, "window": 8}


def small_dvector() -> DVector:
    backbone = DVector(**SMALL).double().eval()
    formula.fill(backbone)
    return backbone


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lstm_by_hand(state: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Two projected layers over (frames, 6), one step at a time, to (frames, 3)."""
    for layer in range(2):
        projected, cell, outputs = np.zeros(3), np.zeros(5), []
        for frame in x:
            gates = state[f"lstm.weight_ih_l{layer}"] @ frame + state[f"lstm.bias_ih_l{layer}"]
            gates = gates + state[f"lstm.weight_hh_l{layer}"] @ projected + state[f"lstm.bias_hh_l{layer}"]
            i, f, g, o = gates.reshape(4, 5)
            cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
            projected = state[f"lstm.weight_hr_l{layer}"] @ (sigmoid(o) * np.tanh(cell))
            outputs.append(projected)
        x = np.stack(outputs)
    return x


def dvector_by_hand(state: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    linear = state["linear.weight"] @ lstm_by_hand(state, x)[-1] + state["linear.bias"]
    return linear / np.linalg.norm(linear)


def test_short_utterance_equals_the_recurrence():
    backbone = small_dvector()
    state = {key: value.numpy() for key, value in backbone.state_dict().items()}
    feats = formula.features(7, 6)
    with torch.no_grad():
        np.testing.assert_allclose(backbone.frame_features(feats)[1], lstm_by_hand(state, feats[1].numpy()), rtol=1e-10)
        expected = [dvector_by_hand(state, row.numpy()) for row in feats]
        np.testing.assert_allclose(backbone(feats), expected, rtol=1e-10)


def test_long_utterance_is_the_mean_over_its_windows():
    backbone = small_dvector()
    state = {key: value.numpy() for key, value in backbone.state_dict().items()}
    feats = formula.features(18, 6)
    expected = []
    for row in feats.numpy():
        mean = np.mean([dvector_by_hand(state, row[start : start + 8]) for start in (0, 4, 8, 10)], axis=0)
        expected.append(mean / np.linalg.norm(mean))
    with torch.no_grad():
        np.testing.assert_allclose(backbone(feats), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("frames", "starts"), [(1, [0]), (8, [0]), (9, [0, 1]), (12, [0, 4]), (13, [0, 4, 5]), (16, [0, 4, 8])]
)
def test_windows_overlap_by_half_and_end_with_the_utterance(frames, starts):
    x = torch.arange(frames).reshape(1, frames, 1)
    cut = windows(x, 8)[0, :, :, 0]
    assert cut[:, 0].tolist() == starts
    assert cut[:, -1].tolist() == [start + min(frames, 8) - 1 for start in starts]


def test_published_sizes():
    with torch.device("meta"):
        state = build_backbone("DVECTOR").state_dict()
    assert {key: tuple(state[key].shape) for key in ("lstm.weight_ih_l2", "lstm.weight_hr_l0", "linear.weight")} == {
        "lstm.weight_ih_l2": (4 * 768, 256),
        "lstm.weight_hr_l0": (256, 768),
        "linear.weight": (256, 256),
    }


@pytest.mark.parametrize(("arg", "value"), [("window", 1), ("proj_dim", 5), ("proj_dim", 0)])
def test_sizes_that_a_dvector_cannot_have(arg, value):
    with pytest.raises(ConfigError, match=f"{arg}: is {value}; choose"):
        DVector(**{**SMALL, arg: value})
