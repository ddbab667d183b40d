"""Heads against float64 formulas, and their gradients where cosines are one."""

import math

import numpy as np
import pytest
import torch

from speakerkit.embedding.heads import HEADS, ArcMargin, Softmax
from speakerkit.errors import ConfigError

MARGIN_HEADS = ("add_margin", "arc_margin")


def cosines(embedding: torch.Tensor, weight: torch.Tensor) -> np.ndarray:
    e, w = embedding.detach().double().numpy(), weight.detach().double().numpy()
    return (e / np.linalg.norm(e, axis=1, keepdims=True)) @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T


def oracle(name: str, cosine: np.ndarray, label: np.ndarray, scale: float, margin: float) -> np.ndarray:
    out = cosine.copy()
    for row, true in enumerate(label):
        theta = math.acos(cosine[row, true])
        if name == "add_margin":
            out[row, true] = math.cos(theta) - margin
        elif theta < math.pi - margin:
            out[row, true] = math.cos(theta + margin)
        else:
            out[row, true] = math.cos(theta) - (1 + math.cos(math.pi - margin))
    return scale * out


@pytest.mark.parametrize("name", MARGIN_HEADS)
@pytest.mark.parametrize("margin", [0.0, 0.2, 0.5])
def test_margin_logits_equal_the_formula(name, margin):
    torch.manual_seed(0)
    head = HEADS[name](16, 10, scale=32.0, margin=margin).double()
    embedding = torch.randn(40, 16, dtype=torch.float64)
    label = torch.randint(0, 10, (40,))
    expected = oracle(name, cosines(embedding, head.weight), label.numpy(), 32.0, margin)
    np.testing.assert_allclose(head(embedding, label).detach(), expected, atol=1e-9)


def test_arc_margin_beyond_its_turning_point_is_continuous_and_falling():
    head = ArcMargin(2, 1, scale=1.0, margin=0.5).double()
    head.weight.data = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    theta = torch.linspace(0.01, math.pi - 0.01, 4000, dtype=torch.float64)
    embedding = torch.stack([theta.cos(), theta.sin()], dim=1)
    logits = head(embedding, torch.zeros(4000, dtype=torch.long)).detach()[:, 0]
    steps = logits.diff()
    assert (steps < 0).all()
    assert steps.abs().max() < 2e-3
    beyond = theta > math.pi - 0.5
    expected = theta[beyond].cos() - (1 + math.cos(math.pi - 0.5))
    assert beyond.sum() > 500
    assert torch.allclose(logits[beyond], expected, atol=1e-9)


def test_softmax_is_a_linear_layer():
    torch.manual_seed(0)
    head = Softmax(8, 5)
    head.bias.data.normal_()
    embedding = torch.randn(6, 8)
    expected = (
        embedding.double().numpy() @ head.weight.detach().double().numpy().T + head.bias.detach().double().numpy()
    )
    np.testing.assert_allclose(head(embedding, torch.zeros(6, dtype=torch.long)).detach(), expected, atol=1e-5)
    np.testing.assert_allclose(head.scores(embedding).detach(), expected, atol=1e-5)
    assert (head.scale, head.margin) == (1.0, 0.0)


@pytest.mark.parametrize("name", HEADS)
def test_weight_and_cosine(name):
    head = HEADS[name](8, 5)
    assert head.weight.shape == (5, 8)
    embedding = torch.randn(6, 8)
    cosine = head.cosine(embedding)
    np.testing.assert_allclose(cosine.detach(), cosines(embedding, head.weight), atol=1e-6)
    if name != "softmax":
        assert list(head.state_dict()) == ["weight"]
        assert torch.equal(head.scores(embedding), head.scale * cosine)


@pytest.mark.parametrize("name", MARGIN_HEADS)
def test_without_margin_all_heads_are_scaled_cosines(name):
    head = HEADS[name](8, 5, scale=20.0, margin=0.0)
    embedding = torch.randn(6, 8)
    assert torch.allclose(head(embedding, torch.arange(6) % 5), head.scores(embedding), atol=1e-5)


@pytest.mark.parametrize("name", MARGIN_HEADS)
def test_update_changes_the_true_class_only(name):
    torch.manual_seed(0)
    head = HEADS[name](8, 5, margin=0.0)
    embedding, label = torch.randn(20, 8), torch.randint(0, 5, (20,))
    before = head(embedding, label)
    head.update(0.4)
    assert head.margin == 0.4
    after = head(embedding, label)
    true = torch.nn.functional.one_hot(label, 5).bool()
    assert (after[true] < before[true]).all()
    assert torch.equal(after[~true], before[~true])


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("margin", [0.0, 0.2, 0.5])
def test_gradients_are_finite_where_the_cosine_is_one(name, sign, margin):
    head = HEADS[name](4, 3)
    head.update(margin)
    head.weight.data = torch.eye(3, 4)
    embedding = (sign * torch.eye(3, 4)).requires_grad_()
    label = torch.arange(3)
    assert head.cosine(embedding).diagonal().tolist() == [sign] * 3
    torch.nn.functional.cross_entropy(head(embedding, label), label).backward()
    assert embedding.grad.isfinite().all()
    assert head.weight.grad.isfinite().all()


@pytest.mark.parametrize("name", HEADS)
def test_gradients_near_one_in_float32_stay_moderate(name):
    head = HEADS[name](64, 3)
    head.update(0.2)
    torch.manual_seed(0)
    embedding = (head.weight.detach() + 1e-4 * torch.randn(3, 64)).requires_grad_()
    head(embedding, torch.arange(3)).diagonal().sum().backward()
    assert embedding.grad.isfinite().all()
    assert embedding.grad.abs().max() < 1e4


@pytest.mark.parametrize("name", HEADS)
def test_autocast_does_not_lower_the_precision(name):
    torch.manual_seed(0)
    head = HEADS[name](64, 20)
    embedding, label = torch.randn(8, 64), torch.randint(0, 20, (8,))
    full = head(embedding, label)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = head(embedding, label)
        rounded = embedding @ head.weight.T
        assert head(rounded @ head.weight, label).dtype == torch.float32
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(inside, full)


@pytest.mark.parametrize("margin", [-0.1, math.pi / 2, float("nan")])
def test_margins_that_make_no_sense_are_refused(margin):
    head = HEADS["arc_margin"](4, 3)
    with pytest.raises(ConfigError, match="margin"):
        head.update(margin)
    assert head.margin == 0.2
