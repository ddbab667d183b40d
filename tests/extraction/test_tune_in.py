"""Tune-In: its sizes, cross-attention by a loop, its losses and the speaker table by hand, one mode after the other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from speakerkit.errors import BundleError, ConfigError
from speakerkit.extraction.losses import si_sdr
from speakerkit.extraction.registry import build_extractor
from speakerkit.extraction.tune_in import (
    CrossAttention,
    SpeakerTable,
    TunedIn,
    TuneIn,
    TuneInWeights,
    adopt,
    tune_in_loss,
)
from tests.extraction.test_overfit import harmonic_voices

SMALL: dict[str, Any] = {
    **{"filters": 10, "window": 8, "features": 6, "segment": 12, "reduced": 3, "hidden": 5, "heads": 2},
    **{"generic": 1, "knowledge": 1, "stimuli": 1},
}


def small(mode: str, **args: Any) -> TuneIn:
    torch.manual_seed(0)
    model = build_extractor("tune_in", mode=mode, **SMALL | args)
    assert isinstance(model, TuneIn)
    return model.eval()


def waveforms(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_published_numbers_of_parameters() -> None:
    """2.3, 3.2, and, of what is run when voices are known beforehand, 2.4 M (table 1)."""
    counts = {}
    with torch.device("meta"):
        for mode in ("autopilot", "online", "offline"):
            named = build_extractor("tune_in", mode=mode).named_parameters()
            speaker = ("knowledge.", "embedder.", "cross.") if mode == "offline" else ("none",)
            counts[mode] = sum(each.numel() for name, each in named if not name.startswith(speaker))
    assert {mode: round(count / 1e6, 2) for mode, count in counts.items()} == {
        **{"autopilot": 2.29, "online": 3.18, "offline": 2.36}
    }
    block, linear = 368_264, 128 * 129
    assert counts["offline"] - counts["autopilot"] == 2 * (2 * linear + 256)  # r, h and LN of each block
    assert counts["online"] - counts["offline"] == 2 * block + 2 * linear + 3 * linear


def test_cross_attention_is_its_formula() -> None:
    torch.manual_seed(0)
    cross = CrossAttention(4).double().requires_grad_(False)
    heard, known = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 2, 5, 4, dtype=torch.float64)
    real, asking = torch.arange(5) < torch.tensor([[5], [3]]), torch.arange(3) < torch.tensor([[3], [2]])
    steering, attention, salience = cross(heard, known, real, asking)
    for b, (count, asked) in enumerate([(5, 3), (3, 2)]):
        for j in range(2):
            z, loud = torch.zeros(4).double(), 0.0
            for s in range(asked):
                scores = [float(cross.query(heard[b, s]) @ cross.key(known[b, j, i])) / 2 for i in range(count)]
                total = sum(math.exp(each) for each in scores)
                weights = [math.exp(each) / total for each in scores]
                assert attention[b, j, s].tolist() == pytest.approx(weights + [0.0] * (5 - count))
                z = z + sum(w * cross.value(known[b, j, i]) for i, w in enumerate(weights)) / asked
                loud += math.log(total) / asked
            assert torch.allclose(steering[b, j], z)
            assert salience[b, j].item() == pytest.approx(loud)
    whole = cross(heard, known)
    every = cross(heard, known, torch.ones(2, 2, 5, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool))
    assert all(torch.allclose(one, other) for one, other in zip(whole, every, strict=True))


def test_online_source_takes_its_own_map_and_offline_the_mean() -> None:
    segments = torch.randn(4, 5, 12, 6)
    for mode in ("online", "offline"):
        model = small(mode)
        with torch.no_grad():
            masks = model._own_masks(segments, 2, 21)
            for row in range(2):
                for j in range(2):
                    maps = model.masks.split(segments[2 * row + j][None]).unflatten(-1, (2, 6))
                    own = maps[..., j, :] if mode == "online" else maps.mean(3)
                    assert torch.allclose(masks[row, j], model.masks.gated(own, 21)[0, 0], atol=1e-6)


def test_enrolment_that_is_the_mixture_gives_its_voices() -> None:
    """S_j = S: what an offline model is told of the mixture itself is what an online one finds."""
    online, offline = small("online"), small("offline")
    adopt(offline, online.state_dict())
    mixture = waveforms(2, 301)
    with torch.no_grad():
        tuned = online(mixture)
        known = offline.know(mixture, torch.full((2,), 301))
        told = offline(mixture, known.features, known.real.unsqueeze(1).expand(-1, 2, -1))
        given, salience = offline.candidates(mixture, torch.full((2,), 301))
    assert tuned.attention.shape == (2, 2, *2 * [tuned.attention.shape[-1]])
    assert torch.allclose(told.steering, tuned.steering, atol=1e-5)
    assert torch.allclose(given, tuned.steering, atol=1e-5)
    best = salience.argmax(1)
    assert torch.equal(offline.enrol(mixture, torch.full((2,), 301)), given[torch.arange(2), best])
    assert torch.allclose(offline(mixture, given).waveform, told.waveform, atol=1e-5)


def test_features_of_an_enrolment_of_any_length_are_attended_to() -> None:
    model = small("offline")
    enrolments, lengths = waveforms(2, 500, seed=4), torch.tensor([500, 333])
    mixture = waveforms(2, 222)
    with torch.no_grad():
        known = model.know(enrolments, lengths)
        together = model(mixture, known.features[:, :1], known.real)
        for row, length in enumerate(lengths.tolist()):
            alone = model.know(enrolments[row : row + 1, :length], torch.tensor([length]))
            count = alone.features.shape[2]
            assert known.real[row].sum() == count
            assert torch.allclose(known.features[row, :, :count], alone.features[0], atol=1e-5)
            one = model(mixture[row : row + 1], alone.features[:, :1])
            assert torch.allclose(together.waveform[row], one.waveform[0], atol=1e-6)


def test_noise_is_on_the_steering_vectors_in_training_alone() -> None:
    model = small("online", noise_var=0.25)
    mixture = waveforms(300, 40)
    with torch.no_grad():
        quiet = model(mixture)
        noisy = model.train()(mixture)
    assert quiet.noisy is quiet.steering
    assert torch.allclose(quiet.steering, noisy.steering, atol=1e-5)
    assert (noisy.noisy - noisy.steering).var() == pytest.approx(0.25, rel=0.1)
    dropping = small("online", noise_var=0.0, dropout=0.5).train()
    with torch.no_grad():
        dropped = dropping(mixture)
    assert (dropped.noisy == 0).float().mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("steering", ["film", "ga_film"])
def test_voices_steer_by_film_too(steering: str) -> None:
    """Each voice its own output, whatever the others."""
    model = small("offline", steering=steering)
    voices = torch.randn(1, 2, 6)
    with torch.no_grad():
        both = model(waveforms(1, 300), voices).waveform
        second = model(waveforms(1, 300), voices[:, 1:]).waveform
    assert torch.allclose(both[:, 1:], second, atol=1e-7)
    assert (both[:, 0] - both[:, 1]).abs().max() > 1e-6


def test_modes_follow_each_other() -> None:
    autopilot, online = small("autopilot"), small("online")
    with torch.no_grad():
        for parameter in autopilot.parameters():
            parameter.add_(1.0)
    new = adopt(online, autopilot.state_dict())
    assert {name.split(".")[0] for name in new} == {"knowledge", "embedder", "cross", "stimuli"}
    assert all(torch.equal(online.state_dict()[name], value) for name, value in autopilot.state_dict().items())
    assert adopt(small("offline"), online.state_dict()) == []
    with pytest.raises(BundleError, match=r"does not fit this model at 1 tensors, 'generic\.1\.within"):
        adopt(online, autopilot.state_dict() | {"generic.1.within.lstm.bias_ih_l0": torch.zeros(1)})
    with pytest.raises(BundleError, match="does not fit"):
        adopt(online, {name: value for name, value in autopilot.state_dict().items() if name != "masks.mask.weight"})


def table_of(rows: Tensor, **args: float) -> SpeakerTable:
    table = SpeakerTable(*rows.shape, **args)
    table.embeddings.copy_(rows)
    return table


def test_tune_ince_is_its_formula() -> None:
    torch.manual_seed(0)
    table = table_of(torch.randn(5, 4))
    alpha = math.log1p(math.exp(float(table.scale)))
    assert alpha == pytest.approx(1 / 4)
    z, labels = torch.randn(3, 2, 4), torch.tensor([[0, 1], [4, 2], [3, 0]])
    expected = 0.0
    for b in range(3):
        for j in range(2):
            f = [math.exp(-alpha * float((z[b, j] - row).square().sum())) for row in table.embeddings]
            expected -= math.log(f[labels[b, j]] / sum(f)) / 6
    chances = table(z).log_softmax(-1)
    assert -chances.gather(2, labels.unsqueeze(2)).mean().item() == pytest.approx(expected, rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(table(z), table(z.double()).float(), atol=1e-5)


def test_regulariser_and_its_gradient() -> None:
    """Through E' = (1 - epsilon) E + epsilon Z alone, against a formula and against finite differences."""
    torch.manual_seed(0)
    table = table_of(torch.randn(4, 3), rate=0.1, gamma=3.0)
    rows = table.embeddings.double()
    z = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[0, 2], [3, -1]])

    def formula(vectors: Tensor) -> float:
        total = 0.0
        for vector, label in zip(vectors.flatten(0, 1), labels.flatten().tolist(), strict=True):
            if label >= 0:
                moved = 0.9 * rows[label] + 0.1 * vector
                total -= math.log(min(float((moved - row).abs().sum()) for i, row in enumerate(rows) if i != label))
        return total / (3 * 3)

    value = table.regulariser(z, labels)
    value.backward()
    assert value.item() == pytest.approx(formula(z.detach()), rel=1e-9)
    for place in [(0, 0, 1), (0, 1, 2), (1, 0, 0), (1, 1, 0)]:
        step = torch.zeros_like(z.detach())
        step[place] = 1e-6
        slope = (formula(z.detach() + step) - formula(z.detach() - step)) / 2e-6
        assert z.grad[place].item() == pytest.approx(slope, abs=1e-7)
    assert not any(parameter is table.embeddings for parameter in table.parameters())


