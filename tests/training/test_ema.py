"""The moving average of the weights: its closed form, where it is used, and that nothing disturbs it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speakerkit.bundle import read_bundle
from speakerkit.errors import BundleError, ConfigError, TrainingError
from speakerkit.training.checkpoint import average_states, list_checkpoints, load_checkpoint
from speakerkit.training.config import TrainerConfig
from speakerkit.training.ema import MovingAverage
from speakerkit.training.experiment import run_experiment
from speakerkit.training.publish import publish
from tests.command import speakerkit
from tests.training.states import identical, last_state
from tests.training.toy import ToyTask, toy_trainer

Experiment = Callable[..., Path]


def closed_form(history: list[np.ndarray], decay: float) -> np.ndarray:
    """Mean of what there was after each step, step i of n weighted by decay ** (n - i), in float64."""
    weights = decay ** np.arange(len(history) - 1, -1, -1, dtype=np.float64)
    return np.tensordot(weights / weights.sum(), np.stack(history).astype(np.float64), axes=1)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_it_is_the_weighted_mean_of_the_weights_after_each_step(decay: float) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    average = MovingAverage(model, decay)
    histories: dict[str, list[np.ndarray]] = {name: [] for name in model.state_dict()}
    for _ in range(20):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.copy_(100 * torch.randn(tensor.shape))
        average.update()
        for name, tensor in model.state_dict().items():
            histories[name].append(tensor.clone().numpy())
    kept = average.state_dict()
    assert kept["updates"] == 20
    for name, tensor in kept["model"].items():
        if tensor.is_floating_point():  # running means and variances as well
            np.testing.assert_allclose(tensor.numpy(), closed_form(histories[name], decay), rtol=2e-5, atol=2e-5)
        else:
            assert tensor == histories[name][-1]


def test_the_model_has_its_own_weights_again() -> None:
    model = torch.nn.Linear(2, 2)
    average = MovingAverage(model, 0.9)
    with average.applied():  # before the first step there is nothing to apply
        assert model.weight.any()
    average.update()
    averaged = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.1, 1e-30], [3.0, 7.0]]))
    own = model.weight.detach().clone()
    with suppress(KeyboardInterrupt), average.applied():
        assert torch.equal(model.weight, averaged)
        raise KeyboardInterrupt
    assert torch.equal(model.weight, own)


def test_averages_are_kept_in_float32() -> None:
    model = torch.nn.Linear(2, 2).bfloat16()
    average = MovingAverage(model, 0.999)
    for value in (1.0, 1.0078125):  # neighbours in bfloat16: their mean is none
        with torch.no_grad():
            model.weight.fill_(value)
        average.update()
    assert average.state_dict()["model"]["weight"].dtype == torch.float32
    expected = (0.999 * 1.0 + 1.0078125) / 1.999
    torch.testing.assert_close(average.state_dict()["model"]["weight"], torch.full((2, 2), expected))


def watched_run(folder: Path, decay: float, task: ToyTask, **settings: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
    """A run of the toy task: its first weights after each step that was taken, and its last checkpoint."""
    trainer = toy_trainer(folder, task, ema=decay, **settings)
    history: list[np.ndarray] = []
    step = trainer._train_step

    def watched(model: Any, drawn: Any) -> Any:
        result = step(model, drawn)
        if result[0] is not None:
            history.append(trainer.model[0].weight.detach().clone().numpy())  # type: ignore[index]
        return result

    trainer._train_step = watched  # type: ignore[method-assign]
    trainer.fit()
    return history, last_state(folder)


@pytest.mark.parametrize("poison", [(), (3 * 8 + 2, 7 * 8)])
def test_a_run_averages_the_steps_it_takes_and_no_others(tmp_path: Path, poison: tuple[int, ...]) -> None:
    history, state = watched_run(tmp_path, 0.8, ToyTask(poison=poison))
    assert len(history) == state["ema"]["updates"] == 12 - len(poison)
    kept = state["ema"]["model"]["0.weight"].numpy()
    np.testing.assert_allclose(kept, closed_form(history, 0.8), rtol=1e-5, atol=1e-6)
    assert not np.allclose(kept, history[-1], rtol=1e-4)


@pytest.mark.parametrize("stop", [1, 7, 11])
def test_stop_and_resume_is_bit_identical(tmp_path: Path, stop: int) -> None:
    toy_trainer(tmp_path / "whole", ToyTask(poison=(20,)), ema=0.9, valid_every=4).fit()
    for stop_after in (stop, None):
        trainer = toy_trainer(tmp_path / "parts", ToyTask(poison=(20,)), ema=0.9, valid_every=4)
        trainer.resume()
        trainer.fit(stop_after)
    whole, parts = last_state(tmp_path / "whole"), last_state(tmp_path / "parts")
    assert "ema" in whole
    assert identical(whole, parts)


def test_it_changes_nothing_but_what_is_validated(tmp_path: Path) -> None:
    for name, decay in (("without", 0.0), ("with", 0.9)):
        toy_trainer(tmp_path / name, ToyTask(), ema=decay, valid_every=3).fit()
    without, with_ema = last_state(tmp_path / "without"), last_state(tmp_path / "with")
    assert "ema" not in without
    assert identical(without["model"], with_ema["model"])
    assert identical(without["optimizer"], with_ema["optimizer"])
    trainer = toy_trainer(tmp_path / "judge", ToyTask())
    trainer.model.load_state_dict(with_ema["ema"]["model"])
    assert trainer._validate() == with_ema["metrics"]
    assert with_ema["metrics"] != without["metrics"]


def test_decays_out_of_range_are_refused() -> None:
    for decay in (-0.1, 1.0):
        with pytest.raises(ConfigError, match=r"trainer\.ema"):
            TrainerConfig(ema=decay)


def test_resuming_with_another_decay_is_refused(tmp_path: Path) -> None:
    toy_trainer(tmp_path, ToyTask(), ema=0.9).fit(stop_after=2)
    with pytest.raises(TrainingError, match=r"another trainer .*ema"):
        toy_trainer(tmp_path, ToyTask()).resume()


def test_the_averages_are_published_unless_the_weights_are_asked_for(experiment: Experiment, tmp_path: Path) -> None:
    run_experiment(experiment(trainer={"ema": 0.5, "save_every": 3, "average": 2}, data={"valid_trials": None}))
    paths = list_checkpoints(tmp_path / "exp" / "checkpoints")
    parts = [load_checkpoint(path) for path in paths]
    assert len(parts) == 2
    for flags, kind in (((), "ema"), (("--ema",), "ema"), (("--no-ema",), None)):
        done = speakerkit("average", tmp_path / "exp", "--out", tmp_path / "bundle", *flags)
        assert done.code == 0, done.err
        published = read_bundle(tmp_path / "bundle")
        assert published.config.provenance["ema"] is (kind == "ema")
        name = "layer1.conv.weight"
        states = [part["ema"] if kind else part for part in parts]
        expected = torch.stack([state["model"][f"backbone.{name}"].double() for state in states]).mean(dim=0)
        torch.testing.assert_close(published.tensors()[name], expected.float(), rtol=0, atol=1e-7)
    assert not torch.equal(
        average_states(paths, ema=True)[f"backbone.{name}"], average_states(paths)[f"backbone.{name}"]
    )


def test_asking_for_averages_that_were_not_kept_is_refused(experiment: Experiment, tmp_path: Path) -> None:
    run_experiment(experiment(trainer={"steps": 1}, data={"valid_trials": None}))
    with pytest.raises(BundleError, match="holds no moving average"):
        publish(tmp_path / "exp", tmp_path / "bundle", ema=True)
    assert not (tmp_path / "bundle").exists()
