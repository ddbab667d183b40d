"""Classification heads against loops over float64 formulas, and their gradients where cosines are one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call

from speakerkit.config import NamedConfig
from speakerkit.embedding.heads import HEADS, Head, Softmax, Sphere, SphereFace2, farther, nearer
from speakerkit.embedding.joint import build_head
from speakerkit.embedding.objective import Objective
from speakerkit.errors import ConfigError

TOPK = "arc_margin_intertopk_subcenter"
CLASSIFIERS = ("softmax", "add_margin", "arc_margin", TOPK, "sphere", "sphereface2")
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("add_margin", {"scale": 20.0}),
    ("arc_margin", {}),
    (TOPK, {}),
    (TOPK, {"K": 1, "mp": 0.1, "k_top": 2}),
    (TOPK, {"do_lm": True}),
    (TOPK, {"k_top": 100}),
    ("sphere", {}),
    ("sphere", {"m": 1}),
    ("sphere", {"m": 3}),
    ("sphereface2", {}),
    ("sphereface2", {"margin_type": "A"}),
    ("sphereface2", {"margin_type": "A", "t": 2.0, "balance": 0.9, "scale": 10}),
]
MARGIN_HEADS = [variant for variant in VARIANTS if variant[0] != "softmax"]
DIM, CLASSES = 16, 10


def head_of(name: str, args: dict[str, Any] | None = None, dim: int = DIM, classes: int = CLASSES) -> Objective:
    torch.manual_seed(0)
    return build_head(NamedConfig(name, args or {}), dim, classes)


def cosines(embedding: torch.Tensor, weight: torch.Tensor) -> np.ndarray:
    e, w = embedding.detach().double().numpy(), weight.detach().double().numpy()
    return (e / np.linalg.norm(e, axis=1, keepdims=True)) @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T


def away(theta: float, angle: float) -> float:
    return math.cos(theta + angle) if theta < math.pi - angle else math.cos(theta) - 1 - math.cos(math.pi - angle)


def towards(theta: float, angle: float) -> float:
    return math.cos(theta - angle) if theta > angle else math.cos(theta) + 1 - math.cos(angle)


def psi(theta: float, m: int) -> float:
    k = next(k for k in range(m) if theta <= (k + 1) * math.pi / m)
    return (-1) ** k * math.cos(m * theta) - 2 * k


def oracle(head: Any, name: str, embedding: torch.Tensor, label: torch.Tensor, margin: float) -> np.ndarray:
    """Logits (B, C) with the margin, one by one."""
    cosine = cosines(embedding, head.weight)
    if name == TOPK:
        cosine = np.array([[max(row[c * head.K : (c + 1) * head.K]) for c in range(CLASSES)] for row in cosine])
    length = np.linalg.norm(embedding.detach().numpy(), axis=1)
    out = np.empty_like(cosine)
    for i, (row, own) in enumerate(zip(cosine, label.tolist(), strict=True)):
        others = sorted((c for c in range(CLASSES) if c != own), key=lambda c: -row[c])
        for c in range(CLASSES):
            theta, true = math.acos(np.clip(row[c], -1, 1)), c == own
            if name == "add_margin":
                out[i, c] = head.scale * (row[c] - margin * true)
            elif name == "arc_margin":
                out[i, c] = head.scale * (away(theta, margin) if true else row[c])
            elif name == TOPK:
                penalty = head.mp * margin / 0.2 if c in others[: head.k_top] else 0
                out[i, c] = head.scale * (away(theta, margin) if true else towards(theta, penalty))
            elif name == "sphere":
                out[i, c] = length[i] * ((1 - margin) * row[c] + margin * psi(theta, head.m) if true else row[c])
            elif head.margin_type == "A":
                x = away(theta, margin) if true else towards(theta, margin)
                out[i, c] = head.scale * (2 * math.copysign(abs((x + 1) / 2) ** head.t, x + 1) - 1) + head.bias.item()
            else:
                spread = 2 * ((row[c] + 1) / 2) ** head.t - 1
                out[i, c] = head.scale * (spread - margin if true else spread + margin) + head.bias.item()
    return out


def loss_oracle(head: Any, name: str, logits: np.ndarray, label: torch.Tensor) -> float:
    """The loss of logits (B, C), one by one."""
    total = 0.0
    for row, true in zip(logits, label.tolist(), strict=True):
        if name != "sphereface2":
            total += math.log(sum(math.exp(z - row[true]) for z in row))
            continue
        total += head.balance * math.log1p(math.exp(-row[true]))
        total += sum((1 - head.balance) * math.log1p(math.exp(z)) for c, z in enumerate(row) if c != true)
    return total / len(logits)


def a_batch(head: Objective, size: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Some embeddings lie near their class, some near its opposite, some near another class."""
    torch.manual_seed(1)
    embedding, label = torch.randn(size, DIM).double(), torch.randint(0, CLASSES, (size,))
    rows = head.weight.detach().double()[:CLASSES]
    embedding[:3] = rows[label[:3]] + 0.01 * embedding[:3]
    embedding[3:6] = -rows[label[3:6]] + 0.01 * embedding[3:6]
    embedding[6:9] = rows[(label[6:9] + 1) % CLASSES] + 0.001 * embedding[6:9]
    return embedding, label


