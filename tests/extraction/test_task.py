"""Training of extraction models: batches, losses against closed forms, refusals, resuming, and the published folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from speakerkit.bundle import copy_bundle, read_bundle, write_weights
from speakerkit.data.mixing.lists import ListedMixture, Target, read_mixture_dir, write_mixture_dir
from speakerkit.embedding.embedder import Embedder, load
from speakerkit.errors import BundleError, ConfigError, DataError
from speakerkit.extraction.bundle import read_extractor
from speakerkit.extraction.losses import ScenarioWeights, leakage, scenario_loss
from speakerkit.extraction.mixtures import Mixture
from speakerkit.extraction.model import open_conditioned
from speakerkit.extraction.registry import Extracted
from speakerkit.extraction.task import ExtractionTask, described, speaking
from speakerkit.training.checkpoint import load_checkpoint
from speakerkit.training.experiment import read_experiment, run_experiment
from speakerkit.training.publish import publish
from tests.extraction.voices import RATE, write_voices

BSRNN = {"n_fft": 64, "window": 64, "hop": 16, "bands": [[4, 500]], "features": 6, "hidden": 5, "mask_hidden": [7]}
BSRNN |= {"repeats": 2, "join": [1]}
TCN = {"filters": 16, "features": 12, "hidden": 20, "blocks": 3, "stacks": 2}
FILTER = {
    "n_fft": 64,
    "window": 64,
    "hop": 32,
    "channels": 2,
    "bottleneck": 2,
    "dilations": [1],
    "lstm": 4,
    "hidden": 4,
}
MODELS: dict[str, dict[str, Any]] = {
    "bsrnn": BSRNN,
    "spex_plus": TCN,
    "conv_tasnet": TCN | {"skip": 6, "sources": 2},
    "voicefilter": FILTER,
}
Build = Callable[..., ExtractionTask]


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voices(tmp_path_factory.mktemp("voices"))


@pytest.fixture
def configured(voices: Path, small_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """``configured(model, *overrides)``: the path of an experiment of four steps."""

    def write(model: str, name: str = "exp", **sections: Any) -> Path:
        values: dict[str, Any] = {
            "task": "extraction",
            "exp_dir": str(tmp_path / name),
            "seed": 3,
            "embedder": {"spex_plus": "joint", "conv_tasnet": None}.get(model, str(small_bundle)),
            "data": {
                "train": str(voices),
                "batch_size": 2,
                "valid_mixtures": 3,
                "workers": 0,
                "mixing": {"sample_rate": RATE, "seconds": 0.4, "enrolment_seconds": [0.3, 0.5]},
            },
            "model": {"name": model, "args": MODELS[model]},
            "optim": {"name": "adam", "lr": 1e-3},
            "schedule": {"name": "constant"},
            "trainer": {"steps": 4, "device": "cpu", "log_every": 1, "threads": 1},
        }
        for section, changes in sections.items():
            kept = values.get(section)
            values[section] = {**kept, **changes} if isinstance(kept, dict) else changes
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


@pytest.fixture
def built(configured: Callable[..., Path]) -> Build:
    """``built(model, *overrides)``: its task."""

    def build(model: str, *overrides: str) -> ExtractionTask:
        task = read_experiment(configured(model), overrides).build()
        assert isinstance(task, ExtractionTask)
        return task

    return build


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batch_of(targets: torch.Tensor, **more: Any) -> dict[str, Any]:
    """What a model is trained on, of targets (B, K, S) that all speak."""
    present = torch.ones(targets.shape[:2], dtype=torch.bool)
    return {"mixture": targets.sum(1), "targets": targets, "present": present, "keys": ["m"] * len(targets), **more}


def giving(extracted: Extracted, logits: torch.Tensor | None = None) -> Any:
    return lambda *_: (extracted, logits)


def decibels(estimate: torch.Tensor, target: torch.Tensor) -> np.ndarray:
    """SI-SDR in float64, of the angle between the two."""
    a, b = (x.double().numpy() - x.double().numpy().mean(-1, keepdims=True) for x in (estimate, target))
    with np.errstate(invalid="ignore"):  # of a silent target
        cosine = (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return 10 * np.log10(cosine**2 / (1 - cosine**2))


def test_loss_is_the_mean_si_sdr_and_quiet_targets_ask_for_silence(built: Build) -> None:
    task = built("bsrnn", "loss.absent=0.2")
    targets = noise(2, 2, 800)
    targets[1, 1] = 0
    batch = batch_of(targets)
    batch["present"][1, 1] = False
    estimates = targets + 0.3 * noise(2, 2, 800, seed=1)
    loss, metrics = task.loss(giving(Extracted(estimates)), batch)
    kept = batch["present"].numpy()
    values = decibels(estimates, targets)[kept]
    left = 10 * np.log10(float(estimates[1, 1].square().sum() / batch["mixture"][1].square().sum()) + 1e-3)
    assert float(loss) == pytest.approx((-values.sum() + 0.2 * left) / 4, abs=1e-3)
    # The second mixture is its one voice already: there is nothing to improve.
    before = decibels(batch["mixture"][0].expand(2, -1), targets[0])
    assert float(metrics["si_sdr_improvement"]) == pytest.approx(np.mean(values[:2] - before), abs=1e-3)


def test_what_is_better_than_the_ceiling_gains_nothing(built: Build) -> None:
    targets = noise(1, 2, 800)
    estimates = (targets + torch.tensor([0.5, 1e-3]).view(1, 2, 1) * noise(1, 2, 800, seed=1)).requires_grad_()
    loss, _ = built("bsrnn", "loss.ceiling=20").loss(giving(Extracted(estimates)), batch_of(targets))
    loss.backward()
    assert loss.item() == pytest.approx(-(decibels(estimates.detach(), targets)[0, 0] + 20) / 2, abs=1e-3)
    assert estimates.grad[0, 0].any()
    assert not estimates.grad[0, 1].any()


def test_a_quiet_crop_of_a_noisy_recording_counts_as_absent(built: Build) -> None:
    task, targets = built("bsrnn"), noise(1, 2, 800)
    targets[0, 1] *= 1e-3
    batch = batch_of(targets)
    batch["present"][0, 1] = False
    estimates = noise(1, 2, 800, seed=1)
    loss, _ = task.loss(giving(Extracted(estimates)), batch)
    left = leakage(estimates[0, 1], batch["mixture"][0])
    assert float(loss) == pytest.approx(float(0.1 * left) / 2 - decibels(estimates, targets)[0, 0] / 2, abs=1e-3)


def test_sdr_asks_for_the_level_too(built: Build) -> None:
    targets = noise(1, 2, 800)
    loss, _ = built("bsrnn", "loss.kind=sdr").loss(giving(Extracted(0.5 * targets)), batch_of(targets))
    assert float(loss) == pytest.approx(-10 * np.log10(4), abs=1e-4)


def test_the_shortest_filters_have_the_first_weight(built: Build) -> None:
    targets = noise(1, 2, 800)
    scales = [targets + size * noise(1, 2, 800, seed=1) for size in (0.2, 0.4, 0.8)]
    loss, _ = built("spex_plus").loss(giving(Extracted(scales[0], tuple(scales[1:]))), batch_of(targets))
    wanted = [weight * decibels(scale, targets).mean() for weight, scale in zip((0.8, 0.1, 0.1), scales, strict=True)]
    assert float(loss) == pytest.approx(-sum(wanted), abs=1e-3)


def test_blind_estimates_may_come_in_any_order(built: Build) -> None:
    task, targets = built("conv_tasnet"), noise(2, 2, 800)
    estimates = targets + 0.3 * noise(2, 2, 800, seed=1)
    mixed = torch.stack([estimates[0], estimates[1].flip(0)])
    batch = batch_of(targets)
    batch["targets"] = targets.clone()
    batch["targets"][0, 1], batch["present"][0, 1] = 0, False
    for order in (batch, {**batch, "targets": batch["targets"].flip(1), "present": batch["present"].flip(1)}):
        loss, metrics = task.loss(giving(Extracted(estimates)), order)
        again, same = task.loss(giving(Extracted(mixed)), order)
        assert float(loss) == pytest.approx(float(again), abs=1e-4)
        assert float(metrics["si_sdr_improvement"]) == pytest.approx(float(same["si_sdr_improvement"]), abs=1e-4)
    told, _ = built("bsrnn").loss(giving(Extracted(mixed)), batch)
    assert float(told) > float(loss) + 5


def test_magnitudes_are_those_of_the_model(built: Build) -> None:
    task = built("voicefilter", "loss.kind=magnitude", "loss.power=1")
    net, targets = task.build_model(), noise(1, 2, 800)
    wanted = net.conditioned.extractor.magnitudes(targets)
    for error in (0.0, 0.25):
        loss, _ = task.loss(giving(Extracted(targets, magnitude=wanted + error)), batch_of(targets))
        assert float(loss) == pytest.approx(error**2, abs=1e-6)


def test_scenarios_are_where_the_voices_speak(built: Build) -> None:
    task, targets = built("bsrnn", "loss.kind=scenario"), noise(1, 2, 800)
    own = torch.zeros(1, 2, 800)
    own[0, 0, :500], own[0, 1, 300:] = 1, 1
    targets = targets * own
    estimates = targets + 0.1 * noise(1, 2, 800, seed=1)
    loss, _ = task.loss(giving(Extracted(estimates)), batch_of(targets, speaking=own))
    wanted = scenario_loss(estimates, targets, own, own.flip(1), RATE, ScenarioWeights())
    assert float(loss) == pytest.approx(float(wanted.mean()), abs=1e-4)


def test_speech_of_a_mixture_as_a_mask() -> None:
    silence = np.zeros((2, 6), dtype=np.float32)
    mixture = Mixture("m", silence[0], silence, ("a", "b"), np.ones(2, bool), (), (((0, 2), (4, 5)), ()))
    np.testing.assert_array_equal(speaking(mixture), [[1, 1, 0, 0, 1, 0], [0] * 6])


def test_what_is_separated_before_a_voice_is_heard_has_a_loss_of_its_own(built: Build) -> None:
    task = built("bsrnn", "model.args.separate=2", "loss.separation=0.25")
    targets = noise(2, 2, 800)
    estimates, own = (targets + size * noise(2, 2, 800, seed=1) for size in (0.3, 0.6))
    loss, _ = task.loss(giving(Extracted(estimates, separated=own.flip(1))), batch_of(targets))
    wanted = -decibels(estimates, targets).mean() - 0.25 * decibels(own, targets).mean()
    assert float(loss) == pytest.approx(wanted, abs=1e-3)


def test_training_speakers_are_told_apart_and_others_do_not_count(built: Build) -> None:
    task, targets = built("spex_plus", "loss.speaker=0.5"), noise(1, 2, 800)
    assert task.classes == ["s0", "s1", "s2", "s3"]
    logits = torch.tensor([[[2.0, 0, 0, 0], [0, 9.0, 0, 0]]])
    plain, _ = task.loss(giving(Extracted(targets + noise(1, 2, 800, seed=1))), batch_of(targets))
    batch = batch_of(targets, labels=torch.tensor([[0, -1]]))
    loss, metrics = task.loss(giving(Extracted(targets + noise(1, 2, 800, seed=1)), logits), batch)
    wrong = -np.log(np.exp(2) / (np.exp(2) + 3))
    assert float(metrics["speaker_loss"]) == pytest.approx(wrong, abs=1e-5)
    assert float(loss - plain) == pytest.approx(0.5 * wrong, abs=1e-4)
    none, metrics = task.loss(giving(Extracted(targets), logits), batch_of(targets, labels=torch.tensor([[-1, -1]])))
    assert "speaker_loss" not in metrics
    assert torch.isfinite(none)


@pytest.mark.parametrize("model", MODELS)
def test_each_kind_of_model_learns_from_a_batch(built: Build, model: str) -> None:
    """Gradients reach all that is trained and nothing else, in bfloat16 too."""
    task = built(model, *(["model.args.separate=2"] if model == "bsrnn" else []))
    torch.manual_seed(0)
    net = task.build_model().train()
    batch = next(task.train_batches(0, 1))
    assert batch["mixture"].shape == (2, 3200)
    assert batch["targets"].shape == (2, 2, 3200)
    torch.testing.assert_close(batch["targets"].sum(1), batch["mixture"], atol=1e-6, rtol=0)
    loss, metrics = task.loss(net, batch)
    loss.backward()
    assert ("speaker_loss" in metrics) == (model == "spex_plus")
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == name.startswith("encoder."), name
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, _ = task.loss(net, batch)
    assert float(half) == pytest.approx(float(loss.detach()), abs=1)


def test_enrolments_come_at_the_rate_of_the_embedding_model(built: Build, small_bundle: Path) -> None:
    task = built("bsrnn")
    net, batch = task.build_model().eval(), next(task.train_batches(0, 1))
    assert 0.3 * 16000 <= int(batch["lengths"].min()) <= int(batch["lengths"].max()) <= 0.5 * 16000
    assert batch["enrolments"].shape == (2, 2, int(batch["lengths"].max()))
    embedder = load(small_bundle, "cpu")
    for row, length in zip(batch["enrolments"].flatten(0, 1), batch["lengths"].flatten().tolist(), strict=True):
        np.testing.assert_array_equal(row, np.resize(row[:length].numpy(), len(row)))
        voice = net.voices(row[None], torch.tensor([length]))[0].detach()
        np.testing.assert_allclose(voice, embedder.embed(row.numpy(), rate=16000), atol=1e-3)


def test_the_centre_is_the_mean_embedding_of_training(built: Build, small_bundle: Path) -> None:
    task = built("bsrnn")
    centre = task.build_model().conditioned.centre
    embedder = Embedder(task.bundle, "cpu")
    rows = [embedder.embed(task.train[number].enrolments[0], rate=16000, short="pad") for number in range(8)]
    np.testing.assert_allclose(centre, np.mean(rows, axis=0), atol=1e-5)


def test_a_joint_encoder_hears_no_zeros(built: Build) -> None:
    task = built("spex_plus")
    net, batch = task.build_model().eval(), next(task.train_batches(0, 1))
    filled, lengths = batch["enrolments"].flatten(0, 1), batch["lengths"].flatten()
    assert len(set(lengths.tolist())) > 1
    together = net.voices(filled, lengths)
    for row, length, voice in zip(filled, lengths.tolist(), together, strict=True):
        assert not row[length:].any()
        torch.testing.assert_close(net.voices(row[None, :length], torch.tensor([length]))[0], voice)


def test_an_embedder_is_trained_on_where_that_is_asked_for(built: Build) -> None:
    task = built("bsrnn", "tune=true")
    assert task.classes
    net = task.build_model().train()
    loss, metrics = task.loss(net, next(task.train_batches(0, 1)))
    loss.backward()
    assert "speaker_loss" in metrics
    assert all(parameter.grad is not None for parameter in net.encoder.backbone.parameters())
    frozen = built("bsrnn").build_model().train()
    assert not frozen.encoder.training
    assert not any(parameter.requires_grad for parameter in frozen.encoder.parameters())


@pytest.mark.parametrize(
    ("model", "overrides", "named"),
    [
        ("conv_tasnet", ["embedder=joint"], "embedder"),
        ("voicefilter", ["embedder=null"], "embedder"),
        ("conv_tasnet", ["data.mixing.speakers=[3, 3]"], "data.mixing.speakers"),
        ("conv_tasnet", ["data.mixing.targets=1"], "data.mixing.targets"),
        ("bsrnn", ["loss.kind=magnitude"], "loss.kind"),
        ("bsrnn", ["model.args.separate=3"], "model.args.separate"),
        ("bsrnn", ["model.args.separate=2", "data.mixing.absent_share=0.1"], "model.args.separate"),
        ("bsrnn", ["complete_share=0.5"], "complete_share"),
        ("bsrnn", ["complete_share=0.5", "model.args.exchange=true", "data.mixing.targets=1"], "complete_share"),
        ("bsrnn", ["model.args.voice_size=3"], "model.args.voice_size"),
        ("bsrnn", ["model.args.features=many"], "model.args"),
        ("spex_plus", ["model.args.kernels=[4000]"], "data.mixing.seconds"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_go_together_is_refused(built: Build, model: str, overrides: list[str], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        built(model, *overrides).build_model()
    assert named in str(error.value)


def test_missing_data_are_refused(built: Build) -> None:
    with pytest.raises(DataError):
        built("spex_plus", "data.train=/nowhere")
    with pytest.raises(BundleError):
        built("bsrnn", "embedder=/nowhere")
    with pytest.raises(DataError, match="gender"):
        built("spex_plus", "data.mixing.same_gender_share=0.5")


def test_genders_are_heeded(built: Build, voices: Path) -> None:
    task = built("spex_plus", "data.mixing.same_gender_share=0", f"data.genders={voices}/spk2gender")
    drawn = [task.train[number].speakers for number in range(8)]
    assert all(int(one[1]) % 2 != int(other[1]) % 2 for one, other in drawn)


@pytest.fixture(scope="module")
def prepared(voices: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three mixtures of s0 and s1, listed as published ones are."""
    folder, listed = tmp_path_factory.mktemp("prepared"), []
    for number in range(3):
        targets = (Target("s0", f"{voices}/s0-1.wav", f"{voices}/s0-0.wav"),)
        turns = ((0.0, 1.0, "s0"), (0.0, 1.0, "s1"))
        listed.append(ListedMixture(f"m{number}", f"{voices}/s1-0.wav", 1.0, targets, turns, ("s0-0", "s1-0")))
    write_mixture_dir(folder, listed)
    return folder


