"""Metric losses against loops over the papers' formulas, on batches that are not P x K too; joint heads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call

from speakerkit.config import NamedConfig
from speakerkit.embedding.joint import Joint, build_head
from speakerkit.embedding.metric import GE2E, AngularPrototypical, Centre, ScaledCosineLoss
from speakerkit.embedding.objective import Objective
from speakerkit.errors import ConfigError

DIM, CLASSES = 6, 9
EVEN = [0, 0, 0, 4, 4, 4, 2, 2, 2]
UNEVEN = [5, 2, 5, 0, 2, 5, 8, 2, 5, 0, 1]  # interleaved; 8 and 1 stand alone
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("triplet", {}),
    ("triplet", {"soft": True}),
    ("triplet", {"mining": "semi-hard"}),
    ("triplet", {"mining": "semi-hard", "soft": True}),
    ("prototypical", {}),
    ("angular_prototypical", {}),
    ("angular_prototypical", {"w": 0.5, "b": 1.0}),
    ("ge2e", {}),
    ("ge2e", {"kind": "contrast"}),
    ("ge2e", {"kind": "contrast", "w": 2.0, "b": 0.0}),
]


def head_of(name: str, args: dict[str, Any] | None = None) -> Objective:
    torch.manual_seed(0)
    return build_head(NamedConfig(name, args or {}), DIM, CLASSES)


def a_batch(labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings that are partly told apart already."""
    torch.manual_seed(1)
    label = torch.tensor(labels)
    return torch.randn(CLASSES, DIM).double()[label] + torch.randn(len(labels), DIM).double(), label


