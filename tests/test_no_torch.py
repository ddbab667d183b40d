"""What the core promises: without torch and every other extra, importing, embedding, scoring and measuring work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from tests.extraction.bundles import gain_extractor

REPOSITORY = Path(__file__).resolve().parent.parent

BLOCK = """
import sys
BLOCKED = {
    "torch", "torchaudio", "s3prl", "whisper", "umap", "hdbscan", "lmdb", "webdataset", "matplotlib", "av",
    "espeakng_loader", "onnx", "onnxscript", "tensorboard", "faiss", "psycopg",
}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
"""


def run_blocked(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process that cannot import the extras."""
    return subprocess.run(
        [sys.executable, "-c", BLOCK + textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_core_works(write_wav: Callable[..., Path], onnx_bundle: Path, tmp_path: Path) -> None:
    gain_extractor(tmp_path / "extractor", onnx_bundle)
    one, other = write_wav("a.wav"), write_wav("b.flac", seed=1)
    (tmp_path / "trials").write_text("a b target\na a nontarget\n")
    (tmp_path / "wav.scp").write_text(f"a {one}\nb {other}\n")
    (tmp_path / "a.lab").write_text("0 1 ana\n")
    code = """
        import speakerkit
        from tests.command import speakerkit as run
        model, one, other, folder = sys.argv[1:]
        for command in (
            ["--help"],
            ["embed", "--help"],
            ["train", "--help"],
            ["embed", "-m", model, one, other],
            ["embed", "-m", model, "--scp", f"{folder}/wav.scp", "--out", f"{folder}/e.scp"],
            ["similarity", "-m", model, one, other, "--json"],
            ["score", "cosine", f"{folder}/e.scp", f"{folder}/trials", f"{folder}/scores"],
            ["metrics", f"{folder}/scores"],
            ["convert", f"{folder}/a.lab", "-", "--to", "rttm"],
            ["score", "der", f"{folder}/a.lab", f"{folder}/a.lab", "--collar", "0.25"],
            ["enroll", "-m", model, "--db", f"{folder}/v.db", "ana", one],
            ["verify", "-m", model, "--db", f"{folder}/v.db", "ana", other],
            ["identify", "-m", model, "--db", f"{folder}/v.db", other],
            ["vad", one, "--format", "json"],
            ["diarize", "-m", model, one, "--json"],
            ["diarize", "-m", model, one, "--vad", "energy", "--speakers", f"{folder}/v.db", "--name-threshold", "0"],
            ["extract", one, "--enrol", other, "-m", f"{folder}/extractor", "--out", f"{folder}/extracted"],
            ["voices", "list", "--db", f"{folder}/v.db"],
            ["voices", "export", "--db", f"{folder}/v.db", f"{folder}/v.npy"],
            ["voices", "import", "--db", f"{folder}/w.db", f"{folder}/v.npy"],
            ["doctor"],
            ["doctor", "--json"],
            ["data", "augmentations"],
            ["data", "check", folder],
            ["import", f"{model}/model.onnx", f"{folder}/imported"],
            ["embed", "-m", f"{folder}/imported", one],
        ):
            ran = run(*command)
            assert ran.code == 0 or command[:2] == ["data", "check"], (command, ran)
            assert ran.out or command[0] == "score", command
        assert speakerkit.load(model).embed(one).shape == (16,)
        assert not BLOCKED & {name.partition(".")[0] for name in sys.modules}
        print("done")
    """
    done = run_blocked(code, onnx_bundle, one, other, tmp_path)
    assert done.stdout.endswith("done\n"), done.stderr


def test_what_needs_an_extra_names_it(
    write_wav: Callable[..., Path], torch_bundle: Path, onnx_bundle: Path, tmp_path: Path
) -> None:
    wav = write_wav("a.wav")
    gain_extractor(tmp_path / "extractor", onnx_bundle)
    shutil.copytree(tmp_path / "extractor", tmp_path / "weights")
    (tmp_path / "weights" / "model.onnx").rename(tmp_path / "weights" / "model.safetensors")
    (tmp_path / "a.m4a").write_bytes(b"x" * 100)
    (tmp_path / "c.yaml").write_text("exp_dir: x\n")
    (tmp_path / "scores").write_text("a b 0.9 target\na c 0.1 nontarget\n")
    (tmp_path / "wav.scp").write_text(f"a {wav}\n")
    (tmp_path / "a.pt").touch()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "avg_model.pt").touch()
    (tmp_path / "theirs" / "config.yaml").write_text("model: ResNet18\nmodel_args: {feat_dim: 80, embed_dim: 8}\n")
    code = """
        from tests.command import speakerkit as run
        with_torch, with_onnx, wav, folder = sys.argv[1:]
        assert run("enroll", "-m", with_onnx, "--db", f"{folder}/v.db", "ana", wav).code == 0
        for extra, command in (
            ("train", ["train", f"{folder}/c.yaml"]),
            ("train", ["embed", "-m", with_torch, wav]),
            ("train", ["export", with_torch]),
            ("train", ["export", f"{folder}/extractor"]),
            ("train", ["extract", wav, "--enrol", wav, "-m", f"{folder}/weights", "--out", f"{folder}/extracted"]),
            ("train", ["finetune", "--init", with_torch, "--data", folder]),
            ("train", ["average", folder]),
            ("train", ["import", f"{folder}/a.pt", f"{folder}/out"]),
            ("train", ["embed", "-m", f"{folder}/theirs", wav]),
            ("train", ["data", "lmdb", f"{folder}/wav.scp", f"{folder}/store"]),
            ("train", ["metrics", f"{folder}/scores", "--det", f"{folder}/det.png"]),
            ("train", ["report", "trials", f"{folder}/scores", "--out", f"{folder}/report.html"]),
            ("train", ["data", "demo", f"{folder}/demo", "--speakers", "1"]),
            ("search", ["voices", "index", "--db", f"{folder}/v.db"]),
            ("postgres", ["voices", "list", "--db", "postgresql://localhost/voices"]),
            ("formats", ["embed", "-m", with_onnx, f"{folder}/a.m4a"]),
        ):
            ran = run(*command)
            assert ran.code == 2, (command, ran)
            assert len(ran.errors) == 1 and f"pip install 'speakerkit[{extra}]'" in ran.errors[0], (command, ran)
            assert ran.out == ""
        print("done")
    """
    done = run_blocked(code, torch_bundle, onnx_bundle, wav, tmp_path)
    assert done.stdout.endswith("done\n"), done.stderr
