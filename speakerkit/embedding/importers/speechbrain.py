"""SpeechBrain's ECAPA-TDNN: ``embedding_model.ckpt`` with the ``hyperparams.yaml`` beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speakerkit.config import NamedConfig, parse, read_yaml
from speakerkit.embedding.importers.layouts import Rules, Tensors, Translated, renamed, size_of
from speakerkit.errors import BundleError, ConfigError
from speakerkit.features import FrontEnd

if TYPE_CHECKING:
    from torch import Tensor

ECAPA_MARK = "blocks.0.conv.conv.weight"  # a tensor that this architecture has and no other
HYPERPARAMS = "hyperparams.yaml"
FFT_SIZE = 400
SPLITS = 8  # of a Res2 convolution

NAMES: Rules = (
    (r"blocks\.0\.conv\.conv\.(\w+)", r"layer1.conv.\1"),
    (r"blocks\.0\.norm\.norm\.(\w+)", r"layer1.bn.\1"),
    (r"blocks\.(\d)\.tdnn1\.conv\.conv\.(\w+)", r"layer(\1).0.conv.\2"),
    (r"blocks\.(\d)\.tdnn1\.norm\.norm\.(\w+)", r"layer(\1).0.bn.\2"),
    (r"blocks\.(\d)\.res2net_block\.blocks\.(\d)\.conv\.conv\.(\w+)", r"layer(\1).1.convs.\2.\3"),
    (r"blocks\.(\d)\.res2net_block\.blocks\.(\d)\.norm\.norm\.(\w+)", r"layer(\1).1.bns.\2.\3"),
    (r"blocks\.(\d)\.tdnn2\.conv\.conv\.(\w+)", r"layer(\1).2.conv.\2"),
    (r"blocks\.(\d)\.tdnn2\.norm\.norm\.(\w+)", r"layer(\1).2.bn.\2"),
    (r"blocks\.(\d)\.se_block\.conv(\d)\.conv\.(\w+)", r"layer(\1).3.linear\2.\3"),
    (r"mfa\.conv\.conv\.(\w+)", r"conv.conv.\1"),
    (r"mfa\.norm\.norm\.(\w+)", r"conv.bn.\1"),
    (r"asp\.tdnn\.conv\.conv\.(\w+)", r"pool.linear1.\1"),
    (r"asp\.tdnn\.norm\.norm\.(\w+)", r"pool.bn.\1"),
    (r"asp\.conv\.conv\.(\w+)", r"pool.linear2.\1"),
    (r"asp_bn\.norm\.(\w+)", r"bn.\1"),
    (r"fc\.conv\.(\w+)", r"linear.\1"),
)
FBANK = {  # arguments of SpeechBrain's Fbank to fields of a front-end
    "sample_rate": "sample_rate",
    "n_mels": "num_mels",
    "f_min": "low_freq",
    "f_max": "high_freq",
    "win_length": "frame_length",
    "hop_length": "frame_shift",
}
FIXED: dict[str, dict[str, Any]] = {  # arguments that can have this value only
    "compute_features": {"n_fft": FFT_SIZE, "deltas": False, "context": False, "filter_shape": "triangular"},
    "mean_var_norm": {"norm_type": "sentence", "std_norm": False, "mean_norm": True},
    "embedding_model": {
        "kernel_sizes": [5, 3, 3, 3, 1],
        "dilations": [1, 2, 3, 4, 1],
        "groups": [1, 1, 1, 1, 1],
        "global_context": True,
        "res2net_scale": SPLITS,
    },
}
ASSUMED = {"mean_var_norm": {"norm_type": "global", "std_norm": True}}  # defaults that are not what can be done here
OF_NO_EFFECT = {  # arguments that change nothing at inference, or that the shapes of the tensors tell
    "compute_features": ("left_frames", "right_frames", "requires_grad", "param_change_factor", "param_rand_factor"),
    "mean_var_norm": ("update_until_epoch", "avoid_padding_norm", "epsilon", "device", "length_dim"),
    "embedding_model": (
        "input_size",
        "channels",
        "attention_channels",
        "lin_neurons",
        "se_channels",
        "dropout",
        "device",
    ),
}


def from_speechbrain(tensors: Tensors, path: Path, num_mels: int | None) -> Translated:
    """SpeechBrain's ECAPA-TDNN, with what the ``hyperparams.yaml`` beside it says of the front-end."""
    if ECAPA_MARK not in tensors:
        raise BundleError(path, "is no ECAPA-TDNN of SpeechBrain", "other architectures of SpeechBrain are not read")
    model, mels = ecapa_config(tensors, path)
    settings = path.with_name(HYPERPARAMS)
    stated = _stated_frontend(settings) if settings.is_file() else {}
    fixed = {"filterbank": "speechbrain", "preemphasis": 0.0, "scale": "unit"}
    asked = {"num_mels": num_mels} if num_mels else {}
    try:
        frontend = parse(FrontEnd, {"num_mels": mels, "low_freq": 0.0, **stated, **asked, **fixed}, "frontend")
    except ConfigError as error:
        raise BundleError(settings, f"{error.subject} {error.fault}", "correct compute_features") from None
    if frontend.window_samples != FFT_SIZE:
        fault = f"has windows of {frontend.window_samples} samples under a transform of {FFT_SIZE}"
        raise BundleError(settings, fault, "only windows as long as the transform are read")
    return Translated(model, frontend, ecapa_tensors(tensors), provenance={"toolkit": "SpeechBrain"})