def cos(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def softmax_loss(logits: list[float], true: int) -> float:
    return math.log(sum(math.exp(z) for z in logits)) - logits[true]


def triplets(x: np.ndarray, labels: list[int], mining: str) -> list[tuple[float, float]]:
    """(d(a, p), d(a, n)) of each triplet."""
    unit = [row / np.linalg.norm(row) for row in x]
    found = []
    for a, own in enumerate(labels):
        positive = [np.linalg.norm(unit[a] - unit[p]) for p, k in enumerate(labels) if k == own and p != a]
        negative = [np.linalg.norm(unit[a] - unit[n]) for n, k in enumerate(labels) if k != own]
        if not positive or not negative:
            continue
        if mining == "hard":
            found.append((max(positive), min(negative)))
        else:
            found += [(far, min((n for n in negative if n > far), default=max(negative))) for far in positive]
    return found


def oracle(name: str, args: dict[str, Any], embedding: torch.Tensor, labels: list[int], margin: float) -> float:
    x = embedding.detach().numpy()
    members = {k: [i for i, other in enumerate(labels) if other == k] for k in sorted(set(labels))}
    members = {k: rows for k, rows in members.items() if len(rows) > 1}
    w, b = args.get("w", 10.0), args.get("b", -5.0)
    if name == "triplet":
        gaps = [far - near for far, near in triplets(x, labels, args.get("mining", "hard"))]
        return mean([math.log1p(math.exp(g)) if args.get("soft") else max(0.0, g + margin) for g in gaps])
    if name in ("prototypical", "angular_prototypical"):
        centres = [x[rows[:-1]].mean(axis=0) for rows in members.values()]
        losses = []
        for place, rows in enumerate(members.values()):
            query = x[rows[-1]]
            if name == "prototypical":
                logits = [-float(((query - centre) ** 2).sum()) for centre in centres]
            else:
                logits = [w * cos(query, centre) + b for centre in centres]
            losses.append(softmax_loss(logits, place))
        return mean(losses)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    losses = []
    for place, (own, rows) in enumerate(members.items()):
        for i in rows:
            logits = []
            for k, others in members.items():
                counted = [j for j in others if k != own or j != i]
                logits.append(w * cos(unit[i], unit[counted].mean(axis=0)) + b)
            if args.get("kind") == "contrast":
                sigmoid = [1 / (1 + math.exp(-z)) for z in logits]
                highest = max((s for k, s in enumerate(sigmoid) if k != place), default=0.0)
                losses.append(1 - sigmoid[place] + highest)
            else:
                losses.append(softmax_loss(logits, place))
    return mean(losses)


@pytest.mark.parametrize(("name", "args"), VARIANTS)
@pytest.mark.parametrize("labels", [EVEN, UNEVEN, [3, 3, 7, 7], [1, 1, 1, 4], [6, 6, 6]])
def test_loss_equals_the_formula(name: str, args: dict[str, Any], labels: list[int]) -> None:
    head = head_of(name, args).double()
    head.update(0.4)
    if isinstance(head, ScaledCosineLoss):
        head.w.data.fill_(math.log(math.expm1(args.get("w", 10.0))))
    embedding, label = a_batch(labels)
    expected = oracle(name, args, embedding, labels, 0.4)
    loss, scores = head.loss_and_scores(embedding, label)
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    assert scores is None
    assert head.eval()(embedding, label).item() == pytest.approx(oracle(name, args, embedding, labels, 0.0), abs=1e-9)


@pytest.mark.parametrize(("name", "args"), VARIANTS)
def test_gradients_equal_finite_differences(name: str, args: dict[str, Any]) -> None:
    head = head_of(name, args).double()
    head.update(0.4)
    embedding, label = a_batch(UNEVEN)
    names = [each for each, _ in head.named_parameters()]

    def loss(embedding: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        return functional_call(head, dict(zip(names, tensors, strict=True)), (embedding, label))

    assert torch.autograd.gradcheck(loss, (embedding.requires_grad_(), *head.parameters()))


@pytest.mark.parametrize(("name", "args"), VARIANTS)
@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [4]])
def test_a_batch_without_a_pair_gives_zero_and_zero_gradients(
    name: str, args: dict[str, Any], labels: list[int]
) -> None:
    head = head_of(name, args)
    embedding = torch.randn(len(labels), DIM, requires_grad=True)
    loss = head(embedding, torch.tensor(labels, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert embedding.grad is not None
    assert not embedding.grad.any()
    for tensor in head.parameters():  # gradients that are missing would stop a training on several ranks
        assert tensor.grad is not None
        assert not tensor.grad.any()


@pytest.mark.parametrize(("name", "args"), VARIANTS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_are_finite_for_equal_and_opposite_embeddings(name: str, args: dict[str, Any], sign: float) -> None:
    head = head_of(name, args)
    rows = torch.eye(2, DIM)
    embedding = torch.stack([rows[0], sign * rows[0], rows[1], sign * rows[1], rows[0]]).requires_grad_()
    loss = head(embedding, torch.tensor([0, 0, 1, 1, 2]))
    loss.backward()
    assert loss.isfinite()
    assert embedding.grad is not None
    assert embedding.grad.isfinite().all()
    assert all(tensor.grad.isfinite().all() for tensor in head.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "args"), [*VARIANTS, ("centre", {})])
def test_autocast_does_not_lower_the_precision(name: str, args: dict[str, Any]) -> None:
    head = head_of(name, args)
    embedding, label = a_batch(UNEVEN)
    embedding = embedding.float()
    full = head(embedding, label)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(embedding, label), full)
        assert head(embedding.bfloat16(), label).dtype == torch.float32


@pytest.mark.parametrize(("name", "args"), [*VARIANTS, ("joint", {"parts": [{"name": "softmax"}, {"name": "ge2e"}]})])
def test_a_small_network_learns(name: str, args: dict[str, Any]) -> None:
    head = head_of(name, args)
    head.update(0.2)
    backbone = torch.nn.Linear(CLASSES, DIM)
    label = torch.arange(CLASSES).repeat_interleave(4)
    inputs = 2 * torch.eye(CLASSES)[label] + 0.5 * torch.randn(len(label), CLASSES)
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.1)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = head(backbone(inputs), label)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_the_factor_of_the_cosines_stays_positive_and_alive() -> None:
    head = AngularPrototypical(DIM, CLASSES, w=3.0)
    cosine = torch.tensor([1.0, 0.0, -1.0])
    assert head.scaled(cosine).tolist() == pytest.approx([-2.0, -5.0, -8.0], abs=1e-5)
    head.w.data.fill_(-4.0)
    scaled = head.scaled(cosine)
    assert scaled[0] > scaled[1] > scaled[2]
    scaled[0].backward()
    assert head.w.grad is not None
    assert head.w.grad > 0


def test_ge2e_is_that_of_a_worked_example() -> None:
    """Two speakers on the axes, each utterance on its own centroid: cosines 1 and 0, so log(1 + e^-w)."""
    embedding = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0], [0.0, 1.0]])
    label = torch.tensor([0, 0, 1, 1])
    assert GE2E(2, 2)(embedding, label).item() == pytest.approx(math.log1p(math.exp(-10)), rel=1e-2)
    contrast = GE2E(2, 2, kind="contrast", w=1.0, b=0.0)(embedding, label).item()
    assert contrast == pytest.approx(1 - 1 / (1 + math.exp(-1)) + 0.5, abs=1e-6)


