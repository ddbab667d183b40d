"""Self-supervised models: all layers as torchaudio computes them, published files, low-rank updates and adapters.

The layouts were compared with other libraries' models on random tensors, each state of each layer: wav2vec 2.0, HuBERT
and WavLM of transformers 4.52.4 (largest difference 3e-6 where states reach 6), WavLM and wav2vec 2.0 of s3prl 0.4.18,
which are Microsoft's and fairseq's (2e-6). The names below are those of these libraries' state dictionaries.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchaudio.models import Wav2Vec2Model, wav2vec2_model, wavlm_model

from speakerkit.errors import BundleError, ConfigError
from speakerkit.nn.ssl.encoder import SSLEncoder
from speakerkit.nn.ssl.layouts import load_published
from speakerkit.nn.ssl.tuning import Adapter, LowRank, added_parameters, merge_low_rank

FLAVOURS = [(family, large) for family in ("wav2vec2", "wavlm") for large in (False, True)]
DIM, LAYERS = 32, 3


def torchaudio_model(family: str, large: bool, dropout: float = 0.0) -> Wav2Vec2Model:
    """A small model in torchaudio, every tensor of it random."""
    wavlm = {"encoder_num_buckets": 320, "encoder_max_distance": 800} if family == "wavlm" else {}
    model = (wavlm_model if wavlm else wav2vec2_model)(
        extractor_mode="layer_norm" if large else "group_norm",
        extractor_conv_layer_config=[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16, 2, 2)] * 2,
        extractor_conv_bias=large,
        encoder_embed_dim=DIM,
        encoder_projection_dropout=dropout,
        encoder_pos_conv_kernel=16,
        encoder_pos_conv_groups=2,
        encoder_num_layers=LAYERS,
        encoder_num_heads=4,
        **wavlm,
        encoder_attention_dropout=dropout,
        encoder_ff_interm_features=64,
        encoder_ff_interm_dropout=dropout,
        encoder_dropout=dropout,
        encoder_layer_norm_first=large,
        encoder_layer_drop=0.0,
        aux_num_out=None,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * (0.3 if parameter.ndim < 2 else 0.1)
    return model.eval()


def encoder_of(family: str = "wavlm", large: bool = False, **options: float) -> SSLEncoder:
    return SSLEncoder(torchaudio_model(family, large), **options).eval()  # type: ignore[arg-type]


def audio(batch: int = 2, samples: int = 4000) -> Tensor:
    return torch.randn(batch, samples, generator=torch.Generator().manual_seed(5))


def largest_difference(states: list[Tensor], others: list[Tensor]) -> float:
    return max(float((one - other).detach().abs().max()) for one, other in zip(states, others, strict=True))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("family", "large"), FLAVOURS)
def test_states_are_those_of_torchaudio(family: str, large: bool) -> None:
    model = torchaudio_model(family, large)
    encoder = SSLEncoder(copy.deepcopy(model)).eval()
    assert (encoder.dim, encoder.num_states, encoder.receptive_field, encoder.hop) == (DIM, LAYERS + 1, 400, 320)
    with torch.no_grad():
        states = encoder(audio(samples=60000))  # 187 frames: farther apart than WavLM's exact buckets
        layers, _ = model.extract_features(audio(samples=60000))
        final, _ = model(audio(samples=60000))
    assert [state.shape for state in states] == [(2, 187, DIM)] * 4
    for state, expected in zip(states[1:-1], layers[:-1], strict=True):
        assert torch.equal(state, expected)
    assert torch.equal(states[-1], final)
    assert encoder.state_dict().keys() == model.state_dict().keys()


def test_frames_are_counted_from_the_receptive_field() -> None:
    encoder = encoder_of()
    for samples, frames in ((1, 1), (399, 1), (400, 1), (719, 1), (720, 2), (1040, 3), (16000, 49)):
        assert encoder(audio(1, samples))[0].shape[1] == frames
    padded = torch.cat([audio(1, 300), torch.zeros(1, 100)], dim=1)
    assert largest_difference(encoder(audio(1, 300)), encoder(padded)) == 0


def test_dropped_layers_repeat_and_their_parameters_get_gradients_of_zero() -> None:
    encoder = encoder_of(layer_drop=0.99, adapter_dim=2).train()
    states = encoder(audio())
    assert torch.equal(states[1], states[2])
    assert torch.equal(states[2], states[3])
    assert not torch.equal(states[0], states[1])  # the first stays
    states[-1].square().sum().backward()
    transformer = encoder.encoder.transformer
    for parameter in [*transformer.layers[1].parameters(), *encoder.adapters[1].parameters()]:
        assert parameter.grad is not None
        assert not parameter.grad.any()
    assert all(parameter.grad.any() for parameter in transformer.layers[0].feed_forward.parameters())
    kept = encoder.eval()(audio())
    assert not torch.equal(kept[1], kept[2])


def test_layers_dropped_follow_from_the_seed() -> None:
    encoder = encoder_of(layer_drop=0.5).train()

    def dropped(seed: int) -> tuple[bool, ...]:
        torch.manual_seed(seed)
        states = encoder(audio())
        return tuple(torch.equal(one, other) for one, other in pairwise(states[1:]))

    seeds = [dropped(seed) for seed in range(20)]
    assert seeds == [dropped(seed) for seed in range(20)]
    assert len(set(seeds)) == 4  # any of two layers
    with pytest.raises(ConfigError, match=r"layer_drop: is 1\.0"):
        encoder_of(layer_drop=1.0)


def hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchaudio's tensors under transformers' names."""
    named = {}
    for name, tensor in state.items():
        name = name.replace("encoder.transformer.", "encoder.").replace(
            "encoder.feature_projection", "feature_projection"
        )
        name = name.replace("attention.attention.out_proj", "attention.out_proj")
        if "in_proj_" in name:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                named[name.replace("attention.attention.in_proj_", f"attention.{part}_proj.")] = rows.clone()
        else:
            named[name] = tensor
    return {**named, "masked_spec_embed": torch.zeros(DIM)}


