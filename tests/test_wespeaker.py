"""WeSpeaker's folders: what their configuration comes to, and which tensors count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speakerkit.bundle import FORMAT, BundleConfig, parse_config, read_bundle
from speakerkit.config import write_yaml
from speakerkit.errors import BundleError
from speakerkit.features import FrontEnd, features
from speakerkit.wespeaker import read_wespeaker
from tests.conftest import speech_like
from tests.graphs import write_mean_graph

torch = pytest.importorskip("torch")

import torchaudio.compliance.kaldi as kaldi  # noqa: E402

from speakerkit.embedding.embedder import load  # noqa: E402
from speakerkit.embedding.model import backbone_for  # noqa: E402
from speakerkit.embedding.registry import Backbone, build_backbone  # noqa: E402

Tensors = dict[str, "torch.Tensor"]
SMALL = {"channels": 32, "joined": 48, "embed_dim": 16, "feat_dim": 80}
TRAINED = {  # as its training writes it down
    "exp_dir": "exp/ECAPA",
    "dataset_args": {
        "resample_rate": 16000,
        "num_frms": 200,
        "fbank_args": {"num_mel_bins": 80, "frame_length": 25, "frame_shift": 10, "dither": 1.0},
    },
    "model": "ECAPA_TDNN",
    "model_args": SMALL,
    "model_init": None,
    "projection_args": {"project_type": "arc_margin"},
}


def understood(values: dict[str, Any], **wishes: str) -> BundleConfig:
    return parse_config(
        {**read_wespeaker(Path("config.yaml"), values, **wishes), "format": FORMAT}, Path("config.yaml")
    )


def test_configuration_of_a_training() -> None:
    config = understood(TRAINED)
    assert (config.model.name, config.model.args) == ("ECAPA_TDNN", SMALL)
    assert config.frontend == FrontEnd(window="hamming", scale="int16", dither=1.0)
    assert config.embedding_size == 16
    assert config.provenance == {"toolkit": "WeSpeaker", "exp_dir": "exp/ECAPA"}


@pytest.mark.parametrize(
    ("changed", "frontend"),
    [
        ({"fbank_args": {"num_mel_bins": 72, "frame_shift": 12.5}}, FrontEnd(num_mels=72, frame_shift=12.5)),
        ({"resample_rate": 8000, "fbank_args": {}}, FrontEnd(sample_rate=8000)),
        ({"fbank_args": {"window_type": "povey", "high_freq": -400}}, FrontEnd(window="povey", high_freq=-400.0)),
        ({"cmvn": False}, FrontEnd(mean_norm=False)),
        ({"cmvn_args": {"norm_mean": True, "norm_var": False}}, FrontEnd()),
        ({"frontend": "fbank"}, FrontEnd()),
        ({}, FrontEnd()),
    ],
    ids=str,
)
def test_front_end(changed: dict[str, Any], frontend: FrontEnd) -> None:
    assert understood({**TRAINED, "dataset_args": changed}).frontend == frontend


def test_front_end_of_old_configurations() -> None:
    values = {**TRAINED, "feature_args": {"raw_wav": True, "num_frms": 200, "feat_dim": 72}, "dataset_args": {}}
    assert understood(values).frontend == FrontEnd(num_mels=72)


@pytest.mark.parametrize(
    ("model", "args", "expected"),
    [
        ("XVEC", {}, {"feat_dim": 40, "embed_dim": 512}),
        ("CAMPPlus", {"embed_dim": 256, "memory_efficient": True}, {"feat_dim": 80, "embed_dim": 256}),
        ("SimAM_ResNet34_ASP", {"acoustic_dim": 64, "dropout": 0.1}, {"feat_dim": 64, "embed_dim": 256}),
        ("ReDimNetB0", {}, {"feat_dim": 60, "embed_dim": 192}),
        ("ReDimNetB2", {}, {"feat_dim": 72, "embed_dim": 192}),
    ],
)
def test_sizes_where_the_configuration_is_silent(model: str, args: dict[str, Any], expected: dict[str, Any]) -> None:
    config = understood({"model": model, "model_args": args, "exp_dir": "x"})
    assert config.model.args == expected
    assert config.frontend.num_mels == expected["feat_dim"]
    with torch.device("meta"):
        backbone = backbone_for(config.model, config.frontend)
    assert (backbone.feat_dim, backbone.embed_dim) == (expected["feat_dim"], expected["embed_dim"])


@pytest.mark.parametrize("model", ["CAMPPlus", "ERes2Net34_Large"])
def test_models_of_3d_speaker_are_told_by_what_they_lack(model: str) -> None:
    bare = {"model": model, "model_args": {"feat_dim": 80, "embed_dim": 192}}
    assert (understood(bare).frontend.window, understood(bare).frontend.scale) == ("povey", "unit")
    trained = understood({**bare, "exp_dir": "exp/x"}).frontend
    assert (trained.window, trained.scale) == ("hamming", "int16")
    doubtful = {"model": model, "model_args": {"feat_dim": 80, "embed_dim": 512}}
    with pytest.raises(BundleError, match=r"--window hamming --scale int16.* --window povey --scale unit"):
        understood(doubtful)
    assert understood(doubtful, window="povey", scale="unit").frontend == FrontEnd(window="povey", scale="unit")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "ReDimNet2B6"}, "ReDimNet2B6, which is fed a mel front-end of its own"),
        ({"model": "whisper_PMFA_large_v2"}, "Whisper"),
        ({"model": "W2VBert_Adapter_MFA"}, "W2V-BERT"),
        ({"model": "ResNet34", "model_args": {"feat_dim": 80}}, "no model_args.embed_dim"),
        ({"model": "ResNet34", "model_args": {"embed_dim": 80}}, "no model_args.feat_dim"),
        ({"model_args": [1]}, "model_args is no mapping"),
        ({"model_args": {**SMALL, "embed_dim": "wide"}}, "embedding_size is 'wide'"),
        ({"model_args": {**SMALL, "embed_dim": 0}}, "embedding_size is 0"),
        ({"dataset_args": []}, "dataset_args is no mapping"),
        ({"dataset_args": {"frontend": "s3prl"}}, "front-end 's3prl'"),
        ({"dataset_args": {"frontend": "whisper_encoder"}}, "front-end 'whisper_encoder'"),
        ({"dataset_args": {"fbank_args": {"num_mel_bins": "many"}}}, "num_mels is 'many'"),
        ({"dataset_args": {"fbank_args": {"use_energy": True}}}, "'use_energy' in its fbank_args"),
        ({"dataset_args": {"cmvn_args": {"norm_var": True}}}, "norm_var"),
        ({"dataset_args": {"cmvn": "no"}}, "else than true or false in cmvn"),
        ({"dataset_args": {"cmvn_args": {"norm_mean": 0}}}, "else than true or false in cmvn"),
    ],
    ids=str,
)
def test_configurations_that_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        understood({**TRAINED, **changed})


@pytest.fixture
def backbone() -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone("ECAPA_TDNN", **SMALL)
        for module in backbone.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
    return backbone.eval()


def folder(path: Path, state: object, values: dict[str, Any] = TRAINED) -> Path:
    path.mkdir()
    write_yaml(path / "config.yaml", values)
    torch.save(state, path / "avg_model.pt")
    return path


def bare(state: Tensors) -> object:
    return state


def averaged(state: Tensors) -> object:
    """As averaging leaves it: with the classifier, and counters divided."""
    counted = {name: tensor.float() if name.endswith("tracked") else tensor for name, tensor in state.items()}
    return {**counted, "projection.weight": torch.zeros(9, 16), "projection.bias": torch.zeros(1, 1)}


def of_parallel_training(state: Tensors) -> object:
    return {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}


def old(state: Tensors) -> object:
    """Of a torch that kept no counters."""
    return {"model": {name: tensor for name, tensor in state.items() if not name.endswith("tracked")}}


@pytest.mark.parametrize("form", [bare, averaged, of_parallel_training, old])
def test_folder_embeds_as_its_model_does(backbone: Backbone, tmp_path: Path, form: Callable[[Tensors], object]) -> None:
    model = load(folder(tmp_path / "model", form(backbone.state_dict())), "cpu")
    samples = speech_like(1.1)
    feats = kaldi.fbank(32768 * torch.from_numpy(samples)[None], num_mel_bins=80, window_type="hamming", dither=0.0)
    with torch.no_grad():
        expected = backbone((feats - feats.mean(0))[None])[0].numpy()
    np.testing.assert_allclose(model.embed(samples, rate=16000), expected, atol=2e-4 * np.abs(expected).max())
    assert model.device == "cpu (torch)"


def test_folder_takes_an_onnx_file(backbone: Backbone, tmp_path: Path) -> None:
    path = folder(tmp_path / "model", backbone.state_dict(), {**TRAINED, "dataset_args": {"cmvn": False}})
    made_from = {"weights_sha256": read_bundle(path).digest(), "min_frames": "48"}
    matrix = write_mean_graph(path / "model.onnx", size=16, metadata=made_from)
    model, samples = load(path, "cpu"), speech_like(1.0)
    assert model.device == "cpu (onnxruntime)"
    expected = features(samples, model.frontend).mean(axis=0) @ matrix
    np.testing.assert_allclose(model.embed(samples, rate=16000), expected, rtol=1e-4, atol=1e-4)
    assert model.frontend.num_frames(model.frontend.min_samples) == 48
    torch.save({name: tensor + 1 for name, tensor in backbone.state_dict().items()}, path / "avg_model.pt")
    with pytest.raises(BundleError, match=r"exported from other weights than avg_model\.pt"):
        load(path, "cpu")


def test_shortest_audio_is_what_the_model_needs(tmp_path: Path) -> None:
    args = {"feat_dim": 40, "embed_dim": 8}
    state = build_backbone("ResNet18", **args).state_dict()
    slow = {"model": "ResNet18", "model_args": args, "dataset_args": {"fbank_args": {"frame_shift": 40}}}
    slow["dataset_args"]["fbank_args"]["num_mel_bins"] = 40
    frontend = load(folder(tmp_path / "model", state, slow), "cpu").frontend
    assert frontend.num_frames(frontend.min_samples) == 9
    assert frontend.min_duration == pytest.approx(8 * 0.040 + 0.025)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("linear.bias"), r"Missing key.*linear\.bias"),
        (lambda s: s.update(surprise=torch.zeros(1)), "Unexpected key.*surprise"),
        (lambda s: s.update({"linear.bias": torch.zeros(17)}), r"size mismatch for linear\.bias"),
        (lambda s: s.update({"linear.bias": torch.full((16,), torch.nan)}), r"holds NaN or infinity in linear\.bias"),
        (lambda s: s.update({"epoch": 3}), "holds no tensors by name"),
        (lambda s: s.clear(), "holds no tensors by name"),
    ],
)
def test_tensors_that_do_not_fit(
    backbone: Backbone, tmp_path: Path, change: Callable[[Tensors], None], message: str
) -> None:
    state = dict(backbone.state_dict())
    change(state)
    with pytest.raises(BundleError, match=message):
        load(folder(tmp_path / "model", state), "cpu")


def test_pooling_that_is_stored_twice(tmp_path: Path) -> None:
    args = {"feat_dim": 80, "embed_dim": 8, "pooling_func": "ASTP", "growth_rate": 4, "init_channels": 16}
    state = dict(build_backbone("CAMPPlus", **args).state_dict())
    twice = {f"xvector.stats.{name[5:]}": tensor.clone() for name, tensor in state.items() if name.startswith("pool.")}
    assert len(twice) == 4
    values = {"model": "CAMPPlus", "model_args": args, "exp_dir": "x"}
    good = read_bundle(folder(tmp_path / "good", {**state, **twice}, values))
    assert good.tensors().keys() == state.keys()
    once = {name: tensor for name, tensor in state.items() if not name.startswith("pool.")}
    assert read_bundle(folder(tmp_path / "once", {**once, **twice}, values)).tensors().keys() == state.keys()
    twice["xvector.stats.linear1.bias"] += 1
    with pytest.raises(BundleError, match=r"two poolings that differ \(pool\.linear1\.bias"):
        read_bundle(folder(tmp_path / "bad", {**state, **twice}, values)).tensors()


def test_folder_without_its_checkpoint(tmp_path: Path) -> None:
    path = folder(tmp_path / "model", {})
    (path / "avg_model.pt").rename(path / "final_model.pt")
    with pytest.raises(BundleError, match=r"has WeSpeaker's config\.yaml but no avg_model\.pt"):
        read_bundle(path)
    with pytest.raises(BundleError, match=r"is a file, not a model folder; .*speakerkit import"):
        read_bundle(path / "final_model.pt")
