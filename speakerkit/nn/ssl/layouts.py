"""Published weights of self-supervised models: torchaudio's files, Hugging Face's, fairseq's and Microsoft's.

All are brought to torchaudio's names, then loaded strictly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from speakerkit.errors import BundleError
from speakerkit.nn.ssl.encoder import SSLEncoder
from speakerkit.nn.ssl.tuning import added_parameters
from speakerkit.weights import published_tensors

Rules = Sequence[tuple[str, str]]

FIRST = "feature_extractor.conv_layers.0."  # what stands before it in a file is a prefix of all its names
NAMED = 4  # tensors that a message names

# What the pre-training needed, and what fine-tuning for another task put on top.
DROPPED = re.compile(
    r"(masked_spec_embed$|mask_emb$|quantizer\.|project_(q|hid)\.|final_proj\.|label_embs_concat$|target_glu\."
    r"|lm_head\.|proj\.|projector\.|classifier\.|layer_weights$|aux\.|mask_generator\.|logit_generator\."
    r"|tdnn\.|objective\.|feature_extractor\.(weight|bias)$)"
)

FAIRSEQ: Rules = (
    (r"^(feature_extractor\.conv_layers\.\d+)\.0\.", r"\1.conv."),
    (r"^(feature_extractor\.conv_layers\.\d+)\.2\.(1\.)?", r"\1.layer_norm."),
    (r"^layer_norm\.", "feature_projection.layer_norm."),
    (r"^post_extract_proj\.", "feature_projection.projection."),
    (r"^encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
    (r"\.self_attn_layer_norm\.", ".layer_norm."),
    (r"\.self_attn\.grep_linear\.", ".attention.gru_rel_pos_linear."),
    (r"\.self_attn\.grep_a$", ".attention.gru_rel_pos_const"),
    (r"\.self_attn\.relative_attention_bias\.", ".attention.rel_attn_embed."),
    (r"\.self_attn\.", ".attention."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."),
    (r"\.fc2\.", ".feed_forward.output_dense."),
)
HUGGING_FACE: Rules = (
    (r"^encoder\.", "encoder.transformer."),
    (r"^feature_projection\.", "encoder.feature_projection."),
)
WEIGHT_NORM: Rules = (  # names that torch gave them before it had parametrisations
    (r"\.pos_conv_embed\.conv\.weight_g$", ".pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"\.pos_conv_embed\.conv\.weight_v$", ".pos_conv_embed.conv.parametrizations.weight.original1"),
)


def load_published(encoder: SSLEncoder, path: str | Path) -> list[str]:
    """Load a file of published weights; low-rank updates and adapters keep their own.

    Args:
        path: ``.pt``, ``.pth``, ``.bin`` or ``.safetensors``. torch files are read without running code, which
            fairseq's own wav2vec 2.0 and HuBERT do not allow.

    Returns:
        names of the tensors that were left out, since only pre-training or another task needs them.

    Raises:
        BundleError: no such file, one that cannot be read, of no known layout, or with tensors that do not fit.
    """
    tensors, dropped = torchaudio_tensors(_read(Path(path)), path)
    own = encoder.state_dict(keep_vars=True)
    added = {id(parameter) for parameter in added_parameters(encoder)}
    names = {_unadapted(name): name for name, tensor in own.items() if id(tensor) not in added}
    missing = sorted(names.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - names.keys())
    misshapen = sorted(name for name in names.keys() & tensors.keys() if own[names[name]].shape != tensors[name].shape)
    for fault, faulty in (("lacks", missing), ("has unknown", unknown), ("has other shapes of", misshapen)):
        if faulty:
            more = f" and {len(faulty) - NAMED} more" if len(faulty) > NAMED else ""
            named = ", ".join(faulty[:NAMED])
            raise BundleError(path, f"{fault} {named}{more}", "it is of another model: check model.name")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[names[name]].copy_(tensor)
    return dropped


def torchaudio_tensors(tensors: Mapping[str, Tensor], source: str | Path) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of any known layout under torchaudio's names, and the names of those that were dropped.

    Raises:
        BundleError: no speech model in any known layout.
    """
    first = next((name for name in tensors if FIRST in name), None)
    if first is None:
        raise BundleError(source, "holds no wav2vec 2.0, HuBERT or WavLM", f"names with {FIRST}* are looked for")
    prefix = first[: first.index(FIRST)]
    bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    dropped = sorted(name for name in bare if DROPPED.match(name))
    kept = {name: tensor for name, tensor in bare.items() if not DROPPED.match(name)}
    if any(name.startswith("post_extract_proj.") for name in kept):
        kept = _renamed(kept, FAIRSEQ)
    if any(name.startswith("feature_projection.") for name in kept):
        kept = _stacked(_renamed(kept, HUGGING_FACE))
    return _renamed(kept, WEIGHT_NORM), dropped


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return published_tensors(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise BundleError(path, "no such file", "check the path")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise BundleError(path, f"is damaged ({error})", "download it again") from None


def _renamed(tensors: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def _stacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """WavLM's query, key and value projections as one tensor, as torchaudio has them; other models as they are."""
    if not any(name.endswith(".attention.rel_attn_embed.weight") for name in tensors):
        return dict(tensors)
    stacked = _renamed(tensors, [(r"\.attention\.out_proj\.", ".attention.attention.out_proj.")])
    for name in [name for name in stacked if ".attention.q_proj." in name]:
        parts = [name.replace("q_proj", f"{part}_proj") for part in "qkv"]
        if all(part in stacked for part in parts):
            together = name.replace("attention.q_proj.", "attention.attention.in_proj_")
            stacked[together] = torch.cat([stacked.pop(part) for part in parts])
    return stacked


def _unadapted(name: str) -> str:
    """The name of a tensor before it got a low-rank update."""
    return re.sub(r"\.parametrizations\.(\w+)\.original$", r".\1", name)