def fairseq(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchaudio's tensors under fairseq's names, WavLM's under Microsoft's."""
    norm = r"\1.2.1.\2" if "feature_extractor.conv_layers.1.layer_norm.weight" in state else r"\1.2.\2"
    renamed = {}
    for name, tensor in hugging_face(state).items():
        name = name.replace("feature_projection.layer_norm", "layer_norm")
        name = name.replace("feature_projection.projection", "post_extract_proj")
        name = re.sub(r"(conv_layers\.\d)\.conv\.", r"\1.0.", name)
        name = re.sub(r"(conv_layers\.\d)\.layer_norm\.(\w+)", norm, name)
        name = name.replace("pos_conv_embed.conv.parametrizations.weight.original0", "pos_conv.0.weight_g")
        name = name.replace("pos_conv_embed.conv.parametrizations.weight.original1", "pos_conv.0.weight_v")
        name = name.replace("pos_conv_embed.conv.bias", "pos_conv.0.bias")
        name = name.replace("feed_forward.intermediate_dense", "fc1").replace("feed_forward.output_dense", "fc2")
        name = re.sub(r"(layers\.\d)\.layer_norm", r"\1.self_attn_layer_norm", name)
        name = name.replace("attention.gru_rel_pos_linear", "attention.grep_linear")
        name = name.replace("attention.gru_rel_pos_const", "attention.grep_a")
        name = name.replace("attention.rel_attn_embed", "attention.relative_attention_bias")
        name = re.sub(r"\.attention\.", ".self_attn.", name).replace("masked_spec_embed", "mask_emb")
        renamed[name] = tensor
    return {**renamed, "final_proj.weight": torch.zeros(2, 2), "label_embs_concat": torch.zeros(2)}


def prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {f"wav2vec2.{name}": tensor for name, tensor in hugging_face(state).items()}
    return {**named, "lm_head.weight": torch.zeros(3, DIM), "quantizer.codevectors": torch.zeros(1)}


def old_weight_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    renamed = {}
    for name, tensor in state.items():
        for new, old in names.items():
            name = name.replace(new, old)
        renamed[name] = tensor
    return {**renamed, "aux.weight": torch.zeros(2, DIM)}


LAYOUTS: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], list[str]]] = {
    "torchaudio": (lambda state: state, []),
    "torchaudio, old weight norm": (old_weight_norm, ["aux.weight"]),
    "transformers": (hugging_face, ["masked_spec_embed"]),
    "transformers, with a task": (prefixed, ["lm_head.weight", "masked_spec_embed", "quantizer.codevectors"]),
    "fairseq": (fairseq, ["final_proj.weight", "label_embs_concat", "mask_emb"]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("family", "large"), FLAVOURS)
def test_each_layout_gives_the_same_states(family: str, large: bool, layout: str, tmp_path: Path) -> None:
    source = encoder_of(family, large)
    rename, dropped = LAYOUTS[layout]
    tensors = rename(source.state_dict())
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    wrapped = {"cfg": {"layers": LAYERS}, "model": tensors} if layout == "fairseq" else tensors
    torch.save(wrapped, tmp_path / "model.bin")
    with torch.no_grad():
        expected = source(audio())
    for file in ("model.safetensors", "model.bin"):
        adapted = encoder_of(family, large, lora_rank=2, adapter_dim=2)
        with torch.no_grad():
            assert largest_difference(adapted(audio()), expected) > 0.1
            assert load_published(adapted, tmp_path / file) == dropped
            assert largest_difference(adapted(audio()), expected) < 1e-5


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    def refused(tensors: dict[str, Tensor], encoder: SSLEncoder | None = None) -> str:
        path = tmp_path / "model.pt"
        torch.save(tensors, path)
        encoder = encoder or encoder_of()
        before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
        with pytest.raises(BundleError) as caught:
            load_published(encoder, path)
        assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
        assert caught.value.subject == str(path)
        return caught.value.fault

    good = hugging_face(encoder_of().state_dict())
    without = {name: tensor for name, tensor in good.items() if "layers.2.feed_forward" not in name}
    assert refused(without).startswith("lacks encoder.transformer.layers.2.feed_forward.intermediate_dense.bias, ")
    assert refused({**good, "encoder.extra": torch.zeros(1)}) == "has unknown encoder.transformer.extra"
    other = {**good, "feature_projection.projection.bias": torch.zeros(7)}
    assert refused(other) == "has other shapes of encoder.feature_projection.projection.bias"
    assert refused(good, encoder_of("wav2vec2")).endswith("more")
    assert refused({"weight": torch.zeros(1)}) == "holds no wav2vec 2.0, HuBERT or WavLM"


def test_files_that_run_code_or_are_damaged_are_refused(tmp_path: Path) -> None:
    torch.save({"args": Path("x"), "model": encoder_of().state_dict()}, tmp_path / "old.pt")
    (tmp_path / "damaged.safetensors").write_bytes(b"nothing")
    for name, fault in (
        ("old.pt", "is refused"),
        ("damaged.safetensors", "is damaged"),
        ("none.safetensors", "no such file"),
        ("none.pt", "no such"),
    ):
        with pytest.raises(BundleError, match=fault):
            load_published(encoder_of(), tmp_path / name)


@pytest.mark.parametrize(("family", "large"), FLAVOURS)
def test_tuning_changes_nothing_at_the_start(family: str, large: bool) -> None:
    plain = encoder_of(family, large)
    tuned = SSLEncoder(torchaudio_model(family, large), lora_rank=4, adapter_dim=8).eval()
    state = {re.sub(r"\.parametrizations\.(\w+)\.original$", r".\1", name): name for name in tuned.state_dict()}
    tuned.load_state_dict({state[name]: tensor for name, tensor in plain.state_dict().items()}, strict=False)
    with torch.no_grad():
        assert largest_difference(tuned(audio()), plain(audio())) == 0
    assert len(added_parameters(tuned)) == LAYERS * (2 * 4 + (2 if family == "wavlm" else 4))


@pytest.mark.parametrize("family", ["wav2vec2", "wavlm"])
def test_low_rank_updates_are_of_query_and_value_and_can_be_merged(family: str) -> None:
    tuned = encoder_of(family, lora_rank=3, lora_alpha=6.0)
    attention = tuned.encoder.transformer.layers[1].attention
    before = attention.attention.in_proj_weight.chunk(3) if family == "wavlm" else (attention.q_proj.weight,)
    with torch.no_grad():
        for parameter in added_parameters(tuned):
            parameter.normal_(std=0.3)
        expected = tuned(audio())
    if family == "wavlm":
        update = attention.attention.parametrizations.in_proj_weight[0]
        after = attention.attention.in_proj_weight.chunk(3)
        assert torch.equal(after[1], before[1])
        value = before[2] + 6.0 / 3 * update.lora_b[1] @ update.lora_a[1]
        torch.testing.assert_close(after[2], value)
    else:
        update = attention.q_proj.parametrizations.weight[0]
        after = (attention.q_proj.weight,)
        assert not hasattr(attention.k_proj, "parametrizations")
    torch.testing.assert_close(after[0], before[0] + 6.0 / 3 * update.lora_b[0] @ update.lora_a[0])

    merged = copy.deepcopy(tuned)
    merge_low_rank(merged)
    assert merged.state_dict().keys() == encoder_of(family).state_dict().keys()
    assert not any(isinstance(module, LowRank) for module in merged.modules())
    with torch.no_grad():
        assert largest_difference(merged(audio()), expected) < 1e-5
        assert largest_difference(tuned(audio()), expected) == 0  # the one it was copied from still works


def test_a_rank_must_be_one() -> None:
    for rank in (-1, DIM):
        with pytest.raises(ConfigError, match=f"lora_rank: is {rank}"):
            encoder_of(lora_rank=rank)


def test_an_adapter_is_a_bottleneck_with_a_residual() -> None:
    adapter = Adapter(6, 2)
    x = torch.randn(3, 5, 6)
    assert torch.equal(adapter(x), x)
    nn.init.normal_(adapter.up.weight)
    hidden = x @ adapter.down.weight.T
    expected = x + 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5)) @ adapter.up.weight.T
    torch.testing.assert_close(adapter(x), expected)