def _stated_frontend(path: Path) -> dict[str, Any]:
    """Fields of the front-end in a ``hyperparams.yaml``, which must describe a model that can be expressed."""
    values = read_yaml(path, own_tags=True)
    sections = {name: _resolved(values, name) for name in FIXED}
    for name, fixed in FIXED.items():
        section = {**ASSUMED.get(name, {}), **sections[name]} if name in values else {}
        for key, value in section.items():
            if key not in (*fixed, *OF_NO_EFFECT[name]) and not (name == "compute_features" and key in FBANK):
                raise BundleError(path, f"has {name}.{key}, which is not known", "remove it if it is unused")
            if fixed.get(key, value) != value:
                raise BundleError(path, f"has {name}.{key} {value!r}", f"only {fixed[key]!r} is read")
    stated = {FBANK[key]: value for key, value in sections["compute_features"].items() if key in FBANK}
    return {key: value for key, value in stated.items() if value is not None}


def _resolved(values: dict[str, Any], name: str) -> dict[str, Any]:
    """A section with its references (``<key>``) to other keys replaced by their values."""
    section = values.get(name)
    if not isinstance(section, dict):
        return {}

    def resolve(value: Any) -> Any:
        reference = re.fullmatch(r"<(\w+)>", value) if isinstance(value, str) else None
        return values.get(reference[1]) if reference else value

    return {str(key): resolve(value) for key, value in section.items()}


def ecapa_config(tensors: Tensors, path: Path) -> tuple[NamedConfig, int]:
    """The backbone, its sizes read off the shapes, and the mels that it is fed."""
    args = {
        "channels": size_of(tensors, ECAPA_MARK, 0, path),
        "embed_dim": size_of(tensors, "fc.conv.weight", 0, path),
        "joined": size_of(tensors, "mfa.conv.conv.weight", 0, path),
        "attention": size_of(tensors, "asp.conv.conv.weight", 1, path),
    }
    return NamedConfig("ECAPA_TDNN_SpeechBrain", args), size_of(tensors, ECAPA_MARK, 1, path)


def ecapa_tensors(tensors: Tensors) -> dict[str, Tensor]:
    """Renamed; the split of a Res2 convolution that passes through is the last of ours and the first of theirs.

    So the channels between a block's first and last convolution are rolled by one split.
    """
    ours = renamed(tensors, NAMES)
    for name, tensor in ours.items():
        axis = 0 if ".se_res2block.0." in name else 1 if name.endswith(".se_res2block.2.conv.weight") else None
        if axis is not None and tensor.ndim > axis:
            ours[name] = tensor.roll(-(tensor.shape[axis] // SPLITS), dims=axis)
    return ours