def test_two_speakers_in_one_place_are_finite() -> None:
    table = table_of(torch.zeros(3, 4))
    z = torch.zeros(1, 1, 4, requires_grad=True)
    (table.regulariser(z, torch.tensor([[1]])) - table(z)[0, 0, 1]).backward()
    assert z.grad.isfinite().all()
    with pytest.raises(ConfigError, match="speakers: are 1"):
        SpeakerTable(1, 4)


def test_table_moves_towards_the_vectors_on_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(4, 3)
    table = table_of(rows, rate=0.1)
    z, labels = torch.randn(2, 2, 3), torch.tensor([[1, 2], [1, -1]])
    mean = (z[0, 0] + z[1, 0]) / 2
    expected = rows.clone()
    for _ in range(2):
        expected[1] += 0.1 * (mean - expected[1])
    expected[2] += 0.1 * (z[0, 1] - expected[2])
    table.commit(z, labels)
    assert torch.allclose(table.embeddings, expected, atol=1e-6)
    moved = (expected - rows).norm(dim=1)[1:3] / rows.norm(dim=1)[1:3]
    assert table.drift.item() == pytest.approx(moved.mean().item(), rel=1e-5)
    assert set(table.state_dict()) == {"scale", "embeddings", "drift"}

    halves = [table_of(rows, rate=0.1) for _ in range(2)]
    sums: list[Tensor] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: sums.append(tensor.clone()))
    for row, half in enumerate(halves):
        half.commit(z[row], labels[row])
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.copy_(sums[0] + sums[1]))
    for row in range(2):
        half = table_of(rows, rate=0.1)
        half.commit(z[row], labels[row])
        assert torch.allclose(half.embeddings, expected, atol=1e-6)


