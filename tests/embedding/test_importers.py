"""Published layouts, their tensors from a formula, imported and compared with what their own code makes of them.

The golden embeddings are of SpeechBrain 1.1.2 (its Fbank, sentence norm and ECAPA_TDNN), of modelscope 1.40.2
(3D-Speaker's models on torchaudio's Kaldi filterbank), and of a module typed after TaoRuijie's ``model.py``, each given
the tensors of :func:`formula` and ``speech_like(1.3, seed=5)``.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speakerkit.bundle import read_bundle
from speakerkit.embedding.importers import Imported, Wishes, import_model
from speakerkit.errors import BundleError, ConfigError
from speakerkit.features import FrontEnd, features
from tests.command import speakerkit
from tests.conftest import speech_like
from tests.graphs import write_mean_graph
from tests.hostile.inputs import trap_pickle

torch = pytest.importorskip("torch")

from speakerkit.embedding.ecapa_zoo import ReflectConv1d  # noqa: E402
from speakerkit.embedding.embedder import load  # noqa: E402
from speakerkit.embedding.registry import build_backbone  # noqa: E402

Tensors = dict[str, "torch.Tensor"]
Shapes = dict[str, tuple[int, ...]]
HYPERPARAMS = """
n_mels: 80
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: !ref <n_mels>
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: !ref <n_mels>
    channels: [16, 16, 16, 16, 24]
    dilations: [1, 2, 3, 4, 1]
    attention_channels: 8
    lin_neurons: 6
modules:
    compute_features: !ref <compute_features>
