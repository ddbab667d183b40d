"""Fine-tuning: a bundle and somebody's own recordings to a new bundle, with the error rate before and after."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from speakerkit.bundle import GRAPH, Bundle, read_bundle
from speakerkit.config import apply_overrides, parse, read_yaml, to_dict, write_yaml
from speakerkit.data.holdout import Holdout, hold_out, write_holdout
from speakerkit.data.lists import Utterance, read_data_dir, read_utterance_list
from speakerkit.embedding.model import backbone_for, open_backbone
from speakerkit.embedding.registry import Backbone
from speakerkit.embedding.task import EmbeddingTask, trial_eer
from speakerkit.errors import BundleError, ConfigError, DataError
from speakerkit.files import write_json
from speakerkit.nn.device import usable_device
from speakerkit.training.experiment import EmbeddingExperiment, run_experiment
from speakerkit.training.optimizer import part_rates
from speakerkit.training.publish import publish
from speakerkit.verification.trials import Trials, read_trials

logger = logging.getLogger("speakerkit.training")

HELD_OUT_SPEAKERS = 30
WARMUP_SHARE = 0.05  # of the steps
CHECKPOINTS = 10
SETTINGS = "finetune.yaml"  # written first: a folder that holds it is that of a fine-tuning

# For minutes to hours of speech: the whole network moves a little, its new head ten times as fast.
DEFAULTS: dict[str, Any] = {
    "data": {"batch_size": 32, "chunk_frames": 200, "speeds": [1.0], "workers": 1},
    "head": {"name": "arc_margin"},
    "margin": {"initial": 0.2, "final": 0.2},
    "optim": {"name": "adamw", "lr": 1e-4, "weight_decay": 0.01, "decay_norms": False, "lr_factors": {"head": 10.0}},
    "schedule": {"name": "cosine", "final_lr": 1e-6},
    "trainer": {"steps": 500},
}


@dataclass(frozen=True)
class Options:
    """What the command line may say beside the bundle, the data and the folder; ``None`` leaves the configuration's.

    Attributes:
        config: YAML file whose sections replace those of :data:`DEFAULTS`.
        overrides: ``a.b=c``, applied last.
        steps, lr: ``trainer.steps`` and ``optim.lr``.
        freeze: tensor-name prefixes whose learning rate is 0.
        layer_decay: ``optim.layer_decay`` of the backbone.
        trials: what is measured; by default trials over utterances that are held out.
        allow_pipes: run commands that the list names.
    """

    config: Path | None = None
    overrides: Sequence[str] = ()
    steps: int | None = None
    lr: float | None = None
    freeze: Sequence[str] = ()
    layer_decay: float | None = None
    trials: Path | None = None
    allow_pipes: bool = False


@dataclass(frozen=True)
class FineTuning:
    """All that a fine-tuning is made of.

    Attributes:
        bundle: the model that it starts from.
        experiment: the settings of the training.
        cut: what is trained on, and what is held out of it.
        utterances: all there are, by key.
        trials: what is measured before and after; ``None`` where there is nothing to measure by.
    """

    bundle: Bundle
    experiment: EmbeddingExperiment
    cut: Holdout
    utterances: Mapping[str, Utterance]
    trials: Trials | None

    @property
    def exp_dir(self) -> Path:
        """Where everything goes."""
        return Path(self.experiment.exp_dir)

    def write(self) -> Path:
        """Leave the lists and the configuration, whose path is returned."""
        settings = self.exp_dir / SETTINGS
        write_yaml(settings, to_dict(self.experiment))
        write_holdout(self.cut, _lists(self.exp_dir))
        return settings

    def eer(self, backbone: Backbone) -> float | None:
        """Equal error rate of the trials in percent; ``None`` where there are none."""
        if self.trials is None:
            return None
        backbone = backbone.to(usable_device(self.experiment.trainer.device)).eval()
        return 100 * trial_eer(backbone, self.experiment.frontend, self.utterances, self.trials)


@dataclass(frozen=True)
class FineTuned:
    """How a fine-tuning ended.

    Attributes:
        inherited: which tensors were loaded, are new, and were dropped, in lines.
        trials: how many trials were measured.
        eer_before, eer_after: in percent on the same trials; ``None`` where there are none.
        bundle: the new model.
    """

    inherited: list[str]
    trials: int
    eer_before: float | None
    eer_after: float | None
    bundle: Bundle

    def to_lines(self) -> list[str]:
        """Everything, for people."""
        lines = self.inherited
        if self.eer_before is not None and self.eer_after is not None:
            lines = [
                *lines,
                f"EER on {self.trials} trials: {self.eer_before:.3f} % before, {self.eer_after:.3f} % after",
            ]
        return [*lines, f"bundle: {self.bundle.path}"]


def plan_finetuning(init: Path, data: Path, out: Path, options: Options) -> FineTuning:
    """Read the model, the data and the settings, and check that they belong together; nothing is written.

    Args:
        init: bundle to start from.
        data: Kaldi directory, or raw list.
        out: experiment folder.

    Raises:
        BundleError: no bundle, or one without weights.
        DataError: data that contradicts itself or its trials, or of one speaker.
        ConfigError: settings that are wrong, or that the bundle or the data decide.
    """
    bundle = read_bundle(init)
    if not bundle.has_weights:
        raise BundleError(init, "has no weights to train", f"this bundle runs from its {GRAPH} only")
    if out.is_dir() and any(out.iterdir()) and not (out / SETTINGS).is_file():
        raise DataError(out, "holds something else than a fine-tuning", "name a new folder")
    read = read_utterance_list if data.is_file() else read_data_dir
    utterances = {utterance.key: utterance for utterance in read(data, options.allow_pipes)}
    if not utterances:
        raise DataError(data, "names no utterances", "check the list")
    experiment = _experiment(bundle, utterances, out, options)
    seed = experiment.seed
    cut, trials = _given(utterances, options.trials) if options.trials else _held_out(utterances, data, seed)
    if len({utterance.speaker for utterance in cut.train}) < 2:
        raise DataError(data, "leaves fewer than two speakers to train on", "speakers are learned by their differences")
    lists = _lists(out)
    held = replace(
        experiment.data,
        valid=str(lists / "valid.list") if cut.valid else None,
        valid_trials=str(lists / "valid.trials") if cut.trials else None,
    )
    return FineTuning(bundle, replace(experiment, data=held), cut, utterances, trials)


def finetune(plan: FineTuning, nproc: int = 1) -> FineTuned | None:
    """Train, or go on with a training, and publish; ``None`` where a signal has stopped it.

    Args:
        nproc: ranks to start.
    """
    config = plan.write()
    inherited, before = _before(plan)
    if nproc > 1:
        from speakerkit.training.launch import launch

        result = launch(nproc, config, [], "auto", None)
    else:
        result = run_experiment(config)
    if result is None or result.stopped:
        return None
    publish(plan.exp_dir, plan.exp_dir / "bundle")
    made = read_bundle(plan.exp_dir / "bundle")
    after = plan.eer(open_backbone(made))
    if before is not None:
        figures = {"init": str(plan.bundle.path), "eer_before": before, "eer_after": after}
        write_json(plan.exp_dir / "finetune.json", figures)
    return FineTuned(inherited, len(plan.trials or ()), before, after, made)


def _before(plan: FineTuning) -> tuple[list[str], float | None]:
    """What becomes of the bundle's tensors, and its error rate."""
    task = EmbeddingTask(plan.experiment)
    model = task.build_model()
    part_rates(model, plan.experiment.optim).freeze(model)  # says now what the trainer would say after the measurement
    return task.inheritance.to_lines() if task.inheritance else [], plan.eer(model.backbone)


