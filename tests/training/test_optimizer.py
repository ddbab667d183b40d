"""Learning rates by part of the model: which tensors a prefix rules, what freezing stops, and how rates decay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from speakerkit.config import NamedConfig
from speakerkit.embedding.model import backbone_for
from speakerkit.errors import ConfigError, TrainingError
from speakerkit.features import FrontEnd
from speakerkit.training.config import OptimConfig
from speakerkit.training.optimizer import block_names, build_optimizer, part_rates
from tests.training.states import identical, last_state, log_of
from tests.training.toy import ToyTask, toy_trainer


class Named(nn.Module):
    """Names that begin alike, and a batch normalisation in a part that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.layer10 = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2, bias=False)


def rates_of(model: nn.Module, **config: Any) -> dict[str, float]:
    rates = part_rates(model, OptimConfig(**config))
    return {name: rates.of(name) for name, _ in model.named_parameters()}


def test_the_longest_prefix_wins_and_ends_at_a_dot() -> None:
    found = rates_of(Named(), lr_factors={"layer1": 0.5, "layer1.0.bias": 2.0, "head": 10.0})
    assert found == {
        "layer1.0.weight": 0.5,
        "layer1.0.bias": 2.0,
        "layer1.1.weight": 0.5,
        "layer1.1.bias": 0.5,
        "layer10.weight": 1.0,
        "layer10.bias": 1.0,
        "head.weight": 10.0,
    }


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({"lr_factors": {"layer": 0.5}}, "lr_factors: 'layer' .*did you mean 'layer1'"),
        ({"lr_factors": {"layer1.0.weigth": 0.0}}, "did you mean 'layer1.0.weight'"),
        ({"layer_decay": {"layers": 0.5}}, "layer_decay: 'layers' .*did you mean"),
        ({"layer_decay": {"head": 0.5}}, "'head' has no blocks"),
        ({"layer_decay": {"head.weight": 0.5}}, "layer_decay: 'head.weight'"),
    ],
)
def test_a_prefix_without_tensors_is_refused(config: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        part_rates(Named(), OptimConfig(**config))


@pytest.mark.parametrize(
    "config",
    [
        {"lr_factors": {"head": -0.1}},
        {"lr_factors": {"": 0.5}},
        {"layer_decay": {"head": 0.0}},
        {"layer_decay": {"head": 1.5}},
        {"layer_decay": {"": 0.5}},
    ],
)
def test_factors_out_of_range_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"optim\.(lr_factors|layer_decay)"):
        OptimConfig(**config)


def test_freezing_everything_is_refused() -> None:
    model = Named()
    rates = part_rates(model, OptimConfig(lr_factors={"layer1": 0.0, "layer10": 0.0, "head": 0.0}))
    with pytest.raises(ConfigError, match="freezes the whole model"):
        rates.freeze(model)


def test_groups_have_their_factor_and_decay_and_hold_nothing_frozen() -> None:
    model = Named()
    config = OptimConfig(lr_factors={"layer1": 0.0, "head": 10.0}, weight_decay=0.1, decay_norms=False)
    rates = part_rates(model, config)
    rates.freeze(model)
    groups = build_optimizer(model, config, rates).param_groups
    assert [(group["lr_factor"], group["weight_decay"], len(group["params"])) for group in groups] == [
        (1.0, 0.1, 1),
        (1.0, 0.0, 1),
        (10.0, 0.1, 1),
    ]
    assert [parameter.requires_grad for parameter in model.parameters()] == [False] * 4 + [True] * 3


