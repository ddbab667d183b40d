"""EEND-EDA: its size, its stacks of frames, and losses against brute force over permutations."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch.nn import functional as F

from speakerkit.diarization.config import EENDSettings
from speakerkit.diarization.eend import EEND, best_order, existence_loss, pair_costs, permutation_free_loss
from speakerkit.features import FrontEnd

FRONTEND = FrontEnd(sample_rate=8000, num_mels=23)
SMALL = EENDSettings(size=32, layers=1, feed_forward=32, dropout=0.0)


def test_size() -> None:
    """By hand, as the papers have it: 345 inputs, 4 layers of 256 and 2048 with norms, two LSTMs, one linear layer."""
    d, f = 256, 2048
    layers = 4 * (4 * (d * d + d) + 2 * d * f + f + d + 4 * d) + 2 * d
    lstms = 2 * (4 * d * (d + d) + 8 * d)
    model = EEND(FRONTEND, EENDSettings())
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == (23 * 15 * d + d) + layers + lstms + d + 1 == 6_402_305


def test_stacks_are_frames_with_their_neighbours() -> None:
    model = EEND(FRONTEND, SMALL).eval()
    sound = 0.1 * torch.randn(1, 8000)
    heard: list[torch.Tensor] = []
    model.input.register_forward_pre_hook(lambda module, inputs: heard.append(inputs[0]))
    model.embed(sound)
    features = model.fbank(sound)[0]  # (98, 23)
    assert heard[0].shape == (1, 10, 345)
    for place in range(10):
        for offset in range(-7, 8):
            row = 10 * place + offset
            expected = features[row] if 0 <= row < len(features) else torch.zeros(23)
            assert torch.equal(heard[0][0, place].reshape(23, 15)[:, offset + 7], expected)
    assert model.frames.period == pytest.approx(0.1)
    assert model.frames.first == pytest.approx(0.0125)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_hungarian_is_brute_force(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    for _ in range(20):
        logits = 2 * torch.randn(30, count, generator=generator, dtype=torch.float64)
        labels = (torch.rand(30, count, generator=generator) < 0.4).double()
        by_trying = {
            order: float(F.binary_cross_entropy_with_logits(logits[:, list(order)], labels))
            for order in permutations(range(count))
        }
        loss, order = permutation_free_loss(logits, labels)
        assert float(loss) == pytest.approx(min(by_trying.values()), abs=1e-12)
        assert by_trying[tuple(order)] == pytest.approx(float(loss), abs=1e-12)
        shuffled = torch.randperm(count, generator=generator)
        again, renamed = permutation_free_loss(logits, labels[:, shuffled])
        assert float(again) == pytest.approx(float(loss), abs=1e-12)
        assert renamed == [order[speaker] for speaker in shuffled.tolist()]


def test_order_gives_each_speaker_the_output_that_is_theirs() -> None:
    labels = torch.eye(3).repeat(4, 1)
    logits = 9 * (2 * labels[:, [2, 0, 1]] - 1)
    assert best_order(pair_costs(logits, labels)) == [1, 2, 0]


def test_existence() -> None:
    logits = torch.tensor([1.5, -0.3, 0.2, 9.0], dtype=torch.float64)
    expected = -(torch.log(torch.sigmoid(logits[:2])).sum() + torch.log(1 - torch.sigmoid(logits[2]))) / 3
    assert float(existence_loss(logits, 2)) == pytest.approx(float(expected), abs=1e-12)
    assert float(existence_loss(logits, 0)) == pytest.approx(float(-torch.log(1 - torch.sigmoid(logits[0]))), abs=1e-12)


def test_attractors_come_one_after_another() -> None:
    """The first are the same however many are asked for, and evaluation draws nothing."""
    model = EEND(FRONTEND, SMALL).eval()
    sound = 0.1 * torch.randn(2, 16000)
    with torch.no_grad():
        few, many, again = model(sound, 2), model(sound, 5), model(sound, 5)
    assert many[0].shape == (2, 20, 5)
    assert many[1].shape == (2, 5)
    assert torch.allclose(few[0], many[0][:, :, :2], atol=1e-5)
    assert torch.allclose(few[1], many[1][:, :2], atol=1e-5)
    assert torch.equal(many[0], again[0])