def tuned_case() -> tuple[TunedIn, Tensor, Tensor, SpeakerTable]:
    """Waveforms are nearest to the targets in one order, voices to the speakers in the other."""
    table = table_of(3 * torch.eye(4))
    labels = torch.tensor([[0, 1], [2, 3]])
    targets = waveforms(2, 2, 400)
    estimates = (targets + 0.3 * waveforms(2, 2, 400, seed=1)).requires_grad_()
    steering = table.embeddings[labels.flip(1)] + 0.1 * torch.randn(2, 2, 4)
    return TunedIn(estimates, steering=steering.requires_grad_(), noisy=steering), targets, labels, table


def test_loss_takes_the_order_of_the_space_that_has_the_say() -> None:
    torch.manual_seed(0)
    tuned, targets, labels, table = tuned_case()
    table.eval()
    rows, (kept, crossed) = torch.arange(2), (torch.tensor([0, 1]), torch.tensor([1, 0]))
    for steered, order in ((False, kept), (True, crossed)):
        loss, parts = tune_in_loss(tuned, targets, labels, table, TuneInWeights(10.0, 0.5, steered))
        separation = -si_sdr(tuned.waveform[:, order], targets).mean()
        chances = table(tuned.noisy[:, order]).log_softmax(-1)
        contrast = -torch.stack([chances[b, j, labels[b, j]] for b in rows for j in range(2)]).mean()
        spread = table.regulariser(tuned.steering[:, order], labels)
        assert parts["separation_loss"].item() == pytest.approx(separation.item(), rel=1e-5)
        assert parts["tune_ince_loss"].item() == pytest.approx(contrast.item(), rel=1e-5)
        assert parts["regulariser"].item() == pytest.approx(spread.item(), rel=1e-5)
        assert loss.item() == pytest.approx((separation + 10 * (contrast + 0.5 * spread)).item(), rel=1e-5)
    unknown = tune_in_loss(tuned, targets, torch.full((2, 2), -1), table, TuneInWeights(steered=True))
    assert unknown[1]["separation_loss"].item() == pytest.approx(-si_sdr(tuned.waveform, targets).mean().item())
    assert unknown[1]["tune_ince_loss"] == unknown[1]["regulariser"] == 0