def test_a_part_below_a_frozen_one_still_learns() -> None:
    model = Named()
    rates = part_rates(model, OptimConfig(lr_factors={"layer1": 0.0, "layer1.1": 1.0}))
    rates.freeze(model)
    rates.train_mode(model)
    assert {name: module.training for name, module in model.named_modules()} == {
        "": True,
        "layer1": False,
        "layer1.0": False,
        "layer1.1": True,
        "layer1.2": False,
        "layer10": True,
        "head": True,
    }
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == [
        "layer1.0.weight",
        "layer1.0.bias",
    ]


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("ResNet18", {}, "conv1 bn1 layer1 layer2 layer3 layer4 seg_1"),
        ("ECAPA_TDNN", {"channels": 16, "joined": 24}, "layer1 layer2 layer3 layer4 conv pool bn linear"),
        (
            "CAMPPlus",
            {},
            "head xvector.tdnn xvector.block1 xvector.transit1 xvector.block2 xvector.transit2 xvector.block3 "
            "xvector.transit3 xvector.out_nonlinear xvector.dense",
        ),
    ],
)
def test_blocks_stand_from_input_to_output(name: str, args: dict[str, Any], expected: str) -> None:
    backbone = backbone_for(NamedConfig(name, args), FrontEnd())
    found = block_names(backbone, "backbone")
    assert found == [f"backbone.{block}" for block in expected.split()]
    held = [
        parameter
        for parameter, _ in backbone.named_parameters(prefix="backbone")
        if any(parameter.startswith(f"{block}.") for block in found)
    ]
    assert len(held) == len(list(backbone.parameters()))


def test_layer_decay_is_a_power_of_the_distance_from_the_output() -> None:
    model = nn.ModuleDict({"backbone": nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(4)))})
    model["head"] = nn.Linear(2, 2, bias=False)
    found = rates_of(model, layer_decay={"backbone": 0.5}, lr_factors={"head": 10.0, "backbone.1": 0.0})
    assert list(found.values()) == [0.125, 0.0, 0.5, 1.0, 10.0]


def test_a_step_goes_as_far_as_its_factor_says(tmp_path: Path) -> None:
    """One step of plain SGD: the change of each tensor is its factor times that of a run without factors."""
    plain = {"name": "sgd", "lr": 0.02, "momentum": 0.0, "weight_decay": 0.0}
    moved = []
    for run, factors in (("plain", {}), ("factors", {"0": 0.25, "0.bias": 0.0, "2.bias": 3.0})):
        trainer = toy_trainer(
            tmp_path / run, ToyTask(norm=False), optim=OptimConfig(**plain, lr_factors=factors), steps=1
        )
        before = {name: tensor.clone() for name, tensor in trainer.model.named_parameters()}
        trainer.fit()
        moved.append({name: tensor.detach() - before[name] for name, tensor in trainer.model.named_parameters()})
    for name, factor in (("0.weight", 0.25), ("0.bias", 0.0), ("2.weight", 1.0), ("2.bias", 3.0)):
        torch.testing.assert_close(moved[1][name], factor * moved[0][name])
    assert "learning rate x 3: 1 tensors" in log_of(tmp_path / "factors")
    assert "frozen: 1 tensors" in log_of(tmp_path / "factors")
    assert "frozen" not in log_of(tmp_path / "plain")


@pytest.mark.parametrize("stop", [1, 7])
def test_a_frozen_part_stays_bit_for_bit_also_after_validation_and_resuming(tmp_path: Path, stop: int) -> None:
    optim = OptimConfig("adamw", lr=0.02, lr_factors={"1": 0.0, "0": 0.1})
    start = {name: tensor.clone() for name, tensor in toy_trainer(tmp_path / "x").model.state_dict().items()}
    toy_trainer(tmp_path / "whole", optim=optim, valid_every=4).fit()
    for stop_after in (stop, None):
        trainer = toy_trainer(tmp_path / "parts", ToyTask(), optim=optim, valid_every=4)
        trainer.resume()
        trainer.fit(stop_after)
    assert identical(last_state(tmp_path / "whole"), last_state(tmp_path / "parts"))
    end = last_state(tmp_path / "whole")["model"]
    for name, tensor in start.items():
        assert torch.equal(tensor, end[name]) == name.startswith("1."), name  # running mean, variance and count too


def test_resuming_with_other_factors_is_refused(tmp_path: Path) -> None:
    toy_trainer(tmp_path).fit(stop_after=2)
    with pytest.raises(TrainingError, match=r"another optim .*lr_factors"):
        toy_trainer(tmp_path, optim=OptimConfig(lr=0.02, lr_factors={"0": 0.5})).resume()
