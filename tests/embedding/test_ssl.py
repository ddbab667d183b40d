"""Speaker embeddings from self-supervised models: heads, what is trained, and a whole experiment on waveforms."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from speakerkit.bundle import read_bundle
from speakerkit.cli.main import main
from speakerkit.config import NamedConfig
from speakerkit.embedding.ecapa_tdnn import ECAPA_TDNN
from speakerkit.embedding.embedder import Embedder, load
from speakerkit.embedding.model import backbone_for
from speakerkit.embedding.registry import build_backbone
from speakerkit.embedding.ssl import SSL_HEADS, LayerSum, SSLBackbone, load_pretrained
from speakerkit.errors import ConfigError
from speakerkit.export.bundle import export_bundle
from speakerkit.export.onnx import LENGTHS, export_onnx
from speakerkit.features import FrontEnd, features
from speakerkit.nn.fbank import front_end_module
from speakerkit.nn.ssl.tuning import added_parameters
from speakerkit.training.experiment import run_experiment
from speakerkit.training.publish import publish
from tests.conftest import speech_like
from tests.embedding.families.ssl import TINY
from tests.training.conftest import corpus, experiment  # noqa: F401
from tests.training.states import last_state, log_of

HEADS: dict[str, dict[str, Any]] = {
    "mhfa": {"heads": 4, "compression": 8},
    "mean": {},
    "first": {},
    "ecapa": {"channels": 16, "joined": 24},
}
WAVEFORM = FrontEnd(kind="waveform")


def tiny(head: str = "mhfa", **args: Any) -> SSLBackbone:
    torch.manual_seed(0)
    backbone = build_backbone("SSL", **{**TINY, "embed_dim": 16, "head": head, "head_args": HEADS[head], **args})
    assert isinstance(backbone, SSLBackbone)
    return backbone


def audio(batch: int = 3, samples: int = 4000) -> Tensor:
    return torch.randn(batch, samples, 1, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("head", HEADS)
def test_each_head_embeds_alone_as_in_a_batch(head: str) -> None:
    backbone = tiny(head).eval()
    with torch.no_grad():
        together = backbone(audio())
        alone = torch.cat([backbone(row[None]) for row in audio()])
        assert backbone.frame_features(audio()).shape == (3, 12, 32)
        assert backbone(audio(2, 100)).isfinite().all()
    assert together.shape == (3, 16)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert set(HEADS) == set(SSL_HEADS)


def test_layers_are_summed_under_softmax_weights() -> None:
    states = [torch.randn(2, 5, 4) for _ in range(3)]
    layers = LayerSum(3)
    torch.testing.assert_close(layers(states), torch.stack(states).mean(0))
    nn.init.normal_(layers.weights)
    shares = layers.weights.exp() / layers.weights.exp().sum()
    torch.testing.assert_close(layers(states), shares[0] * states[0] + shares[1] * states[1] + shares[2] * states[2])


def test_mhfa_is_that_of_the_paper() -> None:
    """Head by head in float64: a linear function of the compressed keys weighs the compressed values of all frames."""
    states = [torch.randn(2, 7, 6, dtype=torch.float64) for _ in range(4)]
    head = SSL_HEADS["mhfa"](6, 4, 5, heads=3, compression=2).double()
    nn.init.normal_(head.layers.weights)
    nn.init.normal_(head.key_layers.weights)
    parts = []
    keys, values = head.key_layers(states), head.layers(states)
    assert not torch.allclose(keys, values)
    for row in range(2):
        key = keys[row] @ head.key.weight.T + head.key.bias  # (frames, compression)
        value = values[row] @ head.value.weight.T + head.value.bias
        pooled = []
        for index in range(3):
            scores = (key @ head.attention.weight[index] + head.attention.bias[index]).exp()
            pooled.append((scores[:, None] * value).sum(0) / scores.sum())
        parts.append(torch.cat(pooled) @ head.linear.weight.T + head.linear.bias)
    torch.testing.assert_close(head(states), torch.stack(parts))


def test_the_other_heads_see_what_their_names_say() -> None:
    backbone = tiny("mean").eval()
    frames = backbone.frame_features(audio())
    torch.testing.assert_close(backbone(audio()), backbone.head.linear(frames.mean(1)))
    backbone = tiny("first").eval()
    torch.testing.assert_close(backbone(audio()), backbone.head.linear(backbone.frame_features(audio())[:, 0]))
    backbone = tiny("ecapa").eval()
    frames = backbone.frame_features(audio())
    assert isinstance(backbone.head.ecapa, ECAPA_TDNN)
    torch.testing.assert_close(backbone(audio()), backbone.head.ecapa(frames - frames.mean(1, keepdim=True)))


@pytest.mark.parametrize("tuning", [{}, {"lora_rank": 2}, {"adapter_dim": 3}, {"lora_rank": 2, "adapter_dim": 3}])
def test_a_frozen_model_trains_its_head_and_what_was_added(tuning: dict[str, int]) -> None:
    backbone = tiny(frozen=True, layer_drop=0.9, **tuning).train()
    assert not any(module.training for module in backbone.ssl.modules())
    assert backbone.head.training
    added = {id(parameter) for parameter in added_parameters(backbone.ssl)}
    with torch.no_grad():
        for parameter in added_parameters(backbone.ssl):
            parameter.normal_(std=0.1)  # behind zeros, A and the way down get no gradient in the first step
    states = backbone.ssl(audio()[..., 0])
    assert [state.requires_grad for state in states] == [False, bool(tuning), bool(tuning)]
    assert torch.equal(backbone(audio()), backbone(audio()))  # nothing is dropped out
    backbone(audio()).square().sum().backward()
    for name, parameter in backbone.named_parameters():
        trained = name.startswith("head.") or id(parameter) in added
        assert parameter.requires_grad == trained, name
        assert (parameter.grad is not None) == trained, name
    joint = tiny(dropout=0.5).train()
    assert all(parameter.requires_grad for parameter in joint.parameters())
    assert not torch.equal(joint(audio()), joint(audio()))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("WAV2VEC2_BASE", 94_370_944),
        ("WAV2VEC2_LARGE", 315_427_968),
        ("WAV2VEC2_LARGE_LV60K", 315_437_696),
        ("HUBERT_BASE", 94_370_944),
        ("HUBERT_LARGE", 315_434_112),
        ("WAVLM_BASE", 94_381_168),
        ("WAVLM_LARGE", 315_452_096),
    ],
)
def test_published_sizes(name: str, parameters: int) -> None:
    """As counted in transformers 4.52.4, its ``masked_spec_embed`` left out."""
    with torch.device("meta"):
        backbone = build_backbone(name)
    assert isinstance(backbone, SSLBackbone)
    assert sum(parameter.numel() for parameter in backbone.ssl.parameters()) == parameters
    assert backbone.min_frames == 720


def test_a_deployed_copy_is_merged_and_equal() -> None:
    backbone = tiny(lora_rank=2, adapter_dim=3).eval()
    with torch.no_grad():
        for parameter in added_parameters(backbone):
            parameter.normal_(std=0.1)
        plain, arguments = backbone.published()
        assert plain.state_dict().keys() == tiny(adapter_dim=3, **arguments).state_dict().keys()
        torch.testing.assert_close(plain(audio()), backbone(audio()), atol=1e-5, rtol=1e-5)
        assert (plain(audio()) - tiny(adapter_dim=3)(audio())).abs().max() > 1e-2


def test_front_end_and_model_must_hear_the_same() -> None:
    assert backbone_for(NamedConfig("SSL", dict(TINY)), WAVEFORM).feat_dim == 1
    with pytest.raises(ConfigError, match=r"frontend\.kind: waveform"):
        backbone_for(NamedConfig("SSL", dict(TINY)), FrontEnd())
    with pytest.raises(ConfigError, match="'waveform', a ECAPA_TDNN hears 'fbank'"):
        backbone_for(NamedConfig("ECAPA_TDNN", {"channels": 8, "joined": 8}), WAVEFORM)
    with pytest.raises(ConfigError, match="'mhfb': is not known; did you mean 'mhfa'"):
        build_backbone("SSL", **TINY, head="mhfb")
    with pytest.raises(ConfigError, match="family: is 'whisper'"):
        build_backbone("SSL", **TINY, family="whisper")
    with pytest.raises(ConfigError, match="layers: is 0"):
        build_backbone("SSL", **{**TINY, "layers": 0})
    with pytest.raises(ConfigError, match="no self-supervised part"):
        load_pretrained(build_backbone("ECAPA_TDNN", channels=8, joined=8), "none.pt")


def test_waveforms_as_features() -> None:
    samples = (0.3 + 0.05 * np.random.default_rng(0).standard_normal(5000)).astype(np.float32)
    plain = features(samples, WAVEFORM)
    assert plain.dtype == np.float32
    np.testing.assert_array_equal(plain, samples[:, None])
    normal = FrontEnd(kind="waveform", wave_norm=True)
    wide = samples.astype(np.float64)
    expected = (wide - wide.mean()) / np.sqrt(wide.var() + 1e-5)
    np.testing.assert_allclose(features(samples, normal)[:, 0], expected, atol=1e-5)
    assert np.isfinite(features(np.zeros(100, np.float32), normal)).all()
    both = torch.from_numpy(np.stack([samples, 0.1 * samples]))
    for frontend in (WAVEFORM, normal):
        with torch.autocast("cpu"):
            batch = front_end_module(frontend)(both)
        assert batch.shape == (2, 5000, 1)
        assert batch.dtype == torch.float32
        for row, wave in zip(batch, both, strict=True):
            np.testing.assert_allclose(row.numpy(), features(wave.numpy(), frontend), atol=1e-5)


def test_lengths_in_samples() -> None:
    """Chunks count 10 ms whatever the front-end; a model's minimum counts rows of features, which are samples here."""
    assert WAVEFORM.chunk_samples(200) == 32000
    assert WAVEFORM.num_frames(32000) == 32000
    assert (WAVEFORM.feature_dim, WAVEFORM.rows_per_shift) == (1, 160)
    assert WAVEFORM.with_minimum(720).min_samples == 4800
    assert FrontEnd(kind="waveform", min_duration=0.01).with_minimum(720).min_samples == 720
    assert FrontEnd(kind="waveform", sample_rate=8000).chunk_samples(100) == 8000
    assert (FrontEnd().feature_dim, FrontEnd().rows_per_shift, FrontEnd().row_samples(200)) == (80, 1, 32240)
    with pytest.raises(ConfigError, match="'wavefrom' is not known"):
        FrontEnd(kind="wavefrom")
    with pytest.raises(ConfigError, match="wave_norm"):
        FrontEnd(wave_norm=True)