def test_table_moves_after_the_loss_and_the_gradient_still_goes_back() -> None:
    tuned, targets, labels, table = tuned_case()
    before = table.embeddings.clone()
    loss, _ = tune_in_loss(tuned, targets, labels, table)
    assert not torch.equal(table.embeddings, before)
    loss.backward()
    assert tuned.steering.grad.isfinite().all()
    assert table.scale.grad.isfinite()
    table.eval()
    moved = table.embeddings.clone()
    tune_in_loss(tuned, targets, labels, table)
    assert torch.equal(table.embeddings, moved)
    with pytest.raises(ConfigError, match="mode: is autopilot"):
        tune_in_loss(TunedIn(targets), targets, labels, table)


@pytest.mark.parametrize(
    ("mode", "args", "fault"),
    [
        ("manual", {}, "mode: is 'manual'"),
        ("online", {"across": "rnn"}, "across: is 'rnn', which no voice can steer"),
        ("autopilot", {"segment": 7}, "sizes: are not"),
        ("autopilot", {"sources": 0}, "sizes: are not"),
        ("online", {"dropout": 1.0}, "dropout: is 1"),
    ],
)
def test_what_cannot_be_built_is_refused(mode: str, args: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        small(mode, **args)


def test_what_a_mode_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="voices: are missing"):
        small("offline")(waveforms(1, 100))
    with pytest.raises(ConfigError, match="mode: is autopilot"):
        small("autopilot").know(waveforms(1, 100), torch.tensor([100]))
    with pytest.raises(NotImplementedError):
        small("online").enrol(waveforms(1, 100), torch.tensor([100]))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["autopilot", "online", "offline"])
def test_four_mixtures_are_learnt_by_heart(mode: str) -> None:
    targets = harmonic_voices(8).view(4, 2, -1)
    mixture, labels = targets.sum(1), torch.arange(8).view(4, 2)
    torch.manual_seed(0)
    sizes = {"filters": 64, "window": 16, "features": 32, "segment": 64, "reduced": 8, "hidden": 48, "heads": 4}
    model = TuneIn(mode=mode, **sizes, generic=1, knowledge=1, stimuli=1, noise_var=0.01)
    table = SpeakerTable(8, 32)
    optimizer = torch.optim.Adam([*model.parameters(), *table.parameters()], 5e-3)
    lengths = torch.full((8,), targets.shape[-1])
    for number in range(400):
        if mode == "offline":
            voices = model.enrol(targets.flatten(0, 1), lengths).view(4, 2, -1)
            tuned = model(mixture, voices)
            loss = -si_sdr(tuned.waveform, targets).mean()
        else:
            tuned = model(mixture)
            order = [[0, 1], [1, 0]]
            loss = -torch.stack([si_sdr(tuned.waveform[:, each], targets).mean(1) for each in order]).amax(0).mean()
        if mode == "online":
            loss, parts = tune_in_loss(tuned, targets, labels, table, TuneInWeights(1.0, steered=number > 100))
            quality = -parts["separation_loss"]
        else:
            quality = -loss
        if quality > 15:
            break
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    assert quality > 15
