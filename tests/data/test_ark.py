"""Embeddings on disk: every format gives back what was written, and nothing broken or dangerous passes."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import kaldiio
import numpy as np
import pytest

from speakerkit.data.ark import Embeddings, EmbeddingWriter, embedding_path, read_embeddings, write_embeddings
from speakerkit.errors import DataError

FORMATS = ("ark,scp", "npz", "npy", "jsonl")
KEYS = ["id2/video/00001.wav", "id10/v/1.wav", "é-ü"]


@pytest.fixture
def embeddings() -> Embeddings:
    vectors = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    vectors[0, 0] = np.float32(1) / 3
    vectors[1, 1] = 1e-38
    return Embeddings(list(KEYS), vectors)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def one_line(error: pytest.ExceptionInfo[DataError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


@pytest.mark.parametrize("format", FORMATS)
def test_round_trip_is_exact_and_sorted(tmp_path: Path, embeddings: Embeddings, format: str) -> None:
    path = write_embeddings(tmp_path / "set.v2", embeddings, format)
    read = read_embeddings(path)
    assert read.keys == sorted(KEYS)
    for key in KEYS:
        np.testing.assert_array_equal(read[key], embeddings[key])
    assert read.vectors.dtype == np.float32
    order = [2, 0, 1]
    first = files(tmp_path)
    write_embeddings(path, Embeddings([KEYS[row] for row in order], embeddings.vectors[order]))
    assert files(tmp_path) == first
    assert len(first) == (2 if format in ("ark,scp", "npy") else 1)


def test_kaldiio_reads_ours_and_we_read_kaldiio(tmp_path: Path, embeddings: Embeddings) -> None:
    scp = write_embeddings(tmp_path / "ours.scp", embeddings)
    theirs = kaldiio.load_scp(str(scp))
    for key in KEYS:
        np.testing.assert_array_equal(theirs[key], embeddings[key])
    rows = {key: embeddings[key].astype(np.float64) for key in KEYS}
    matrices = {key: row[None] for key, row in rows.items()}
    for name, content, text in (("d", rows, False), ("m", matrices, False), ("t", rows, True)):
        ark = str(tmp_path / f"{name}.ark")
        kaldiio.save_ark(ark, content, scp=str(tmp_path / f"{name}.scp"), text=text)
        for path in (ark, tmp_path / f"{name}.scp"):
            read = read_embeddings(path)
            assert read.keys == KEYS
            np.testing.assert_allclose(read.vectors, embeddings.vectors, rtol=1e-6)


def test_scp_over_several_arks_and_a_moved_folder(tmp_path: Path, embeddings: Embeddings) -> None:
    old = tmp_path / "old place"
    lines = []
    for number, key in enumerate(KEYS):
        part = Embeddings([key], embeddings.vectors[number : number + 1])
        lines.append(write_embeddings(old / f"part{number}.scp", part).read_text().strip())
    (old / "all.scp").write_text("\n".join(reversed(lines)) + "\n")
    os.rename(old, tmp_path / "new place")
    read = read_embeddings(tmp_path / "new place" / "all.scp")
    assert read.keys == KEYS[::-1]
    np.testing.assert_array_equal(read.vectors, embeddings.vectors[::-1])


def test_npy_takes_keys_from_a_plain_txt(tmp_path: Path, embeddings: Embeddings) -> None:
    np.save(tmp_path / "x.npy", embeddings.vectors)
    with pytest.raises(DataError, match="no keys beside it"):
        read_embeddings(tmp_path / "x.npy")
    (tmp_path / "x.txt").write_text("\n".join(KEYS), encoding="utf-8")
    np.testing.assert_array_equal(read_embeddings(tmp_path / "x.npy")[KEYS[1]], embeddings[KEYS[1]])


def test_writing_npy_spares_a_txt_of_the_same_stem(tmp_path: Path, embeddings: Embeddings) -> None:
    (tmp_path / "test.txt").write_text("trials")
    write_embeddings(tmp_path / "test.npy", embeddings)
    assert (tmp_path / "test.txt").read_text() == "trials"


def test_commands_and_pickles_are_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {mark}",)

    for value in (f"touch {mark} |", f"| touch {mark}", f"touch {mark}|", f"pipe:touch {mark}"):
        (tmp_path / "x.scp").write_text(f"a {value}\n")
        with pytest.raises(DataError, match="command"):
            read_embeddings(tmp_path / "x.scp")
    (tmp_path / "x.ark").write_bytes(b"a PKL" + pickle.dumps(Bomb()))
    (tmp_path / "x.scp").write_text(f"a {tmp_path}/x.ark:2\n")
    np.save(tmp_path / "o.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    (tmp_path / "o.txt").write_text("a\n")
    np.savez(tmp_path / "o.npz", keys=np.array(["a"]), embeddings=np.array([[Bomb()]], dtype=object))
    (tmp_path / "p.npy").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "p.npz").write_bytes(pickle.dumps(Bomb()))
    for name in ("x.ark", "x.scp", "o.npy", "o.npz", "p.npy", "p.npz"):
        with pytest.raises(DataError) as error:
            read_embeddings(tmp_path / name)
        one_line(error)
    assert not mark.exists()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("cut", [1, 3, 9, 40])
def test_every_truncation_is_a_named_error(tmp_path: Path, embeddings: Embeddings, format: str, cut: int) -> None:
    path = write_embeddings(tmp_path / "x", embeddings, format)
    victim = path.with_suffix(".ark") if format == "ark,scp" else path
    if format == "jsonl":
        cut += 1  # without its last line end the file is whole
    victim.write_bytes(victim.read_bytes()[:-cut])
    for name in {path, victim}:
        with pytest.raises(DataError) as error:
            read_embeddings(name)
        one_line(error)


@pytest.mark.parametrize("suffix", [".scp", ".ark", ".npz", ".npy", ".jsonl"])
def test_junk_is_a_named_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    with pytest.raises(DataError, match="no such file"):
        read_embeddings(path)
    rng = np.random.default_rng(1)
    numpy_header = b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (9"
    kaldi = b"a \0BFV \x04\xff\xff\xff\x7f" + bytes(8)
    contents = [b"", b"\n", b" ", b"a", b"a b c", b"PK\x03\x04", numpy_header, kaldi, kaldi.replace(b"\x7f", b"\xff")]
    contents += [b'{"key": "a"}', b'{"key": "a", "embedding": [[1]]}', b'{"key": 3, "embedding": [1]}']
    contents += [b"a /dev/null", b"a " + b"x" * 500, b"a x\0y:3"] + [b"[" * 100_000] * (suffix == ".jsonl")
    contents += [rng.bytes(size) for size in (5, 100, 5000)]
    for content in contents:
        path.write_bytes(content)
        (tmp_path / "x.txt").write_text("a\n")
        with pytest.raises(DataError) as error:
            read_embeddings(path)
        assert "x." in one_line(error)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError):
        read_embeddings(path)


def test_a_corrupt_compressed_npz_is_a_named_error(tmp_path: Path, embeddings: Embeddings) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, keys=np.array(KEYS), embeddings=embeddings.vectors)
    content = bytearray(path.read_bytes())
    for start in range(30, len(content) - 30, 7):
        damaged = content.copy()
        damaged[start] ^= 0xFF
        path.write_bytes(damaged)
        with contextlib.suppress(DataError):  # any other exception fails
            read_embeddings(path)


def test_bad_rows_are_named(tmp_path: Path) -> None:
    def write(rows: list[tuple[str, list[float]]]) -> Path:
        path = tmp_path / "x.ark"
        with open(path, "wb") as stream:
            for key, row in rows:
                kaldiio.save_ark(stream, {key: np.array(row, np.float64)})
        return path

    with pytest.raises(DataError, match="'b' has 1 values, 'a' has 2"):
        read_embeddings(write([("a", [1, 2]), ("b", [1])]))
    for bad in (float("nan"), float("inf"), 1e300):
        with pytest.raises(DataError, match=r"1 of 2 .* 'b' first"):
            read_embeddings(write([("a", [1, 2]), ("b", [1, bad])]))
    with pytest.raises(DataError, match="'a' comes twice"):
        read_embeddings(write([("a", [1, 2]), ("b", [2, 2]), ("a", [1, 3])]))
    (tmp_path / "m.ark").touch()
    kaldiio.save_ark(str(tmp_path / "m.ark"), {"a": np.ones((7, 80), np.float32)})
    with pytest.raises(DataError, match="7 x 80"):
        read_embeddings(tmp_path / "m.ark")
    line = '{"key": "a", "embedding": [1, NaN]}\n'
    (tmp_path / "x.jsonl").write_text(line)
    with pytest.raises(DataError, match="NaN"):
        read_embeddings(tmp_path / "x.jsonl")


def test_embeddings_check_themselves() -> None:
    one = np.ones((1, 2), np.float32)
    for keys, vectors in ((["a", "b"], one), ([], np.ones((0, 2))), (["a"], np.ones((1, 0))), (["a"], np.ones(2))):
        with pytest.raises(DataError):
            Embeddings(keys, np.asarray(vectors, np.float32))
    for key in ("", "a b", "a\n", " a", "\udcff"):
        with pytest.raises(DataError):
            Embeddings([key], one)
    embeddings = Embeddings(["a"], one)
    assert "a" in embeddings
    assert "b" not in embeddings
    with pytest.raises(DataError, match=r"'b' \(2 of 3"):
        embeddings.rows(["a", "b", "c"])


def test_embedding_path() -> None:
    for name, format in (("x", "ark"), ("x", "ark,scp"), ("x.ark", None), ("x.scp", "scp"), ("x.ark", "ark")):
        assert embedding_path(name, format) == Path("x.scp")
    assert embedding_path("exp/v1.2", "npz") == Path("exp/v1.2.npz")
    for name, format in (("x", None), ("x.npz", "npy"), ("x", "parquet"), ("x.wav", None)):
        with pytest.raises(DataError):
            embedding_path(name, format)


@pytest.mark.parametrize("format", FORMATS)
def test_writer_equals_writing_at_once_in_any_order(tmp_path: Path, embeddings: Embeddings, format: str) -> None:
    expected = write_embeddings(tmp_path / "a" / "set", embeddings, format)
    wanted = files(tmp_path / "a")
    wanted = {name: content.replace(b"/a/set", b"/b/set") for name, content in wanted.items()}
    with EmbeddingWriter(tmp_path / "b" / "set", format) as writer:
        assert writer.done == set()
        writer.add(KEYS[2], embeddings[KEYS[2]])
    with EmbeddingWriter(tmp_path / "b" / "set", format) as writer:
        assert writer.done == {KEYS[2]}
        for key in KEYS[:2]:
            writer.add(key, embeddings[key])
    assert writer.path.name == expected.name
    assert files(tmp_path / "b") == wanted
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "b").iterdir()}
    with EmbeddingWriter(tmp_path / "b" / "set", format) as writer:
        assert writer.done == set(KEYS)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "b").iterdir()}


@pytest.mark.parametrize("format", FORMATS)
def test_writer_resumes_from_every_torn_byte(tmp_path: Path, embeddings: Embeddings, format: str) -> None:
    whole = write_embeddings(tmp_path / "whole", embeddings, format)
    writer = EmbeddingWriter(tmp_path / "x", format)
    with contextlib.suppress(KeyboardInterrupt), writer:
        for key in KEYS[:2]:
            writer.add(key, embeddings[key])
        raise KeyboardInterrupt
    journal = tmp_path / f"{writer.path.name}.partial"
    assert not writer.path.exists()
    content = journal.read_bytes()
    row = content.index(b"id10")
    for cut in (*range(0, len(content), 7), len(content)):
        journal.write_bytes(content[:cut])
        resumed = EmbeddingWriter(tmp_path / "x", format)
        assert resumed.done == set(KEYS[: (cut >= row) + (cut == len(content))])
        with resumed:
            for key in KEYS:
                if key not in resumed.done:
                    resumed.add(key, embeddings[key])
        np.testing.assert_array_equal(read_embeddings(resumed.path).vectors, read_embeddings(whole).vectors)
        assert not journal.exists()
        resumed.path.unlink()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("replaced", range(3))
def test_a_kill_while_finishing_loses_nothing(
    tmp_path: Path, embeddings: Embeddings, format: str, replaced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Die at each replacement of a file; what is readable is right, and a rerun completes it."""
    with EmbeddingWriter(tmp_path / "x", format) as writer:
        writer.add(KEYS[0], embeddings[KEYS[0]])

    class Killed(BaseException):
        pass

    real, count = os.replace, 0

    def replace(source: str, target: str) -> None:
        nonlocal count
        if count == replaced:
            raise Killed
        count += 1
        real(source, target)

    writer = EmbeddingWriter(tmp_path / "x", format)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        try:
            with writer:
                writer.add(KEYS[1], embeddings[KEYS[1]])
        except Killed:
            assert (tmp_path / f"{writer.path.name}.partial").exists()
    if writer.path.exists():
        for key in read_embeddings(writer.path).keys:
            np.testing.assert_array_equal(read_embeddings(writer.path)[key], embeddings[key])
    with EmbeddingWriter(tmp_path / "x", format) as writer:
        assert writer.done == set(KEYS[:2])
        writer.add(KEYS[2], embeddings[KEYS[2]])
    assert read_embeddings(writer.path).keys == sorted(KEYS)