@pytest.mark.parametrize("normalise", [False, True])
def test_centre_loss_and_how_centres_move(normalise: bool) -> None:
    head = Centre(DIM, CLASSES, weight=0.3, normalise=normalise).double()
    embedding, label = a_batch(UNEVEN)
    embedding.requires_grad_()
    loss = head(embedding, label)
    loss.backward()
    x, centres = embedding.detach().numpy(), head.centres.detach().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True) if normalise else x
    assert loss.item() == pytest.approx(0.15 * np.mean([sum((x[i] - centres[k]) ** 2) for i, k in enumerate(UNEVEN)]))
    assert head.centres.grad is not None
    for k in range(CLASSES):
        rows = [i for i, other in enumerate(UNEVEN) if other == k]
        step = sum((centres[k] - x[i] for i in rows), np.zeros(DIM)) / (1 + len(rows))
        np.testing.assert_allclose(head.centres.grad[k], step, atol=1e-12)
    assert torch.autograd.gradcheck(lambda e: head(e, label), (embedding,))


def test_joint_is_the_weighted_sum_and_only_classifies_what_is_held_out() -> None:
    parts: list[dict[str, Any]] = [
        {"name": "angular_prototypical", "weight": 2},
        {"name": "arc_margin", "args": {"scale": 20}},
        {"name": "triplet", "weight": 0.5},
    ]
    head = head_of("joint", {"parts": parts}).double()
    assert isinstance(head, Joint)
    assert head.classifies
    assert head.compares
    head.update(0.3)
    assert [part.margin for part in head.parts] == [None, 0.3, 0.3]
    assert head.margin == 0.3
    prototypical, arc, triplet = head.parts
    embedding, label = a_batch(UNEVEN)
    loss, scores = head.loss_and_scores(embedding, label)
    total = 2 * prototypical(embedding, label) + arc(embedding, label) + 0.5 * triplet(embedding, label)
    assert loss.item() == pytest.approx(total.item())
    assert scores is not None
    assert torch.equal(scores, arc.scores(embedding))
    assert torch.equal(head.scores(embedding), scores)
    head.eval()
    assert head(embedding, label).item() == pytest.approx(arc(embedding, label).item())


def test_joint_of_metric_losses_has_no_scores() -> None:
    head = head_of("joint", {"parts": [{"name": "triplet"}, {"name": "centre"}]})
    assert (head.classifies, head.compares) == (False, True)
    assert head.loss_and_scores(*a_batch(EVEN))[1] is None


@pytest.mark.parametrize(
    ("name", "args", "fault"),
    [
        ("triplet", {"mining": "easy"}, "mining is 'easy'; choose from hard, semi-hard"),
        ("triplet", {"soft": "no"}, "soft is 'no'; it is true or false"),
        ("centre", {"normalise": "no"}, "normalise is 'no'"),
        ("ge2e", {"kind": "sigmoid"}, "kind is 'sigmoid'"),
        ("ge2e", {"w": 0}, "w is 0"),
        ("angular_prototypical", {"b": "x"}, "b is 'x'"),
        ("centre", {"weight": 0}, "weight is 0"),
        ("prototypical", {"margin": 0.1}, "no argument 'margin'; it takes none"),
        ("joint", {}, "parts names no heads"),
        ("joint", {"parts": "softmax"}, "parts names no heads"),
        ("joint", {"parts": ["softmax"]}, "head.args.parts[0]"),
        ("joint", {"parts": [{"name": "softmax", "weigth": 2}]}, "did you mean 'weight'"),
        ("joint", {"parts": [{"name": "softmax", "weight": 0}]}, "weight is 0"),
        ("joint", {"parts": [{"name": "joint", "args": {"parts": [{"name": "softmax"}]}}]}, "has a joint head in it"),
        ("arc_margin_intertopk_subcenter", {"do_lm": "no"}, "do_lm is 'no'; it is true or false"),
        ("joint", {"parts": [{"name": "tripelt"}]}, "did you mean 'triplet'"),
    ],
)
def test_arguments_that_make_no_loss_are_refused(name: str, args: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_head(NamedConfig(name, args), DIM, CLASSES)
    assert fault in str(caught.value)
