"""Kaldi's PLDA, vector and matrix files, binary and text, without Kaldi."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from speakerkit.errors import DataError
from speakerkit.files import atomic_open
from speakerkit.verification.plda import Plda
from speakerkit.verification.vectors import Floats

BINARY = b"\0B"
KINDS = {b"FV ": ("<f4", 1), b"DV ": ("<f8", 1), b"FM ": ("<f4", 2), b"DM ": ("<f8", 2)}
BROKEN = (ValueError, struct.error, OverflowError, MemoryError, UnicodeDecodeError)


def read_kaldi_plda(path: str | Path) -> Plda:
    """Read ``<Plda> mean transform psi </Plda>``, as ivector-compute-plda and ivector-copy-plda write it.

    Raises:
        DataError: missing, no such file, or arrays that :meth:`Plda.stored` refuses.
    """
    data = _read(path)
    try:
        if data.startswith(BINARY):
            return Plda.stored(*_binary_plda(data))
        return Plda.stored(*_text_plda(data.decode("ascii")))
    except BROKEN as error:
        raise DataError(
            path, f"is no PLDA of Kaldi ({error})", "give the file that ivector-compute-plda wrote"
        ) from None


def write_kaldi_plda(path: str | Path, plda: Plda, *, text: bool = False) -> None:
    """Write a PLDA as Kaldi does, in double precision, atomically; text has digits enough to read back exactly."""
    arrays = (plda.mean, plda.transform, plda.psi)
    if text:
        content = "<Plda> " + "".join(map(_text_array, arrays)) + "</Plda> "
        data = content.encode()
    else:
        data = BINARY + b"<Plda> " + b"".join(map(_binary_array, arrays)) + b"</Plda> "
    with atomic_open(path, "wb") as stream:
        stream.write(data)


def read_kaldi_array(path: str | Path) -> Floats:
    """Read one vector (dim,) or matrix (rows, dim): ``mean.vec``, ``transform.mat``.

    Raises:
        DataError: missing, or anything else, or NaN.
    """
    data = _read(path)
    try:
        if data.startswith(BINARY):
            array, end = _binary_read(data, len(BINARY))
            if end != len(data):
                raise ValueError("more follows the array")
        else:
            (array,) = _text_arrays(data.decode("ascii"))
    except BROKEN as error:
        raise DataError(path, f"is no vector or matrix of Kaldi ({error})", "give mean.vec or transform.mat") from None
    if not array.size or not np.isfinite(array).all():
        raise DataError(path, "is empty, or holds NaN or infinity", "compute it again")
    return array


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(path, "no such file", "check the path") from None
    except OSError as error:
        raise DataError(path, f"cannot be read ({error.strerror})", "name the file itself") from None


def _binary_plda(data: bytes) -> list[Floats]:
    position = _expect(data, len(BINARY), b"<Plda> ")
    arrays = []
    for _ in range(3):
        array, position = _binary_read(data, position)
        arrays.append(array)
    _expect(data, position, b"</Plda> ")
    return arrays


def _expect(data: bytes, position: int, token: bytes) -> int:
    if data[position : position + len(token)] != token:
        raise ValueError(f"no {token.decode().strip()} at byte {position}")
    return position + len(token)


def _binary_read(data: bytes, position: int) -> tuple[Floats, int]:
    """The array at ``position``, and where it ends. Sizes stand as ``\\4`` and four bytes."""
    kind = data[position : position + 3]
    if kind not in KINDS:
        raise ValueError(f"no vector or matrix at byte {position}")
    dtype, axes = KINDS[kind]
    position += 3
    shape = []
    for _ in range(axes):
        width, size = struct.unpack_from("<bi", data, position)
        if width != 4 or size < 0:
            raise ValueError(f"no size at byte {position}")
        shape.append(size)
        position += 5
    count = math.prod(shape)
    end = position + count * np.dtype(dtype).itemsize
    if end > len(data):
        raise ValueError("it is cut short")
    array = np.frombuffer(data, dtype=dtype, count=count, offset=position)
    return array.astype(np.float64).reshape(shape), end


def _binary_array(array: Floats) -> bytes:
    kind = b"DV " if array.ndim == 1 else b"DM "
    sizes = b"".join(struct.pack("<bi", 4, size) for size in array.shape)
    return kind + sizes + np.ascontiguousarray(array, dtype="<f8").tobytes()


def _text_plda(text: str) -> list[Floats]:
    words = text.split(maxsplit=1)
    if not words or words[0] != "<Plda>" or not text.rstrip().endswith("</Plda>"):
        raise ValueError("no <Plda> at its ends")
    arrays = _text_arrays(text.strip()[len("<Plda>") : -len("</Plda>")])
    if len(arrays) != 3:
        raise ValueError(f"{len(arrays)} arrays, not 3")
    return arrays


def _text_arrays(text: str) -> list[Floats]:
    """Arrays ``[ 1 2 ]`` (vectors) and ``[`` newline ``1 2`` newline ``3 4 ]`` (matrices)."""
    *parts, rest = text.split("]")
    if rest.strip() or not parts:
        raise ValueError("no closing bracket at its end")
    arrays = []
    for part in parts:
        head, bracket, body = part.partition("[")
        if head.strip() or not bracket:
            raise ValueError(f"no opening bracket before {part.strip()[:40]!r}")
        rows = [[float(word) for word in line.split()] for line in body.split("\n") if line.strip()]
        matrix = np.array(rows, dtype=np.float64)
        arrays.append(matrix if "\n" in body.rstrip("\n") else matrix.reshape(-1))
    return arrays


def _text_array(array: npt.NDArray[Any]) -> str:
    if array.ndim == 1:
        return f" [ {' '.join(map(repr, array.tolist()))} ]\n"
    rows = (" ".join(map(repr, row)) for row in array.tolist())
    return " [\n  " + "\n  ".join(rows) + " ]\n"