@pytest.mark.parametrize(("name", "args"), VARIANTS)
@pytest.mark.parametrize("margin", [0.0, 0.2, 0.5])
def test_logits_and_loss_equal_the_formula(name: str, args: dict[str, Any], margin: float) -> None:
    head: Any = head_of(name, args).double()
    if name == "sphereface2":
        head.bias.data.fill_(-0.7)
    head.update(margin)
    embedding, label = a_batch(head)
    expected = oracle(head, name, embedding, label, margin)
    np.testing.assert_allclose(head.logits(embedding, label).detach(), expected, atol=1e-9)
    assert head(embedding, label).item() == pytest.approx(loss_oracle(head, name, expected, label), abs=1e-7)
    without = oracle(head, name, embedding, label, 0.0)
    np.testing.assert_allclose(head.scores(embedding).detach(), without, atol=1e-9)
    loss, scores = head.eval().loss_and_scores(embedding, label)
    assert loss.item() == pytest.approx(loss_oracle(head, name, without, label), abs=1e-7)
    assert torch.equal(scores, head.scores(embedding))


def test_softmax_is_a_linear_layer() -> None:
    torch.manual_seed(0)
    head = Softmax(8, 5)
    head.bias.data.normal_()
    embedding, label = torch.randn(6, 8), torch.randint(0, 5, (6,))
    weight, bias = head.weight.detach().double().numpy(), head.bias.detach().double().numpy()
    expected = embedding.double().numpy() @ weight.T + bias
    np.testing.assert_allclose(head.scores(embedding).detach(), expected, atol=1e-5)
    assert head(embedding, label).item() == pytest.approx(loss_oracle(head, "softmax", expected, label), abs=1e-5)
    head.update(0.4)
    assert head.margin is None


@pytest.mark.parametrize("angle", [0.06, 0.5])
def test_margins_of_angles_are_continuous_and_never_turn(angle: float) -> None:
    cosine = torch.linspace(1, -1, 20001, dtype=torch.float64)
    for moved, ends in (
        (farther(cosine, angle), (math.cos(angle), -2 + math.cos(angle))),
        (nearer(cosine, angle), (2 - math.cos(angle), -math.cos(angle))),
    ):
        assert (moved.diff() < 0).all()
        assert moved.diff().abs().max() < 0.01
        assert (moved[0].item(), moved[-1].item()) == pytest.approx(ends, abs=1e-3)


@pytest.mark.parametrize("m", [1, 2, 4, 5])
def test_psi_falls_without_a_jump(m: int) -> None:
    theta = torch.linspace(0, math.pi, 5001, dtype=torch.float64)
    values = Sphere(2, 1, m=m).psi(theta.cos())
    assert values[0].item() == pytest.approx(1)
    assert values[-1].item() == pytest.approx(1 - 2 * m)
    assert (values.diff() < 1e-12).all()
    assert values.diff().abs().max() < 1.01 * m * math.pi / 5000


@pytest.mark.parametrize(("name", "args"), MARGIN_HEADS)
def test_gradients_equal_finite_differences(name: str, args: dict[str, Any]) -> None:
    head = head_of(name, args, dim=4, classes=5).double()
    head.update(0.2)
    embedding = torch.randn(6, 4).double().requires_grad_()
    label = torch.tensor([0, 1, 2, 3, 4, 4])
    names, tensors = zip(*head.named_parameters(), strict=True)

    def loss(embedding: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        return functional_call(head, dict(zip(names, tensors, strict=True)), (embedding, label))

    assert torch.autograd.gradcheck(loss, (embedding, *tensors))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_what_heads_of_classes_promise(name: str) -> None:
    head = head_of(name)
    assert head.classifies
    assert not head.compares
    names = {"softmax": ["weight", "bias"], "sphereface2": ["weight", "bias"]}
    assert list(head.state_dict()) == names.get(name, ["weight"])
    assert head.weight.shape == (CLASSES * (3 if name == TOPK else 1), DIM)
    if name == "sphereface2":
        assert head.bias.shape == (1, 1)
    loss, scores = head.loss_and_scores(torch.randn(6, DIM), torch.arange(6))
    assert loss.shape == ()
    assert scores is not None
    assert scores.shape == (6, CLASSES)


@pytest.mark.parametrize("name", CLASSIFIERS[1:])
def test_cosines_are_computed_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head = head_of(name)
    calls = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *args: calls.append(1) or linear(*args))
    head.loss_and_scores(torch.randn(6, DIM), torch.arange(6))
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["add_margin", "arc_margin", "sphere"])
def test_update_changes_the_true_class_only(name: str) -> None:
    head: Any = head_of(name)
    head.update(0.0)
    embedding, label = torch.randn(20, DIM), torch.randint(0, CLASSES, (20,))
    before = head.logits(embedding, label)
    head.update(0.4)
    assert head.margin == 0.4
    after = head.logits(embedding, label)
    true = torch.nn.functional.one_hot(label, CLASSES).bool()
    assert (after[true] < before[true]).all()
    assert torch.equal(after[~true], before[~true])