@pytest.fixture
def on_waveforms(experiment: Callable[..., Path]) -> Callable[..., Path]:  # noqa: F811
    """``on_waveforms(name, model_args, **sections)``: an experiment of 6 steps on a tiny self-supervised model."""

    def write(name: str, args: dict[str, Any], **sections: Any) -> Path:
        model = {**TINY, "embed_dim": 16, "head_args": HEADS["mhfa"], **args}
        sections.setdefault("frontend", {"num_mels": 80, "dither": 0.0, "kind": "waveform", "wave_norm": True})
        path = experiment(name, **sections)
        values = yaml.safe_load(path.read_text())
        values["model"] = {"name": "SSL", "args": model}
        values["data"]["spec_augment"] = sections.get("data", {}).get("spec_augment", {"prob": 0.0})
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def pretrained_file(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    torch.manual_seed(3)
    state = build_backbone("SSL", **TINY).ssl.state_dict()  # type: ignore[operator, union-attr]
    torch.save({**state, "aux.weight": torch.zeros(1)}, tmp_path / "published.pt")
    return tmp_path / "published.pt", state


def test_low_rank_training_then_joint_training_then_embeddings(
    on_waveforms: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    published, state = pretrained_file(tmp_path)
    lora = {"frozen": True, "lora_rank": 2, "adapter_dim": 4}
    result = run_experiment(on_waveforms("lora", lora, pretrained=str(published)))
    assert set(result.metrics) == {"valid_loss", "valid_accuracy", "valid_eer"}
    log = log_of(tmp_path / "lora")
    assert f"pretrained: {published}, without aux.weight" in log
    trained = tiny(**lora)
    count = sum(parameter.numel() for parameter in trained.parameters() if parameter.requires_grad) + 12 * 16
    assert f"({count / 1e6:.3f} M trained)" in log

    weights = last_state(tmp_path / "lora")["model"]
    same = {name: weights.get(f"backbone.ssl.{name}") for name in state if "in_proj_weight" not in name}
    assert all(tensor is not None and torch.equal(tensor, state[name]) for name, tensor in same.items())
    original = "backbone.ssl.encoder.transformer.layers.1.attention.attention.parametrizations.in_proj_weight."
    assert torch.equal(
        weights[f"{original}original"], state["encoder.transformer.layers.1.attention.attention.in_proj_weight"]
    )
    assert weights[f"{original}0.lora_b"].any()

    bundle = publish(tmp_path / "lora", tmp_path / "bundle")
    assert bundle.config.model.args["lora_rank"] == 0
    assert bundle.config.provenance["pretrained"] == str(published)
    joint = {"frozen": False, "adapter_dim": 4, "layer_drop": 0.3}
    run_experiment(on_waveforms("joint", joint, init=str(tmp_path / "bundle"), trainer={"steps": 2}))
    after = last_state(tmp_path / "joint")["model"]
    name = "ssl.feature_extractor.conv_layers.0.conv.weight"
    assert not torch.equal(after[f"backbone.{name}"], bundle.tensors()[name])

    model = load(tmp_path / "bundle", "cpu")
    speech = speech_like(1.3)
    embedding = model.embed(speech, rate=16000)
    trained.load_state_dict(
        {key.removeprefix("backbone."): tensor for key, tensor in weights.items() if key.startswith("backbone.")}
    )
    with torch.no_grad():
        normal = (speech - speech.mean()) / np.sqrt(speech.var() + 1e-5)
        expected = trained.eval()(torch.from_numpy(normal)[None, :, None])[0].numpy()
    np.testing.assert_allclose(embedding, expected, atol=1e-4 * np.abs(expected).max())


def test_stop_and_resume_is_bit_identical_with_dropout_and_dropped_layers(
    on_waveforms: Callable[..., Path], tmp_path: Path
) -> None:
    args = {"layer_drop": 0.5, "dropout": 0.2, "layers": 3}
    run_experiment(on_waveforms("whole", args, trainer={"steps": 4}))
    parts = on_waveforms("parts", args, trainer={"steps": 4})
    run_experiment(parts, stop_after=2)
    run_experiment(parts)
    whole, resumed = (last_state(tmp_path / name)["model"] for name in ("whole", "parts"))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


@pytest.mark.parametrize(
    ("sections", "fault"),
    [
        ({"data": {"format": "feat"}}, "frontend.kind: is 'waveform'"),
        ({"data": {"spec_augment": {"prob": 0.5}}}, "masks mel bands"),
        ({"pretrained": "nowhere.pt"}, "nowhere.pt: no such"),
        ({"frontend": {"num_mels": 80, "kind": "fbank"}}, "set frontend.kind: waveform"),
    ],
)
def test_what_does_not_go_with_waveforms_exits_2_in_one_line(
    on_waveforms: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    sections: dict[str, Any],
    fault: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["speakerkit", "train", str(on_waveforms("exp", {}, **sections))])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    stderr = capfd.readouterr().err
    assert fault in stderr
    assert stderr.count("\n") == 1, stderr


def test_memory_ahead_is_bounded_in_seconds(
    on_waveforms: Callable[..., Path],
    tmp_path: Path,
    write_wav: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from speakerkit.embedding import embedder as module

    run_experiment(on_waveforms("exp", {"frozen": True}, trainer={"steps": 1}))
    model = Embedder(publish(tmp_path / "exp", tmp_path / "bundle"), "cpu", threads=1)
    monkeypatch.setattr(module, "STRETCH_FRAMES", 150)  # 1.5 s
    stretches: list[int] = []
    original = module._equal_lengths
    monkeypatch.setattr(
        module, "_equal_lengths", lambda items, size: stretches.append(len(items)) or original(items, size)
    )
    entries = [(f"u{number}", str(write_wav(f"{number}.wav", 0.5, seed=number))) for number in range(8)]
    assert all(item.vector is not None for item in model.embed_many(entries))
    assert stretches == [3, 3, 2]


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("family", "norm_first"), [("wavlm", False), ("wav2vec2", True)])
def test_onnx_with_any_length(head: str, family: str, norm_first: bool, tmp_path: Path) -> None:
    backbone = tiny(head, family=family, norm_first=norm_first)
    parity = export_onnx(backbone, tmp_path / "model.onnx", min_frames=backbone.min_frames, metadata={})
    assert {row.frames for row in parity.rows} == {720, *LENGTHS["waveform"]}
    assert parity.relative_diff < 1e-4


@pytest.mark.slow
def test_a_bundle_of_a_self_supervised_model_runs_from_onnx(on_waveforms: Callable[..., Path], tmp_path: Path) -> None:
    run_experiment(on_waveforms("exp", {"lora_rank": 2}, trainer={"steps": 2}))
    publish(tmp_path / "exp", tmp_path / "bundle")
    by_torch = load(tmp_path / "bundle", "cpu").embed(speech_like(1.1), rate=16000)
    export_bundle(tmp_path / "bundle")
    model = load(tmp_path / "bundle", "cpu")
    assert model.device == "cpu (onnxruntime)"
    np.testing.assert_allclose(model.embed(speech_like(1.1), rate=16000), by_torch, atol=1e-4)
    assert read_bundle(tmp_path / "bundle").config.frontend.kind == "waveform"