def _experiment(
    bundle: Bundle, utterances: Mapping[str, Utterance], out: Path, options: Options
) -> EmbeddingExperiment:
    """The settings: defaults, then the sections of the configuration file, then options, then overrides."""
    inherited = {"model": to_dict(bundle.config.model), "frontend": to_dict(bundle.config.frontend)}
    decided = {
        "exp_dir": str(out),
        "init": str(bundle.path),
        "data": {
            "train": str(_lists(out) / "train.list"),
            "format": "feat" if next(iter(utterances.values())).feat else "raw",
            "valid": None,
            "valid_trials": None,
            "allow_pipes": options.allow_pipes,
        },
    }
    written = read_yaml(options.config) if options.config else {}
    values = _filled(_filled({**copy.deepcopy(DEFAULTS), **written}, inherited), decided)
    values = apply_overrides(apply_overrides(values, _as_overrides(options, values)), options.overrides)
    experiment = parse(EmbeddingExperiment, values)
    _refuse_changes(experiment, decided)
    _refuse_another_model(experiment, bundle)
    steps = experiment.trainer.steps
    often = max(1, steps // CHECKPOINTS)
    paced = {
        "trainer": {"save_every": often, "valid_every": often},
        "schedule": {"warmup_steps": round(WARMUP_SHARE * steps)},
    }
    return parse(EmbeddingExperiment, _filled(values, paced))


def _filled(values: Any, missing: Mapping[str, Any]) -> Any:
    """``values`` with what they lack, all the way down."""
    if not isinstance(values, dict):
        return values
    return {
        **{name: copy.deepcopy(value) for name, value in missing.items() if name not in values},
        **{
            name: _filled(value, missing[name]) if isinstance(missing.get(name), Mapping) else value
            for name, value in values.items()
        },
    }


def _as_overrides(options: Options, values: Mapping[str, Any]) -> list[str]:
    """The options as if they had been written as overrides."""
    overrides = []
    if options.steps is not None:
        overrides.append(f"trainer.steps={options.steps}")
    if options.lr is not None:
        overrides.append(f"optim.lr={options.lr!r}")
    if options.layer_decay is not None:
        overrides.append(f"optim.layer_decay={{backbone: {options.layer_decay!r}}}")
    if options.freeze:
        optim = values.get("optim")
        factors = optim.get("lr_factors") if isinstance(optim, dict) else None
        frozen = dict.fromkeys(options.freeze, 0.0)
        overrides.append("optim.lr_factors=" + json.dumps({**(factors if isinstance(factors, dict) else {}), **frozen}))
    return overrides


def _refuse_changes(experiment: EmbeddingExperiment, decided: Mapping[str, Any]) -> None:
    """Raise where a setting contradicts what the command line says elsewhere."""
    values = to_dict(experiment)
    for section, content in decided.items():
        for name, value in content.items() if isinstance(content, dict) else [("", content)]:
            found = values[section][name] if name else values[section]
            if found != value:
                key = f"{section}.{name}" if name else section
                raise ConfigError(key, f"is {found!r}", "leave it out: --init, --data, --trials and --out decide it")


def _refuse_another_model(experiment: EmbeddingExperiment, bundle: Bundle) -> None:
    """Raise where settings contradict the bundle; only the dither, which is the training's affair, may differ."""
    theirs, own = to_dict(bundle.config.frontend), to_dict(experiment.frontend)
    for name, value in own.items():
        if name != "dither" and value != theirs[name]:
            fault = f"is {value!r}, in {bundle.path} {theirs[name]!r}"
            raise ConfigError(f"frontend.{name}", fault, "a model hears as it was trained to: leave it out")
    if experiment.model.name != bundle.config.model.name:
        fault = f"is {experiment.model.name}, in {bundle.path} {bundle.config.model.name}"
        raise ConfigError("model.name", fault, "leave it out, or train a new model")
    size = backbone_for(experiment.model, experiment.frontend).embed_dim
    if size != bundle.config.embedding_size:
        fault = f"give embeddings of {size}, {bundle.path} has {bundle.config.embedding_size}"
        raise ConfigError("model.args", fault, "fine-tuning keeps the embedding size")


def _held_out(utterances: Mapping[str, Utterance], source: Path, seed: int) -> tuple[Holdout, Trials | None]:
    """One utterance of some speakers is held out; trials pair them with what is trained on, as `data holdout` does."""
    cut = hold_out(utterances.values(), HELD_OUT_SPEAKERS, seed)
    if len({same for _, _, same in cut.trials}) < 2:
        logger.warning("%s: fewer than two speakers have three utterances, so there are no trials and no EER", source)
        return replace(cut, trials=[]), None
    enrol, test, labels = zip(*cut.trials, strict=True)
    return cut, Trials.from_pairs(enrol, test, labels, f"trials held out of {source}")


def _given(utterances: Mapping[str, Utterance], path: Path) -> tuple[Holdout, Trials]:
    """What the trials name is not trained on. They watch the training where it knows all of their speakers."""
    trials = read_trials(path)
    if trials.labels is None or len(set(trials.labels.tolist())) < 2:
        raise DataError(path, "does not hold both target and nontarget trials", "error rates need both")
    named = {*trials.enrol_ids, *trials.test_ids}
    missing = sorted(named - utterances.keys())
    if missing:
        fault = f"names {len(missing)} utterances that --data does not hold, {missing[0]!r} first"
        raise DataError(path, fault, "trials are over utterances of --data, which are then not trained on")
    train = [utterance for utterance in utterances.values() if utterance.key not in named]
    known = {utterance.speaker for utterance in train}
    valid = [utterances[key] for key in sorted(named) if utterances[key].speaker in known]
    watched = zip(trials.pairs(), trials.labels.tolist(), strict=True) if len(valid) == len(named) else ()
    return Holdout(train, valid, [(enrol, test, same) for (enrol, test), same in watched]), trials


def _lists(out: Path) -> Path:
    return out / "lists"