"""


def formula(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor from its name and shape: waves, scaled to keep activations near one."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    count = int(np.prod(shape))
    wave = np.sin(1.7 * np.arange(1, count + 1) + zlib.crc32(name.encode()) % 1000).reshape(shape)
    if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
        wave = 1 + 0.5 * wave
    elif len(shape) > 1:
        wave = wave * (2 / wave[0].size) ** 0.5
    else:
        wave = 0.1 * wave
    return torch.from_numpy(wave).float()


def filled(shapes: Shapes) -> Tensors:
    return {name: formula(name, shape) for name, shape in shapes.items()}


def convolution(name: str, out_channels: int, in_channels: int, kernel: int = 1) -> Shapes:
    return {f"{name}.weight": (out_channels, in_channels, kernel), f"{name}.bias": (out_channels,)}


def norm(name: str, channels: int) -> Shapes:
    entries = {f"{name}.{entry}": (channels,) for entry in ("weight", "bias", "running_mean", "running_var")}
    return {**entries, f"{name}.num_batches_tracked": ()}


def speechbrain_ecapa() -> Shapes:
    """C = 16, 24 joined channels, 8 in the attention, D = 6, names and shapes as SpeechBrain saves them."""

    def block(name: str, out_channels: int, in_channels: int, kernel: int = 1) -> Shapes:
        return {
            **convolution(f"{name}.conv.conv", out_channels, in_channels, kernel),
            **norm(f"{name}.norm.norm", out_channels),
        }

    shapes = block("blocks.0", 16, 80, 5)
    for number in (1, 2, 3):
        here = f"blocks.{number}"
        shapes |= block(f"{here}.tdnn1", 16, 16) | block(f"{here}.tdnn2", 16, 16)
        for split in range(7):
            shapes |= block(f"{here}.res2net_block.blocks.{split}", 2, 2, 3)
        shapes |= convolution(f"{here}.se_block.conv1.conv", 128, 16)
        shapes |= convolution(f"{here}.se_block.conv2.conv", 16, 128)
    shapes |= block("mfa", 24, 48) | block("asp.tdnn", 8, 72) | convolution("asp.conv.conv", 24, 8)
    return shapes | norm("asp_bn.norm", 48) | convolution("fc.conv", 6, 48)


def taoruijie_ecapa() -> Shapes:
    """C = 16, 24 joined channels, 8 in the attention, D = 6, with the classifier; without the stored front-end."""
    encoder = convolution("conv1", 16, 80, 5) | norm("bn1", 16)
    for number in (1, 2, 3):
        here = f"layer{number}"
        encoder |= convolution(f"{here}.conv1", 16, 16) | norm(f"{here}.bn1", 16)
        for split in range(7):
            encoder |= convolution(f"{here}.convs.{split}", 2, 2, 3) | norm(f"{here}.bns.{split}", 2)
        encoder |= convolution(f"{here}.conv3", 16, 16) | norm(f"{here}.bn3", 16)
        encoder |= convolution(f"{here}.se.se.1", 128, 16) | convolution(f"{here}.se.se.3", 16, 128)
    encoder |= convolution("layer4", 24, 48) | convolution("attention.0", 8, 72) | norm("attention.2", 8)
    encoder |= convolution("attention.4", 24, 8) | norm("bn5", 48) | norm("bn6", 6)
    encoder |= {"fc6.weight": (6, 48), "fc6.bias": (6,)}
    return {**{f"speaker_encoder.{name}": shape for name, shape in encoder.items()}, "speaker_loss.weight": (9, 6)}


def stored_frontend() -> Tensors:
    import torchaudio

    mels = torchaudio.transforms.MelSpectrogram(
        sample_rate=16000, n_fft=512, win_length=400, hop_length=160, f_min=20, f_max=7600, n_mels=80,
        window_fn=torch.hamming_window,
    )  # fmt: skip
    state = {f"speaker_encoder.torchfbank.1.{name}": tensor for name, tensor in mels.state_dict().items()}
    return {"speaker_encoder.torchfbank.0.flipped_filter": torch.tensor([[[-0.97, 1.0]]]), **state}


def ours(name: str, **args: Any) -> Shapes:
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in build_backbone(name, **args).state_dict().items()}


def campplus() -> Shapes:
    """The layout is ours too; D = 6, growth of 4."""
    return ours("CAMPPlus", embed_dim=6, growth_rate=4, init_channels=16)


def eres2net() -> Shapes:
    """D = 6; the first convolution of a fused block, which has a name of its own with us, is one of the list."""
    shapes = {}
    for name, shape in ours("ERes2Net34_Base", embed_dim=6).items():
        if name.startswith(("layer3.", "layer4.")):
            name = re.sub(r"\.(conv|bn)s\.(\d)(?=\.)", lambda match: f".{match[1]}s.{int(match[2]) + 1}", name)
            name = re.sub(r"\.(conv|bn)2_1\.", r".\1s.0.", name)
        shapes[name] = shape
    return shapes


@dataclass(frozen=True)
class Layout:
    """A published checkpoint, what it must become, and what its own code makes of the audio."""

    shapes: Callable[[], Shapes]
    file: str
    model: str
    golden: tuple[float, ...]
    kind: str
    told: bool = True  # whether its content tells the kind

    def write(self, folder: Path, change: Callable[[Tensors], None] = lambda state: None) -> Path:
        """The files as they are published, and which to import."""
        state = filled(self.shapes())
        if self.kind == "taoruijie":
            state |= stored_frontend()
        change(state)
        torch.save(state, folder / self.file)
        if self.kind != "speechbrain":
            return folder / self.file
        (folder / "hyperparams.yaml").write_text(HYPERPARAMS)
        torch.save({"weights": torch.zeros(2)}, folder / "classifier.ckpt")
        return folder


SPEECHBRAIN = Layout(
    speechbrain_ecapa,
    "embedding_model.ckpt",
    "ECAPA_TDNN_SpeechBrain",
    (0.12600, 0.31377, 0.28716, 0.21179, 0.35939, 0.49365),
    "speechbrain",
)
TAORUIJIE = Layout(
    taoruijie_ecapa,
    "pretrain.model",
    "ECAPA_TDNN_TaoRuijie",
    (0.19372, 0.24231, 0.09607, 0.05426, 0.38963, 0.28089),
    "taoruijie",
)
CAMPPLUS = Layout(
    campplus,
    "campplus_cn_common.bin",
    "CAMPPlus",
    (1.09259, -0.59366, -0.51664, 1.18945, -0.85309, 0.40718),
    "3dspeaker",
)
ERES2NET = Layout(
    eres2net,
    "eres2net_base_model.ckpt",
    "ERes2Net34_Base",
    (-0.14223, 0.02872, 0.09593, -0.04925, -0.05193, 0.00166),
    "3dspeaker",
)
ECAPA_3D = Layout(
    speechbrain_ecapa,
    "ecapa_tdnn.bin",
    "ECAPA_TDNN_SpeechBrain",
    (0.12352, 0.31115, 0.28442, 0.20896, 0.35648, 0.49068),
    "3dspeaker",
    told=False,
)
LAYOUTS = (SPEECHBRAIN, TAORUIJIE, CAMPPLUS, ERES2NET, ECAPA_3D)
FRONTENDS = {
    "speechbrain": FrontEnd(filterbank="speechbrain", preemphasis=0.0, low_freq=0.0, scale="unit"),
    "taoruijie": FrontEnd(filterbank="torchaudio", high_freq=7600.0, scale="unit"),
    "3dspeaker": FrontEnd(window="povey", scale="unit"),
}


def imported(layout: Layout, folder: Path, change: Callable[[Tensors], None] = lambda state: None) -> Imported:
    (folder / "theirs").mkdir()
    source = layout.write(folder / "theirs", change)
    return import_model(source, folder / "ours", kind=None if layout.told else layout.kind)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.file)
def test_embeds_as_their_own_code_does(layout: Layout, tmp_path: Path) -> None:
    made = imported(layout, tmp_path)
    assert made.kind == layout.kind
    config = read_bundle(tmp_path / "ours").config
    assert (config.model.name, config.embedding_size) == (layout.model, 6)
    assert config.frontend == FRONTENDS[layout.kind]
    weights = tmp_path / "theirs" / layout.file
    assert config.provenance["source_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    vector = load(tmp_path / "ours", "cpu").embed(speech_like(1.3, seed=5), rate=16000)
    np.testing.assert_allclose(vector, layout.golden, atol=1e-3 * np.abs(layout.golden).max())


def test_what_is_no_part_of_the_model_is_named(tmp_path: Path) -> None:
    made = imported(TAORUIJIE, tmp_path)
    assert made.matched == len(taoruijie_ecapa()) - 1
    assert set(made.dropped) == {"speaker_loss.weight", *stored_frontend()}
    assert "dropped (" in made.to_lines()[2]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.file)
def test_every_tensor_counts(layout: Layout, tmp_path: Path) -> None:
    """A tensor that is missing or unknown is an error that names it, as it is called there or with us."""

    def lacks(state: Tensors) -> None:
        last = next(name for name in reversed(layout.shapes()) if name.endswith("weight") and "loss" not in name)
        del state[last]

    with pytest.raises(BundleError, match=r"Missing key.*weight|lacks the tensor .*weight"):
        imported(layout, tmp_path, lacks)
    assert not (tmp_path / "ours").exists()
    prefix = "speaker_encoder." if layout.kind == "taoruijie" else ""
    torch.save({**filled(layout.shapes()), f"{prefix}surprise": torch.zeros(1)}, tmp_path / "theirs" / layout.file)
    with pytest.raises(BundleError, match=r"Unexpected key.*surprise"):
        import_model(tmp_path / "theirs" / layout.file, tmp_path / "ours", kind=layout.kind)
    assert not (tmp_path / "ours").exists()


def test_mirrored_ends() -> None:
    """torch mirrors once; where the padding is as long as the input or longer, numpy mirrors on."""
    layer = ReflectConv1d(1, 1, 3, dilation=4, padding=4, bias=False)
    torch.nn.init.ones_(layer.weight)
    mirror = torch.nn.Conv1d(1, 1, 3, dilation=4, padding=4, bias=False, padding_mode="reflect")
    mirror.load_state_dict(layer.state_dict())
    for frames in (1, 2, 3, 4, 5, 9):
        x = torch.arange(1.0, frames + 1)[None, None]
        padded = np.pad(x[0, 0].numpy(), 4, mode="reflect") if frames > 1 else np.ones(9)
        expected = padded[:-8] + padded[4:-4] + padded[8:]
        np.testing.assert_allclose(layer(x)[0, 0].detach(), expected)
        if frames > 4:
            assert torch.equal(layer(x), mirror(x))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("std_norm: False", "std_norm: True", "mean_var_norm.std_norm True"),
        ("norm_type: sentence", "norm_type: global", "norm_type 'global'"),
        ("    norm_type: sentence\n", "", "norm_type 'global'"),
        ("dilations: [1, 2, 3, 4, 1]", "dilations: [1, 2, 4, 8, 1]", "dilations"),
        ("n_mels: !ref <n_mels>", "n_mels: 80\n    deltas: True", "deltas True"),
        ("n_mels: !ref <n_mels>", "n_mels: 80\n    hop_size: 3", "hop_size, which is not known"),
        ("n_mels: !ref <n_mels>", "n_mels: 80\n    win_length: 20", "windows of 320 samples"),
        ("n_mels: !ref <n_mels>", "n_mels: many", "num_mels is 'many'"),
        ("n_mels: 80", "n_mels: 40", r"size mismatch for layer1\.conv\.weight"),
        ("lin_neurons: 6", "lin_neurons: 6\n    activation: !name:torch.nn.LeakyReLU", "embedding_model.activation"),
        ("n_mels: 80", "n_mels: !!python/object/apply:os.getcwd []", "YAML"),
    ],
)
def test_hyperparameters_that_cannot_be_followed(old: str, new: str, message: str, tmp_path: Path) -> None:
    source = SPEECHBRAIN.write(tmp_path)
    assert old in HYPERPARAMS
    (tmp_path / "hyperparams.yaml").write_text(HYPERPARAMS.replace(old, new, 1))
    with pytest.raises((BundleError, ConfigError), match=message):
        import_model(source, tmp_path / "ours")


def test_hyperparameters_of_the_front_end(tmp_path: Path) -> None:
    source = SPEECHBRAIN.write(tmp_path)
    told = "n_mels: !ref <n_mels>\n    f_min: 50\n    f_max: 7000\n    hop_length: 12.5\n    left_frames: 0"
    (tmp_path / "hyperparams.yaml").write_text(HYPERPARAMS.replace("n_mels: !ref <n_mels>", told, 1))
    frontend = import_model(source, tmp_path / "ours").bundle.config.frontend
    assert (frontend.low_freq, frontend.high_freq, frontend.frame_shift) == (50.0, 7000.0, 12.5)


def test_another_stored_front_end(tmp_path: Path) -> None:
    def change(state: Tensors) -> None:
        state["speaker_encoder.torchfbank.1.mel_scale.fb"] *= 2

    with pytest.raises(BundleError, match=r"another front-end \(torchfbank\.1\.mel_scale\.fb\)"):
        imported(TAORUIJIE, tmp_path, change)


def test_a_checkpoint_that_several_publish(tmp_path: Path) -> None:
    source = ECAPA_3D.write(tmp_path)
    with pytest.raises(BundleError, match="--kind speechbrain or --kind 3dspeaker"):
        import_model(source, tmp_path / "ours")


@pytest.mark.parametrize("name", ["avg_model.pt", "model.bin"])
def test_weights_of_wespeaker_without_their_configuration(name: str, tmp_path: Path) -> None:
    classifier = {} if name == "avg_model.pt" else {"projection.weight": torch.zeros(3, 6)}
    torch.save({**filled(campplus()), **classifier}, tmp_path / name)
    with pytest.raises(BundleError, match=r"WeSpeaker's, without its config\.yaml"):
        import_model(tmp_path / name, tmp_path / "ours")


def wespeaker_folder(path: Path, **config: Any) -> Path:
    path.mkdir()
    args = {"feat_dim": 80, "embed_dim": 6, "growth_rate": 4, "init_channels": 16}
    (path / "config.yaml").write_text(json.dumps({"model": "CAMPPlus", "model_args": args, **config}))
    torch.save({**filled(campplus()), "projection.weight": torch.zeros(3, 6)}, path / "avg_model.pt")
    return path


def test_wespeaker_folder(tmp_path: Path) -> None:
    theirs = wespeaker_folder(tmp_path / "theirs", exp_dir="exp/x")
    made = import_model(theirs, tmp_path / "ours", licence="CC-BY-4.0")
    assert (made.kind, made.matched, made.dropped) == ("wespeaker", len(campplus()), ("projection.weight",))
    assert made.bundle.config.provenance["licence"] == "CC-BY-4.0"
    one, other = (load(path, "cpu").embed(speech_like(1.0), rate=16000) for path in (theirs, tmp_path / "ours"))
    np.testing.assert_array_equal(one, other)


def test_wishes_settle_what_the_files_leave_open(tmp_path: Path) -> None:
    """The same tensors, as 3D-Speaker would publish them and as WeSpeaker would."""
    theirs = wespeaker_folder(tmp_path / "theirs")
    with pytest.raises(BundleError, match="does not tell whether WeSpeaker or 3D-Speaker"):
        import_model(theirs, tmp_path / "ours")
    import_model(theirs, tmp_path / "ours", wishes=Wishes("povey", "unit"))
    vector = load(tmp_path / "ours", "cpu").embed(speech_like(1.3, seed=5), rate=16000)
    np.testing.assert_allclose(vector, CAMPPLUS.golden, atol=1e-3)
    with pytest.raises(ConfigError, match="do not go with taoruijie"):
        import_model(TAORUIJIE.write(tmp_path), tmp_path / "tao", wishes=Wishes(window="povey"))


def test_licence_of_a_model_card(tmp_path: Path) -> None:
    source = CAMPPLUS.write(tmp_path)
    (tmp_path / "README.md").write_text("---\ntags:\n- speaker\nlicense: apache-2.0\n---\n# CAM++\nlicense: none\n")
    assert import_model(source, tmp_path / "ours").bundle.config.provenance["licence"] == "apache-2.0"
    (tmp_path / "README.md").write_text("# CAM++\nlicense: none\n")
    assert "licence" not in import_model(source, tmp_path / "again").bundle.config.provenance


def test_onnx_of_wespeaker(tmp_path: Path) -> None:
    matrix = write_mean_graph(tmp_path / "a.onnx", mels=72)
    made = import_model(tmp_path / "a.onnx", tmp_path / "ours")
    assert (made.kind, made.matched) == ("onnx", None)
    config = made.bundle.config
    assert (config.model.name, config.embedding_size) == ("onnx", 6)
    assert config.frontend == FrontEnd(num_mels=72)
    session, samples = load(tmp_path / "ours", "cpu"), speech_like(0.5)
    np.testing.assert_allclose(
        session._run(features(samples, FrontEnd(num_mels=72, mean_norm=False))[None])[0],
        features(samples, FrontEnd(num_mels=72, mean_norm=False)).mean(axis=0) @ matrix,
        rtol=1e-4,
    )


def test_onnx_that_takes_one_recording_at_a_time(tmp_path: Path) -> None:
    matrix = write_mean_graph(tmp_path / "a.onnx", batch=1, metadata={"normalize_samples": "1", "sample_rate": "8000"})
    made = import_model(tmp_path / "a.onnx", tmp_path / "ours", wishes=Wishes(window="povey"))
    assert made.bundle.config.model.args == {"batch": 1}
    assert made.bundle.config.frontend == FrontEnd(window="povey", scale="unit", sample_rate=8000)
    feats = np.random.default_rng(0).standard_normal((3, 50, 80)).astype(np.float32)
    np.testing.assert_allclose(load(tmp_path / "ours", "cpu")._run(feats), feats.mean(axis=1) @ matrix, atol=1e-5)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ({"frames": 200}, "takes exactly 200 frames"),
        ({"mels": None}, "does not tell its number of mels; say it with --num-mels"),
        ({"names": ("x", "embs")}, r"inputs and outputs \(\['x'\], \['embs'\]\)"),
        ({"metadata": {"sample_rate": "fast"}}, "cannot be given a front-end"),
    ],
    ids=str,
)
def test_onnx_that_is_refused(graph: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_mean_graph(tmp_path / "a.onnx", **graph)
    with pytest.raises(BundleError, match=message):
        import_model(tmp_path / "a.onnx", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_mels_that_the_graph_leaves_open(tmp_path: Path) -> None:
    write_mean_graph(tmp_path / "a.onnx", mels=None)
    made = import_model(tmp_path / "a.onnx", tmp_path / "ours", wishes=Wishes(num_mels=80))
    assert made.bundle.config.frontend.num_mels == 80
    with pytest.raises(BundleError, match="fails on features of shape"):
        import_model(tmp_path / "a.onnx", tmp_path / "other", wishes=Wishes(num_mels=40))


@pytest.mark.parametrize("kind", [None, "3dspeaker", "speechbrain", "taoruijie", "wespeaker", "onnx"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_are_never_run(kind: str | None, protocol: int, tmp_path: Path) -> None:
    source = wespeaker_folder(tmp_path / "theirs", exp_dir="x")
    for name in ("avg_model.pt", "embedding_model.ckpt", "model.onnx"):
        (source / name).write_bytes(trap_pickle(tmp_path / "ran", protocol))
    names = {"wespeaker": "avg_model.pt", "onnx": "model.onnx", None: "avg_model.pt"}
    for path in {source / names.get(kind, "embedding_model.ckpt"), source}:
        with pytest.raises(BundleError, match=r"refused|damaged|cannot be loaded|is no ONNX file"):
            import_model(path, tmp_path / "ours", kind=kind)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "ours").exists()


def test_a_pickle_inside_a_torch_file_is_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return eval, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    torch.save({**filled(campplus()), "pool": Trap()}, tmp_path / "model.bin")
    with pytest.raises(BundleError, match="refused") as refusal:
        import_model(tmp_path / "model.bin", tmp_path / "ours")
    assert "weights_only" not in str(refusal.value)  # torch's own message advises to run the code
    assert not (tmp_path / "ran").exists()
    pickle.loads(trap_pickle(tmp_path / "control"))
    assert (tmp_path / "control").exists()  # the trap works


@pytest.mark.parametrize("kept", [0, 10, 1000, -10])
def test_truncated_checkpoints(kept: int, tmp_path: Path) -> None:
    source = CAMPPLUS.write(tmp_path)
    source.write_bytes(source.read_bytes()[:kept])
    with pytest.raises(BundleError, match=r"damaged|refused"):
        import_model(source, tmp_path / "ours")


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    tensors = filled(campplus())
    name = next(iter(tensors))
    tensors[name].view(-1)[0] = torch.inf
    torch.save(tensors, tmp_path / "model.bin")
    with pytest.raises(BundleError, match=f"holds NaN or infinity in {re.escape(name)}"):
        import_model(tmp_path / "model.bin", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_folders_that_do_not_say_what_to_import(tmp_path: Path, small_bundle: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, message in (
        (tmp_path / "empty", "holds no model file"),
        (tmp_path / "none", "no such file or folder"),
        (small_bundle, "is a bundle already"),
    ):
        with pytest.raises(BundleError, match=message):
            import_model(source, tmp_path / "ours")
    (tmp_path / "empty" / "a.pt").touch()
    (tmp_path / "empty" / "b.bin").touch()
    with pytest.raises(BundleError, match="holds 2 files that may be the model"):
        import_model(tmp_path / "empty", tmp_path / "ours")
    with pytest.raises(BundleError, match="empty: is there already"):
        import_model(CAMPPLUS.write(tmp_path), tmp_path / "empty")
    with pytest.raises(ConfigError, match="did you mean 'speechbrain'"):
        import_model(tmp_path, tmp_path / "ours", kind="speechbrian")
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pt")
    with pytest.raises(BundleError, match="no published layout that is known"):
        import_model(tmp_path / "a.pt", tmp_path / "ours")
    with pytest.raises(BundleError, match=r"is no CAM\+\+, ERes2Net or ECAPA-TDNN"):
        import_model(tmp_path / "a.pt", tmp_path / "ours", kind="3dspeaker")


def test_command(tmp_path: Path) -> None:
    source = CAMPPLUS.write(tmp_path)
    ran = speakerkit("import", source, tmp_path / "ours", "--licence", "apache-2.0")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[0] == f"{tmp_path / 'ours'}: CAMPPlus, embeddings of 6"
    assert f"tensors: {len(campplus())} matched, 0 dropped, 0 missing" in ran.out
    assert "front-end: kaldi, 80 mels, povey window, unit scale" in ran.out
    assert "licence: apache-2.0" in ran.out
    again = speakerkit("import", source, tmp_path / "ours")
    assert (again.code, again.out, len(again.errors)) == (2, "", 1)