def test_writer_survives_a_real_kill(tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np\n"
        "from speakerkit.data.ark import EmbeddingWriter\n"
        "with EmbeddingWriter(sys.argv[1]) as writer:\n"
        "    for number in range(10**9):\n"
        "        writer.add(f'k{number:06d}', np.full(256, number, np.float32))\n"
        "        if number == 50: print('ready', flush=True)\n"
    )
    path = tmp_path / "x.scp"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, env=environment)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    with EmbeddingWriter(path) as writer:
        assert len(writer.done) >= 51
    read = read_embeddings(path)
    assert read.keys == [f"k{number:06d}" for number in range(len(read))]
    np.testing.assert_array_equal(read.vectors[:, 7], np.arange(len(read)))


def test_writer_refuses_bad_rows_and_goes_on(tmp_path: Path) -> None:
    with EmbeddingWriter(tmp_path / "x.npz") as writer:
        writer.add("a", [1, 2])
        for key, row in (
            ("b", [1, np.nan]),
            ("b", [1, 1e300]),
            ("b", [1]),
            ("b", [[1, 2]]),
            ("a", [1, 2]),
            ("b c", [1, 2]),
        ):
            with pytest.raises(DataError) as error:
                writer.add(key, row)
            one_line(error)
    assert read_embeddings(tmp_path / "x.npz").keys == ["a"]
    with pytest.raises(DataError, match="another file"), EmbeddingWriter(tmp_path / "x.npz") as writer:
        writer.add("b", [1, 2, 3])


def test_writer_starts_anew_when_told(tmp_path: Path) -> None:
    for keys in (["a", "b"], ["b"]):
        with EmbeddingWriter(tmp_path / "x.jsonl", resume=False) as writer:
            assert not writer.done
            for key in keys:
                writer.add(key, [1.5, len(keys)])
    assert json.loads((tmp_path / "x.jsonl").read_text()) == {"key": "b", "embedding": [1.5, 1]}


def test_writer_without_rows_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with EmbeddingWriter(path):
        pass
    assert files(tmp_path) == {}
    with EmbeddingWriter(path) as writer:
        writer.add("a", [1.0])
    with EmbeddingWriter(path):
        pass
    assert read_embeddings(path).keys == ["a"]
    with EmbeddingWriter(path, resume=False):
        assert path.exists()
    assert files(tmp_path) == {}
