"""WeSpeaker's model folders, ``config.yaml`` with ``avg_model.pt``, in terms of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from speakerkit.errors import BundleError
from speakerkit.weights import published_tensors

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT = "avg_model.pt"

UNREAD = {  # architectures that are fed something else than filterbanks
    "ReDimNet2": "a mel front-end of its own",
    "whisper_PMFA": "the encoder of Whisper",
    "Whisper_PMFA": "the encoder of Whisper",
    "W2VBert": "W2V-BERT 2.0",
}
DEFAULTS: dict[str, dict[str, int]] = {  # sizes that the constructors of these have, by the start of their names
    "XVEC": {"feat_dim": 40, "embed_dim": 512},
    "CAMPPlus": {"feat_dim": 80, "embed_dim": 512},
    "SimAM_ResNet": {"feat_dim": 80, "embed_dim": 256},
    "ReDimNetB0": {"feat_dim": 60, "embed_dim": 192},
    "ReDimNetB": {"feat_dim": 72, "embed_dim": 192},
}
TRAINING_ONLY = ("dropout", "memory_efficient")  # arguments that change nothing at inference
FBANK = {  # keys of fbank_args, and of the feature_args of old configurations, to fields of a front-end
    "num_mel_bins": "num_mels",
    "feat_dim": "num_mels",
    "frame_length": "frame_length",
    "frame_shift": "frame_shift",
    "dither": "dither",
    "window_type": "window",
    "resample_rate": "sample_rate",
    "low_freq": "low_freq",
    "high_freq": "high_freq",
}
OF_CHUNKS = ("raw_wav", "num_frms", "wav_len", "feat_type")  # feature_args that say nothing of an utterance's features
TRAINED_HERE = ("dataset_args", "feature_args", "dataloader_args", "projection_args", "optimizer", "exp_dir")
IN_3D_SPEAKER = ("CAMPPlus", "ERes2Net")  # architectures that 3D-Speaker publishes too, with a front-end of its own
SIZE_3D_SPEAKER = 192  # of those of its models that WeSpeaker's hub carries


def is_wespeaker(values: dict[str, Any]) -> bool:
    """Whether a ``config.yaml`` is one of WeSpeaker: no ``format``, and ``model`` is a bare name."""
    return "format" not in values and isinstance(values.get("model"), str)


def read_wespeaker(
    path: Path, values: dict[str, Any], *, window: str | None = None, scale: str | None = None
) -> dict[str, Any]:
    """WeSpeaker's configuration as the values of a :class:`speakerkit.bundle.BundleConfig`.

    What it does not say is what WeSpeaker's own code takes: 80 mels, 25 ms every 10 ms at 16 kHz, a hamming window,
    samples in the range of 16-bit integers, the mean over time subtracted. Its hub also carries models that 3D-Speaker
    trained, on a povey window and samples in [-1, 1]; they come without anything about their training.

    Args:
        path: the file that ``values`` are from, for messages.
        window, scale: what the front-end has whatever the configuration says.

    Raises:
        BundleError: an architecture or a front-end that is not read here, or one that the configuration leaves open.
    """
    name = values["model"]
    for start, needed in UNREAD.items():
        if name.startswith(start):
            raise BundleError(path, f"is of a {name}, which is fed {needed}", "give a model on filterbanks")
    args = {key: value for key, value in _mapping(values, "model_args", path).items() if key not in TRAINING_ONLY}
    if "acoustic_dim" in args:
        args["feat_dim"] = args.pop("acoustic_dim")
    args = {**next((sizes for start, sizes in DEFAULTS.items() if name.startswith(start)), {}), **args}
    for size in ("feat_dim", "embed_dim"):
        if size not in args:
            raise BundleError(path, f"says no model_args.{size}", "add it as the model was trained")
    convention = _convention(name, args["embed_dim"], values, path) if window is None or scale is None else {}
    stated = _stated_frontend(values, path)
    given = {key: value for key, value in {"window": window, "scale": scale}.items() if value is not None}
    experiment = {"exp_dir": str(values["exp_dir"])} if values.get("exp_dir") else {}
    return {
        "model": {"name": name, "args": args},
        "frontend": {"num_mels": args["feat_dim"], **convention, **stated, **given},
        "embedding_size": args["embed_dim"],
        "provenance": {"toolkit": "WeSpeaker", **experiment},
    }


def _mapping(values: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = values.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BundleError(path, f"{key} is no mapping", "it is `key: value` lines")
    return {str(name): item for name, item in value.items()}


def _convention(name: str, embed_dim: Any, values: dict[str, Any], path: Path) -> dict[str, str]:
    """Window and scale, which no configuration states: those of whoever trained the model."""
    if any(key in values for key in TRAINED_HERE) or not name.startswith(IN_3D_SPEAKER):
        return {"window": "hamming", "scale": "int16"}
    if embed_dim == SIZE_3D_SPEAKER:
        return {"window": "povey", "scale": "unit"}
    raise BundleError(
        path,
        "does not tell whether WeSpeaker or 3D-Speaker trained the model",
        "use `speakerkit import` with --window hamming --scale int16 (WeSpeaker) or --window povey --scale unit",
    )


def _stated_frontend(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The fields of the front-end that ``dataset_args``, or the ``feature_args`` of old configurations, state."""
    dataset = _mapping(values, "dataset_args", path)
    kind = dataset.get("frontend", "fbank")
    if kind != "fbank":
        raise BundleError(path, f"has the front-end {kind!r}", "only models on filterbanks (fbank) are read")
    stated: dict[str, Any] = {}
    old = {key: value for key, value in _mapping(values, "feature_args", path).items() if key not in OF_CHUNKS}
    new = _mapping(dataset, "fbank_args", path)
    if "resample_rate" in dataset:
        new["resample_rate"] = dataset["resample_rate"]
    for section, arguments in (("feature_args", old), ("fbank_args", new)):
        for key, value in arguments.items():
            if key not in FBANK:
                raise BundleError(path, f"has {key!r} in its {section}, which is not known", "remove it if unused")
            stated[FBANK[key]] = value
    norm = _mapping(dataset, "cmvn_args", path)
    switches = (dataset.get("cmvn", True), norm.get("norm_mean", True), norm.get("norm_var", False))
    if not all(isinstance(switch, bool) for switch in switches):
        raise BundleError(path, "says something else than true or false in cmvn or its cmvn_args", "correct it")
    cmvn, norm_mean, norm_var = switches
    if cmvn and norm_var:
        raise BundleError(path, "normalises the variance of features (norm_var)", "only models on their mean are read")
    return {**stated, "mean_norm": cmvn and norm_mean}


def wespeaker_tensors(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The backbone's tensors in one of WeSpeaker's checkpoints, and the names of those that are none of it.

    Those are the classifier's (``projection``), and the second copy of a pooling that CAM++ stores twice.

    Raises:
        BundleError: no checkpoint of tensors, or two copies of a pooling that differ.
    """
    import torch

    found = published_tensors(path)
    kept = {name: tensor for name, tensor in found.items() if not name.startswith("projection")}
    for name in [name for name in kept if name.startswith("xvector.stats.")]:
        first = "pool." + name.removeprefix("xvector.stats.")
        second = kept.pop(name)
        if not torch.equal(kept.setdefault(first, second), second):
            raise BundleError(path, f"has two poolings that differ ({first}, {name})", "average the checkpoints again")
    return kept, [name for name in found if name not in kept]
