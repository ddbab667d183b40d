"""``speakerkit embed`` on many recordings: what is bad is named, what is done stays done."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file, save_file

from speakerkit.data.ark import read_embeddings
from speakerkit.embedding.embedder import Embedder
from speakerkit.embedding.extract import output_of
from tests.command import speakerkit
from tests.conftest import speech_like

OUTPUTS = ("ark,scp:emb.ark,emb.scp", "emb.scp", "emb.npz", "npy:emb", "emb.npy", "emb.jsonl", "jsonl")


@pytest.fixture
def hundred(tmp_path: Path) -> Path:
    """wav.scp of a hundred short recordings in a folder with blanks, three of them bad."""
    folder = tmp_path / "my  recordings ünï"
    folder.mkdir()
    samples = speech_like(0.9)
    for number in range(100):
        soundfile.write(folder / f"{number} .wav", samples[50 * number : 50 * number + 5000], 16000)
    (folder / "17 .wav").write_bytes(b"no audio")
    (folder / "42 .wav").unlink()
    soundfile.write(folder / "88 .wav", np.zeros(8000), 16000)
    scp = tmp_path / "wav.scp"
    scp.write_text("".join(f"utt{number:03d} {folder}/{number} .wav\n" for number in range(100)))
    return scp


def test_three_of_a_hundred_are_bad(hundred: Path, onnx_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = hundred.with_name("emb.scp")
    command = ["embed", "-m", onnx_bundle, "--scp", hundred, "--out", out]
    ran = speakerkit(*command)
    assert ran.code == 3
    assert len(ran.errors) == 1
    assert "3 of 100 recordings failed" in ran.errors[0]
    first = read_embeddings(out)
    assert len(first) == 97
    failed = [line.split("\t") for line in out.with_name("failed.tsv").read_text().splitlines()]
    assert [key for key, _ in failed] == ["utt017", "utt042", "utt088"]
    assert [word in reason for word, (_, reason) in zip(("decoded", "no such", "silent"), failed, strict=True)] == 3 * [
        True
    ]

    soundfile.write(hundred.with_name("my  recordings ünï") / "17 .wav", speech_like(1.0), 16000)
    asked: list[str] = []
    embed_many = Embedder.embed_many

    def watched(self: Embedder, entries: list[tuple[str, str]], **settings: object) -> object:
        asked.extend(key for key, _ in entries)
        return embed_many(self, entries, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(Embedder, "embed_many", watched)
    ran = speakerkit(*command)
    assert ran.code == 3
    assert asked == ["utt017", "utt042", "utt088"]
    again = read_embeddings(out)
    assert len(again) == 98
    np.testing.assert_array_equal(again.vectors[again.rows(first.keys)], first.vectors)


@pytest.mark.parametrize("out", OUTPUTS)
def test_outputs(out: str, write_wav: Callable[..., Path], onnx_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [write_wav("a b.wav", seed=1), write_wav("ü.wav", 0.7, seed=2)]
    monkeypatch.chdir(files[0].parent)
    ran = speakerkit("embed", "-m", onnx_bundle, "a b.wav", "ü.wav", "--out", out)
    assert ran.code == 0, ran
    path = Path(ran.out.partition(":")[0])
    embeddings = read_embeddings(path)
    assert embeddings.keys == ["%C3%BC.wav", "a%20b.wav"]
    printed = speakerkit("embed", "-m", onnx_bundle, "a b.wav", "ü.wav")
    for line in printed.out.splitlines():
        row = json.loads(line)
        key = {"a b.wav": "a%20b.wav", "ü.wav": "%C3%BC.wav"}[row["key"]]
        np.testing.assert_allclose(embeddings[key], row["embedding"], rtol=1e-6)
    assert not Path("failed.tsv").exists()


def test_padded_recordings_are_marked(write_wav: Callable[..., Path], onnx_bundle: Path) -> None:
    short, whole = write_wav("short.wav", 0.1), write_wav("whole.wav", 1.0)
    out = short.with_name("emb.npz")
    scp = short.with_name("wav.scp")
    scp.write_text(f"s {short}\nw {whole}\n")
    assert speakerkit("embed", "-m", onnx_bundle, "--scp", scp, "--out", out).code == 3
    assert not out.with_name("emb.padded.tsv").exists()
    assert speakerkit("embed", "-m", onnx_bundle, "--scp", scp, "--out", out, "--short", "pad").code == 0
    assert out.with_name("emb.padded.tsv").read_text() == "s\t0.1000\n"
    assert speakerkit("embed", "-m", onnx_bundle, "--scp", scp, "--out", out, "--short", "pad").code == 0
    assert out.with_name("emb.padded.tsv").read_text() == "s\t0.1000\n"
    ran = speakerkit("embed", "-m", onnx_bundle, "--scp", scp, "--out", out)
    assert ran.code == 2
    assert "was made with --short pad, not error; use --overwrite, or write to another file" in ran.errors[0]
    rows = [
        json.loads(line)
        for line in speakerkit("embed", "-m", onnx_bundle, short, whole, "--short", "pad").out.splitlines()
    ]
    assert sorted(row["padded"] for row in rows) == [False, True]


def test_another_model_is_refused(write_wav: Callable[..., Path], onnx_bundle: Path, small_bundle: Path) -> None:
    path = write_wav("a.wav")
    out = path.with_name("emb.npz")
    other = path.with_name("other")
    shutil.copytree(small_bundle, other, ignore=shutil.ignore_patterns("*.onnx"))
    tensors = load_file(other / "model.safetensors")
    save_file({name: np.asarray(1.01 * values) for name, values in tensors.items()}, other / "model.safetensors")
    assert speakerkit("embed", "-m", onnx_bundle, path, "--out", out).code == 0
    assert speakerkit("embed", "-m", small_bundle, path, "--out", out).code == 0, "the graph is of these weights"
    before = out.read_bytes()
    ran = speakerkit("embed", "-m", other, path, "--out", out)
    assert ran.code == 2
    assert "was made by another model" in ran.errors[0]
    assert out.read_bytes() == before
    assert speakerkit("embed", "-m", other, path, "--out", out, "--overwrite").code == 0
    assert speakerkit("embed", "-m", other, path, "--out", out).code == 0
    shutil.move(out.with_name("emb.model.json"), out.with_name("gone"))
    assert "does not tell" in speakerkit("embed", "-m", other, path, "--out", out).errors[0]


def test_another_channel_is_refused(write_wav: Callable[..., Path], onnx_bundle: Path) -> None:
    one, other = write_wav("a.wav"), write_wav("b.wav", seed=1)
    out = one.with_name("emb.npz")
    command = ["embed", "-m", onnx_bundle, "--out", out]
    assert speakerkit(*command, one).code == 0
    note = json.loads(out.with_name("emb.model.json").read_text())
    assert (note["channel"], note["short"], note["dimension"]) == ("mix", "error", 16)
    ran = speakerkit(*command, one, other, "--channel", 0)
    assert ran.code == 2
    assert "was made with --channel mix, not 0; use --overwrite" in ran.errors[0]
    assert len(read_embeddings(out)) == 1
    assert speakerkit(*command, one, other, "--channel", 0, "--overwrite").code == 0
    assert speakerkit(*command, one, other, "--channel", 0).code == 0


def test_outputs_of_one_folder_share_the_failures(write_wav: Callable[..., Path], onnx_bundle: Path) -> None:
    good = write_wav("good.wav")
    folder = good.parent

    def extract(name: str, **entries: Path) -> list[str]:
        scp = folder / f"{name}.scp"
        scp.write_text("".join(f"{key} {path}\n" for key, path in entries.items()))
        speakerkit("embed", "-m", onnx_bundle, "--scp", scp, "--out", folder / f"{name}.npz")
        failed = folder / "failed.tsv"
        return [row.split("\t")[0] for row in failed.read_text().splitlines()] if failed.exists() else []

    none = folder / "none.wav"
    assert extract("test", b=none, a=good) == ["b"]
    assert extract("train", c=good) == ["b"]
    assert extract("train", c=good, d=none) == ["b", "d"]
    assert extract("test", b=good, a=good) == ["d"]
    assert extract("train", c=good, d=good) == []


@pytest.mark.parametrize(
    ("out", "fault"),
    [
        ("emb", r"names no embedding format; .*npy:PATH.*ark,scp:a\.ark,a\.scp"),
        ("ark,scp:a/emb.ark,b/emb.scp", "names an ark and a scp apart"),
        ("ark,scp:one.ark,two.scp", "names an ark and a scp apart"),
        ("ark,scp:emb.scp,emb.ark", "names an ark and a scp apart"),
    ],
)
def test_outputs_that_are_refused(
    out: str, fault: str, write_wav: Callable[..., Path], onnx_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_wav("a.wav")
    monkeypatch.chdir(path.parent)
    ran = speakerkit("embed", "-m", onnx_bundle, path, "--out", out)
    assert ran.code == 2
    assert re.search(fault, ran.errors[0]), ran.errors
    assert [file.name for file in path.parent.iterdir()] == ["a.wav"]


@pytest.mark.parametrize(
    ("text", "path", "form"),
    [
        ("npy", "embeddings", "npy"),
        ("ark,scp", "embeddings", "ark,scp"),
        ("npy:a,b/emb", "a,b/emb", "npy"),
        ("ark,scp:a,b/emb.ark,a,b/emb.scp", "a,b/emb.scp", "ark,scp"),
        ("ark,scp:./emb.ark,emb.scp", "emb.scp", "ark,scp"),
        ("x/emb.ark", "x/emb.ark", None),
    ],
)
def test_forms_of_out(text: str, path: str, form: str | None) -> None:
    assert output_of(text) == (Path(path), form)


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_in_the_middle(
    hundred: Path, onnx_bundle: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    out = hundred.with_name("emb.npz")
    embed_many = Embedder.embed_many

    def killed(self: Embedder, entries: list[tuple[str, str]], **settings: object) -> object:
        for number, item in enumerate(embed_many(self, entries, **settings)):  # type: ignore[arg-type]
            if number == 30:
                raise KeyboardInterrupt
            yield item

    command = ["embed", "-m", onnx_bundle, "--scp", hundred, "--out", out]
    with monkeypatch.context() as patched:
        patched.setattr(Embedder, "embed_many", killed)
        assert speakerkit(*command).code == 130
    assert not out.exists()
    asked: list[str] = []

    def watched(self: Embedder, entries: list[tuple[str, str]], **settings: object) -> object:
        asked.extend(key for key, _ in entries)
        return embed_many(self, entries, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(Embedder, "embed_many", watched)
    assert speakerkit(*command, *(["--overwrite"] if overwrite else [])).code == 3
    assert len(asked) == 100 if overwrite else 70 <= len(asked) <= 75
    assert len(read_embeddings(out)) == 97


def test_killed_while_overwriting(
    hundred: Path, small_bundle: Path, onnx_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old vectors and new ones never end in one file under the name of one model."""
    out = hundred.with_name("emb.npz")
    command = ["embed", "--scp", hundred, "--out", out]
    assert speakerkit(*command, "-m", onnx_bundle).code == 3
    before = out.read_bytes()

    def killed(self: Embedder, entries: list[tuple[str, str]], **settings: object) -> object:
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patched:
        patched.setattr(Embedder, "embed_many", killed)
        assert speakerkit(*command, "-m", small_bundle, "--overwrite").code == 130
    assert out.read_bytes() == before
    assert speakerkit(*command, "-m", small_bundle).code == 2
    assert speakerkit(*command, "-m", small_bundle, "--overwrite").code == 3


def test_all_bad_is_an_error_and_no_output(tmp_path: Path, onnx_bundle: Path) -> None:
    scp = tmp_path / "wav.scp"
    scp.write_text(f"a {tmp_path}/none.wav\nb {tmp_path}/nothing.wav\n")
    ran = speakerkit("embed", "-m", onnx_bundle, "--scp", scp, "--out", tmp_path / "emb.npz")
    assert ran.code == 2
    assert ran.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["failed.tsv", "wav.scp"]
