"""Kaldi's PLDA files, binary and text, and what is no such file."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from speakerkit.errors import DataError
from speakerkit.verification.kaldi_plda import read_kaldi_plda, write_kaldi_plda
from speakerkit.verification.plda import Plda
from tests.verification.gaussian import DIM, damaged, spd


@pytest.fixture(scope="module")
def model() -> Plda:
    rng = np.random.default_rng(5)
    return Plda.of(rng.normal(size=DIM), spd(rng), spd(rng, scale=2))


def binary_kaldi(plda: Plda, dtype: str = "<f8") -> bytes:
    """As WriteToken, Vector::Write and Matrix::Write lay it out."""
    kind = {"<f8": b"D", "<f4": b"F"}[dtype]

    def vector(array: np.ndarray) -> bytes:
        return kind + b"V \4" + struct.pack("<i", len(array)) + array.astype(dtype).tobytes()

    def matrix(array: np.ndarray) -> bytes:
        rows, columns = (b"\4" + struct.pack("<i", size) for size in array.shape)
        return kind + b"M " + rows + columns + array.astype(dtype).tobytes()

    return b"\0B<Plda> " + vector(plda.mean) + matrix(plda.transform) + vector(plda.psi) + b"</Plda> "


TEXT_PLDA = """<Plda>  [ 1 -2.5 ]
 [
  1 0.5
  -0.25 2e-1 ]
 [ 3 0 ]
</Plda> """


def same(one: Plda, other: Plda, rtol: float = 0.0) -> None:
    for name in ("mean", "transform", "psi"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=rtol)


def test_kaldi_binary_and_text(model: Plda, tmp_path: Path) -> None:
    (tmp_path / "plda").write_bytes(binary_kaldi(model))
    same(read_kaldi_plda(tmp_path / "plda"), model)
    (tmp_path / "plda").write_bytes(binary_kaldi(model, "<f4"))
    same(read_kaldi_plda(tmp_path / "plda"), model, rtol=1e-6)
    (tmp_path / "plda").write_text(TEXT_PLDA)
    read = read_kaldi_plda(tmp_path / "plda")
    assert read.mean.tolist() == [1, -2.5]
    assert read.psi.tolist() == [3, 0]
    assert read.transform.tolist() == [[1, 0.5], [-0.25, 0.2]]


def test_kaldi_round_trip(model: Plda, tmp_path: Path) -> None:
    write_kaldi_plda(tmp_path / "binary", model)
    assert (tmp_path / "binary").read_bytes() == binary_kaldi(model)
    write_kaldi_plda(tmp_path / "text", model, text=True)
    for name in ("binary", "text"):
        same(read_kaldi_plda(tmp_path / name), model)
    one = Plda(np.ones(1), np.ones((1, 1)), np.ones(1))
    write_kaldi_plda(tmp_path / "one", one, text=True)
    same(read_kaldi_plda(tmp_path / "one"), one)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0B<Plda> ",
        b"\0B<Pluda> DV ",
        b"\0B<Plda> DV \4\xff\xff\xff\x7f",
        b"\0B<Plda> DV \4\xff\xff\xff\xff",
        b"<Plda> [ 1 ] [ 1 ] </Plda>",
        b"<Plda> [ 1 ] [\n 1 ] [ -1 ] </Plda>",
        b"<Plda> [ 1 ] [\n 0 ] [ 1 ] </Plda>",
        b"<Plda> [ 1 ] [\n 1e-200 ] [ 1 ] </Plda>",
        b"<Plda> [ 1 ] [\n 1e200 ] [ 1 ] </Plda>",
        b"<Plda> [ 1 ] [\n 1 ] [ 1e200 ] </Plda>",
        b"<Plda> [ 1 2 ] [\n 1 1\n 1 1 ] [ 1 1 ] </Plda>",
        b"<Plda> [ 1 2 ] [\n 1 0\n 1 ] [ 1 1 ] </Plda>",
        b"<Plda> [ nan ] [\n 1 ] [ 1 ] </Plda>",
        b"<Plda> [ x ] [\n 1 ] [ 1 ] </Plda>",
        b"<Plda> 1 [ 1 ] [\n 1 ] [ 1 ] </Plda>",
        b"<Plda> [ ] [ ] [ ] </Plda>",
        b"\xff\xfe\0<Plda>",
    ],
)
def test_kaldi_files_that_are_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "plda").write_bytes(content)
    with pytest.raises(DataError, match="plda: "):
        read_kaldi_plda(tmp_path / "plda")


def test_kaldi_file_cut_short(model: Plda, tmp_path: Path) -> None:
    whole = binary_kaldi(model)
    for end in range(0, len(whole) - 1, 7):
        (tmp_path / "plda").write_bytes(whole[:end])
        with pytest.raises(DataError, match="no PLDA of Kaldi"):
            read_kaldi_plda(tmp_path / "plda")


@pytest.mark.parametrize("text", [False, True])
def test_kaldi_files_with_any_damage(model: Plda, text: bool, tmp_path: Path) -> None:
    """Bytes changed, lost or added: an error that names the file, or a model that scores with finite numbers."""
    path = tmp_path / "plda"
    write_kaldi_plda(path, model, text=text)
    refused = []
    for content in damaged(path.read_bytes(), np.random.default_rng(0), 200):
        path.write_bytes(content)
        try:
            read = read_kaldi_plda(path)
        except DataError as error:
            refused.append(str(error))
            continue
        projected = read.project(np.ones((1, read.dim)), 1, "none")
        assert np.isfinite(read.llr(projected, np.ones(1), projected, (np.zeros(1, int), np.zeros(1, int)))).all()
    assert all(message.startswith(str(path)) for message in refused)
    assert 50 < len(refused) < 200, "some damage is in digits, which still are numbers"