def test_prepared_mixtures_are_trained_and_validated_on(built: Build, voices: Path, prepared: Path) -> None:
    task = built("spex_plus", f"data.train={prepared}", f"data.voices={voices}", f"data.valid={prepared}")
    assert task.classes == ["s0"]
    batch = next(task.train_batches(0, 1))
    assert batch["labels"].tolist() == [[0], [0]]
    assert [len(each["keys"]) for each in task.valid_batches()] == [2, 1]
    first, again = (torch.cat([each["mixture"] for each in task.valid_batches()]) for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    unheard = built("spex_plus", f"data.valid={prepared}", "data.valid_mixtures=2")
    (batch,) = unheard.valid_batches()
    assert batch["labels"].tolist() == [[0], [0]]
    assert list(built("spex_plus").valid_batches()) == []


def test_numbers_of_targets_must_fit(built: Build, voices: Path, prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.train: has mixtures of 2 and 3 targets.*data\.mixing\.targets"):
        built("bsrnn", "data.mixing.speakers=[2, 3]")
    assert built("bsrnn", "data.mixing.speakers=[2, 3]", "data.mixing.targets=2").settings.targets == 2
    with pytest.raises(ConfigError, match="are mixtures of 1 targets, conv_tasnet separates 2"):
        built("conv_tasnet", f"data.train={prepared}").build_model()
    with pytest.raises(ConfigError, match=r"model\.args\.separate"):
        built("bsrnn", f"data.train={prepared}", "model.args.separate=2").build_model()
    with pytest.raises(ConfigError, match="complete_share: asks for mixtures of nothing but targets"):
        built("bsrnn", f"data.train={prepared}", "model.args.exchange=true", "complete_share=0.5").build_model()
    first, *others = read_mixture_dir(prepared)
    both = (*first.targets, Target("s1", f"{voices}/s1-1.wav", f"{voices}/s1-0.wav"))
    write_mixture_dir(tmp_path / "uneven", [replace(first, targets=both), *others])
    with pytest.raises(ConfigError, match=r"data\.valid: has mixtures of 1 and 2 targets"):
        built("bsrnn", f"data.valid={tmp_path / 'uneven'}")


def test_validation_is_as_hard_from_the_beginning(built: Build, voices: Path) -> None:
    eased = ["data.mixing.curriculum=1000", "data.mixing.first_sir=[30, 30]", "data.mixing.sir=[0, 0]"]
    task = built("bsrnn", *eased, f"data.valid={voices}")
    assert task.train.settings.first_sir == (30, 30)
    assert task.valid.settings == replace(task.settings, curriculum=0, first_sir=None)


def test_a_start_has_to_know_the_same_embeddings(
    built: Build, configured: Callable[..., Path], tmp_path: Path, small_bundle: Path
) -> None:
    run_experiment(configured("bsrnn", trainer={"steps": 1}))
    start = publish(tmp_path / "exp", tmp_path / "start").path
    assert built("bsrnn", f"init={start}").build_model() is not None
    other = copy_bundle(read_bundle(small_bundle), tmp_path / "other").path
    (other / "model.onnx").unlink(missing_ok=True)
    tensors = read_bundle(other).tensors()
    write_weights(other / "model.safetensors", {name: 1.5 * value for name, value in tensors.items()})
    with pytest.raises(ConfigError, match="init: heard the embeddings of another model"):
        built("bsrnn", f"init={start}", f"embedder={other}").build_model()


def test_the_stream_goes_on_where_it_was_and_ranks_share_it(built: Build) -> None:
    task = built("conv_tasnet")
    stream = task.train_batches(0, 1)
    keys = [next(stream)["keys"] for _ in range(4)]
    halfway = built("conv_tasnet")
    halfway.load_state_dict({"position": 4})
    resumed = halfway.train_batches(0, 1)
    assert [next(resumed)["keys"] for _ in range(2)] == keys[2:]
    assert halfway.state_dict() == {"position": 8} == task.state_dict()
    ranks = [next(built("conv_tasnet").train_batches(rank, 2))["keys"] for rank in range(2)]
    assert sorted([*ranks[0], *ranks[1]]) == sorted([*keys[0], *keys[1]])


def test_a_share_of_mixtures_is_said_to_be_complete(built: Build) -> None:
    task = built("bsrnn", "complete_share=0.4", "model.args.exchange=true", "data.batch_size=20")
    batches = task.train_batches(0, 1)
    drawn = torch.cat([next(batches)["complete"] for _ in range(10)])
    assert set(drawn.tolist()) == {0.0, 1.0}
    assert 0.3 < drawn.mean() < 0.5
    task.load_state_dict({"position": 20})
    again = task.train_batches(0, 1)
    assert torch.equal(next(again)["complete"], drawn[20:40])
    model, batch = task.build_model(), next(again)
    told = model(batch["mixture"], batch["enrolments"], batch["lengths"], batch["complete"])[0].waveform
    whole = batch["complete"] == 1
    assert torch.allclose(told[whole].sum(1), batch["mixture"][whole], atol=1e-5)
    assert not torch.allclose(told[~whole].sum(1), batch["mixture"][~whole], atol=1e-2)
    assert "complete" not in next(iter(task.valid_batches()), {})


def test_a_checkpoint_belongs_to_its_mixtures_model_and_loss(built: Build, prepared: Path, tmp_path: Path) -> None:
    """Mixtures of the same names in another folder, as clean and noisy ones are, are others."""
    other, noisy = tmp_path / "other", tmp_path / "mix_both"
    noisy.mkdir()
    listed = read_mixture_dir(prepared)
    for each in listed:
        shutil.copy(each.wav, noisy)
    write_mixture_dir(other, [replace(each, wav=str(noisy / Path(each.wav).name)) for each in listed])
    prints = [
        built("spex_plus", *overrides).fingerprint()
        for overrides in (
            [],
            ["model.args.hidden=8"],
            ["loss.absent=0.3"],
            ["data.mixing.sir=[0, 1]"],
            ["seed=4"],
            ["data.mixing.speeds=[1.0, 1.1]"],
            ["data.batch_size=3"],
            [f"data.train={prepared}"],
            [f"data.train={other}"],
        )
    ]
    assert all(one != other for number, one in enumerate(prints) for other in prints[:number])
    assert prints[0] == built("spex_plus", "data.workers=2").fingerprint()


@pytest.mark.parametrize("model", ["bsrnn", "conv_tasnet"])
def test_four_steps_resumed_halfway_publish_the_same_model(
    configured: Callable[..., Path], model: str, prepared: Path
) -> None:
    valid = [f"data.valid={prepared}", "data.valid_mixtures=2", "trainer.precision=bf16"]
    if model == "conv_tasnet":  # which a single target does not suit
        valid = []
    for name, stops in (("whole", [None]), ("parts", [2, None])):
        path = configured(model, name)
        for stop in stops:
            run_experiment(path, valid, stop_after=stop)
        found = publish(path.with_suffix(""), path.with_suffix("") / "bundle")
    whole, parts = (read_extractor(path.with_name(name) / "bundle") for name in ("whole", "parts"))
    assert whole.digest() == parts.digest()
    assert found.config == parts.config
    assert parts.config.voices == {"bsrnn": "embedding", "conv_tasnet": "none"}[model]
    assert parts.config.scale_free
    trained = load_checkpoint(path.with_suffix("") / "checkpoints" / "step_00000004.pt")["model"]
    conditioned = open_conditioned(parts)
    for name, tensor in conditioned.state_dict().items():
        torch.testing.assert_close(tensor, trained[f"conditioned.{name}"], rtol=0, atol=0)
    if model == "bsrnn":
        assert parts.voice().digest() == load(path.parent / "parts" / "bundle" / "voice", "cpu").bundle.digest()
    again = configured(model, "again", init=str(parts.path))
    task = read_experiment(again).build()
    started = task.build_model().conditioned.state_dict()
    assert all(torch.equal(started[name], tensor) for name, tensor in conditioned.state_dict().items())


def test_the_folder_says_what_the_model_is_told_by(configured: Callable[..., Path]) -> None:
    told = {model: described(read_experiment(configured(model))) for model in MODELS}
    assert [told[model].voices for model in MODELS] == ["embedding", "joint", "none", "embedding"]
    assert [told[model].voice_size for model in MODELS] == [16, 0, 0, 16]
    levelled = described(read_experiment(configured("voicefilter", loss={"kind": "magnitude"})))
    assert not levelled.scale_free


def test_improvement_without_any_target_is_zero(built: Build) -> None:
    targets = torch.zeros(1, 2, 800)
    batch = {**batch_of(targets), "mixture": noise(1, 800), "present": torch.zeros(1, 2, dtype=torch.bool)}
    loss, metrics = built("bsrnn").loss(giving(Extracted(noise(1, 2, 800))), batch)
    assert float(metrics["si_sdr_improvement"]) == 0
    assert torch.isfinite(loss)