@pytest.mark.parametrize(("name", "args"), [("softmax", {}), *VARIANTS])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("margin", [0.0, 0.2, 0.5])
def test_gradients_are_finite_where_the_cosine_is_one(
    name: str, args: dict[str, Any], sign: float, margin: float
) -> None:
    head = head_of(name, args, dim=4, classes=3)
    head.update(margin)
    head.weight.data = torch.eye(3, 4).repeat_interleave(len(head.weight) // 3, dim=0)
    embedding = (sign * torch.eye(3, 4)).requires_grad_()
    if isinstance(head, Head):
        assert head.cosine(embedding).diagonal().tolist() == [sign] * 3
    for label in (torch.arange(3), (torch.arange(3) + 1) % 3):
        loss = head(embedding, label)
        loss.backward()
        assert loss.isfinite()
        assert embedding.grad is not None
        assert embedding.grad.isfinite().all()
        assert all(tensor.grad.isfinite().all() for tensor in head.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_gradients_near_one_in_float32_stay_moderate(name: str) -> None:
    head = head_of(name, dim=64, classes=3)
    head.update(0.2)
    embedding = (head.weight.detach()[:3] + 1e-4 * torch.randn(3, 64)).requires_grad_()
    head(embedding, torch.arange(3)).backward()
    assert embedding.grad is not None
    assert embedding.grad.isfinite().all()
    assert embedding.grad.abs().max() < 1e4


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_autocast_does_not_lower_the_precision(name: str) -> None:
    head = head_of(name, dim=64, classes=20)
    embedding, label = torch.randn(8, 64), torch.randint(0, 20, (8,))
    full = head.loss_and_scores(embedding, label)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = head.loss_and_scores(embedding, label)
        rounded = embedding @ head.weight.T
        assert head(rounded @ head.weight, label).dtype == torch.float32
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(inside[0], full[0])
    assert torch.equal(inside[1], full[1])  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "args"), [("softmax", {}), *VARIANTS])
def test_a_small_network_learns(name: str, args: dict[str, Any]) -> None:
    head = head_of(name, args, dim=8, classes=6)
    head.update(0.2)
    backbone = torch.nn.Linear(8, 8)
    label = torch.arange(48) % 6
    inputs = 3 * torch.eye(6, 8)[label] + torch.randn(48, 8)
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.1)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss, scores = head.loss_and_scores(backbone(inputs), label)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert scores is not None
    assert (scores.argmax(dim=1) == label).float().mean() > 0.9


@pytest.mark.parametrize("margin", [-0.1, math.pi / 2, float("nan")])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_margins_that_make_no_sense_are_refused(name: str, margin: float) -> None:
    head = head_of(name)
    before = head.margin
    with pytest.raises(ConfigError, match="margin"):
        head.update(margin)
    assert head.margin == before


def test_the_whole_of_psi_is_allowed() -> None:
    head = head_of("sphere")
    head.update(1.0)
    with pytest.raises(ConfigError, match="share of psi"):
        head.update(1.1)


@pytest.mark.parametrize(
    ("name", "args", "fault"),
    [
        ("arc_margin", {"scale": "abc"}, "scale is 'abc'"),
        ("arc_margin", {"scale": True}, "scale is True"),
        ("arc_margin", {"marign": 0.1}, "no argument 'marign'; did you mean 'margin'"),
        ("arc_margin", {"num_classes": 4}, "no argument 'num_classes'"),
        ("softmax", {"scale": 3}, "no argument 'scale'; it takes none"),
        (TOPK, {"K": 0}, "K is 0"),
        (TOPK, {"k_top": 1.5}, "k_top is 1.5"),
        (TOPK, {"mp": 0.3}, "mp is 0.3"),
        ("sphere", {"m": 2.5}, "m is 2.5"),
        ("sphere", {"margin": 4}, "margin: is 4"),
        ("sphereface2", {"margin_type": "B"}, "margin_type is 'B'; choose from A, C"),
        ("sphereface2", {"t": 0.5}, "t is 0.5"),
        ("sphereface2", {"balance": 1}, "balance 1"),
        ("arc_margn", {}, "did you mean 'arc_margin'"),
    ],
)
def test_arguments_that_make_no_head_are_refused(name: str, args: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_head(NamedConfig(name, args), 4, 3)
    assert fault in str(caught.value)


def test_every_head_is_tested_here_or_beside() -> None:
    beside = {"triplet", "prototypical", "angular_prototypical", "ge2e", "centre", "joint"}
    assert set(HEADS) == {*CLASSIFIERS, *beside}


def test_published_names_of_sphereface2_load() -> None:
    tensors = {"weight": torch.randn(3, 4), "bias": torch.full((1, 1), -2.0)}
    head = SphereFace2(4, 3)
    head.load_state_dict(tensors)
    assert head.scores(-head.weight.detach()).diagonal().tolist() == pytest.approx([-34.0] * 3)
