"""Stores: LMDB, folder and Kaldi directory read alike, and no list of keys can run code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speakerkit.data.stores import AudioStore, open_store, write_lmdb
from speakerkit.errors import AudioError, DataError

lmdb = pytest.importorskip("lmdb")
RATE = 16000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Long noises whose samples tell their own time, a short music, and a speech file beside the folders."""
    root = tmp_path / "musan"
    ramp = (np.arange(10 * RATE) / (20 * RATE)).astype(np.float32)  # value = seconds / 20
    for name, samples in {
        "noise/free sound/long.flac": ramp,
        "music/short.wav": np.sin(np.arange(800) / 10).astype(np.float32) / 2,
        "speech/a.wav": ramp[: 6 * RATE],
        "loose.wav": ramp[:RATE],
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, samples, RATE, subtype="PCM_16")
    (root / "readme.txt").write_text("not audio")
    (root / ".hidden.wav").write_text("not audio either")
    return root


def paths_of(folder: Path) -> dict[str, str]:
    return {key: str(folder / key) for key in open_store(folder).keys()}  # noqa: SIM118


def raw_lmdb(path: Path, values: dict[bytes, bytes]) -> Path:
    environment = lmdb.open(str(path), map_size=1 << 22)
    with environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)
    environment.close()
    return path


@pytest.mark.parametrize("kind", ["folder", "lmdb", "kaldi", "scp"])
def test_the_same_recordings_whatever_the_store(tmp_path: Path, folder: Path, kind: str) -> None:
    paths = paths_of(folder)
    source = folder
    if kind == "lmdb":
        source = write_lmdb(paths, tmp_path / "store", types={"loose.wav": "noise"})
    elif kind in ("kaldi", "scp"):
        source = tmp_path / "kaldi"
        source.mkdir()
        (source / "wav.scp").write_text("".join(f"{key.replace(' ', '_')} {path}\n" for key, path in paths.items()))
        (source / "utt2type").write_text("loose.wav noise\n")
        source = source / "wav.scp" if kind == "scp" else source
    store = open_store(source)
    keys = [key.replace(" ", "_") if kind in ("kaldi", "scp") else key for key in sorted(paths)]
    assert list(store.keys()) == keys == list(store)
    assert [store.kind(key) for key in keys] == [
        "noise" if kind in ("lmdb", "kaldi") else "other",
        "music",
        "noise",
        "speech",
    ]
    short = soundfile.read(folder / "music/short.wav", dtype="float32")[0]
    np.testing.assert_array_equal(store.read("music/short.wav", RATE), short)
    assert len(store.read("music/short.wav", 8000)) == 400


@pytest.mark.parametrize("kind", ["folder", "lmdb"])
def test_only_a_random_part_of_a_long_recording_is_read(tmp_path: Path, folder: Path, kind: str) -> None:
    store = open_store(write_lmdb(paths_of(folder), tmp_path / "store") if kind == "lmdb" else folder)
    key = "noise/free sound/long.flac"
    starts = []
    for seed in range(20):
        part = store.read(key, RATE, np.random.default_rng(seed), duration=2.0)
        again = store.read(key, RATE, np.random.default_rng(seed), duration=2.0)
        np.testing.assert_array_equal(part, again)
        assert len(part) == 2 * RATE
        np.testing.assert_allclose(np.diff(part), 1 / (20 * RATE), atol=4e-5)
        starts.append(20 * part[0])
    assert min(starts) < 2 < 6 < max(starts) < 8.01
    assert store.read(key, RATE, duration=2.0)[0] == 0
    assert len(store.read(key, RATE)) == 10 * RATE
    assert len(store.read("music/short.wav", RATE, np.random.default_rng(0), duration=2.0)) == 800
    assert len(store.read("music/short.wav", RATE, np.random.default_rng(0), duration=0.01)) == 160


def test_decoded_responses_are_kept_and_guarded(folder: Path) -> None:
    store = open_store(folder)
    first = store.read("music/short.wav", RATE)
    (folder / "music/short.wav").unlink()
    np.testing.assert_array_equal(store.read("music/short.wav", RATE), first)
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1.0
    with pytest.raises(AudioError, match=r"short.wav: no such file"):
        open_store_copy(store).read("music/short.wav", RATE)


def open_store_copy(store: AudioStore) -> AudioStore:
    return pickle.loads(pickle.dumps(store))


def test_channels_of_a_response_are_not_mixed(tmp_path: Path) -> None:
    left, right = np.zeros(100, np.float32), np.zeros(100, np.float32)
    left[3], right[7] = 0.5, 0.5
    soundfile.write(tmp_path / "rir.wav", np.stack([left, right], axis=1), RATE)
    np.testing.assert_array_equal(open_store(tmp_path).read("rir.wav", RATE), left)


def test_wespeakers_tools_read_our_lmdb_and_we_read_theirs(tmp_path: Path, folder: Path) -> None:
    paths = paths_of(folder)
    ours = write_lmdb(paths, tmp_path / "ours")
    environment = lmdb.open(str(ours), readonly=True, lock=False)
    with environment.begin() as transaction:
        assert pickle.loads(transaction.get(b"__keys__")) == sorted(paths)
        for key, path in paths.items():
            assert transaction.get(key.encode()) == Path(path).read_bytes()
    environment.close()
    for protocol in range(6):
        values = {key.encode(): Path(path).read_bytes() for key, path in paths.items()}
        values[b"__keys__"] = pickle.dumps(list(paths), protocol=protocol)
        theirs = open_store(raw_lmdb(tmp_path / f"theirs{protocol}", values))
        assert theirs.keys() == sorted(paths)
        assert len(theirs.read("loose.wav", RATE)) == RATE


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path, protocol: int) -> None:
    sentinel = tmp_path / "sentinel"
    for number, value in enumerate([Touch(sentinel), ["a", Touch(sentinel)], [["a"], {"b": Touch(sentinel)}]]):
        store = raw_lmdb(tmp_path / f"evil{number}", {b"__keys__": pickle.dumps(value, protocol=protocol)})
        with pytest.raises(DataError, match="unsafe"):
            open_store(store)
    assert not sentinel.exists()
    pickle.loads(pickle.dumps(Touch(sentinel), protocol=protocol))
    assert sentinel.exists()  # the trap does work


@pytest.mark.parametrize("value", [b"", b"garbage", b"\x80\x04.", pickle.dumps(["a"])[:-3], pickle.dumps([1, 2])])
def test_broken_lists_of_keys_are_refused(tmp_path: Path, value: bytes) -> None:
    with pytest.raises(DataError) as caught:
        open_store(raw_lmdb(tmp_path / "store", {b"__keys__": value, b"a": b"x"}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [b"{}", b"[1]", b"nonsense", b"\xff", b"[]"])
def test_broken_json_lists_of_keys_are_refused(tmp_path: Path, value: bytes) -> None:
    with pytest.raises(DataError):
        open_store(raw_lmdb(tmp_path / "store", {b"__keys_json__": value, b"a": b"x"}))


def test_damaged_stores_are_refused(tmp_path: Path, folder: Path) -> None:
    store = write_lmdb(paths_of(folder), tmp_path / "store")
    data = (store / "data.mdb").read_bytes()
    for content in (b"", b"no database", bytes(8192), data[:100_000]):
        broken = tmp_path / f"broken{len(content)}"
        broken.mkdir()
        (broken / "data.mdb").write_bytes(content)
        with pytest.raises(DataError):
            open_store(broken)
    with pytest.raises(DataError, match="no list of its keys"):
        open_store(raw_lmdb(tmp_path / "bare", {b"a": b"x"}))
    lacking = open_store(raw_lmdb(tmp_path / "lacking", {b"__keys_json__": b'["a", "b"]', b"b": b"no sound"}))
    for key, message in (("a", "list of keys"), ("b", "cannot be decoded"), ("c", "holds no recording")):
        with pytest.raises((AudioError, DataError), match=message):
            lacking.read(key, RATE)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "wav.scp").write_text("a touch sentinel |\n")
    for path in (tmp_path / "missing", tmp_path / "empty", tmp_path / "wav.scp", tmp_path):
        with pytest.raises(DataError):
            open_store(path)


def test_writing_is_all_or_nothing(tmp_path: Path, folder: Path) -> None:
    paths = paths_of(folder)
    store = write_lmdb(paths, tmp_path / "store")
    before = (store / "data.mdb").read_bytes()
    bad = tmp_path / "bad.wav"
    bad.write_text("text")
    with pytest.raises(AudioError, match=r"bad\.wav"):
        write_lmdb({**paths, "zz": str(bad)}, store)
    assert (store / "data.mdb").read_bytes() == before
    for scp, message in (({}, "no recordings"), ({"k" * 600: paths["loose.wav"]}, "key")):
        with pytest.raises(DataError, match=message):
            write_lmdb(scp, store)
    with pytest.raises(DataError, match="is no LMDB store"):
        write_lmdb(paths, folder)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert (write_lmdb(dict(reversed(paths.items())), store) / "data.mdb").read_bytes() == before  # order is no matter
    assert os.listdir(store) == ["data.mdb"]


def test_the_map_grows_beyond_its_first_size(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, 500_000)
    for number in range(20):
        soundfile.write(tmp_path / f"{number}.wav", np.roll(noise, number), RATE)  # 1 MB each
    files = {f"{number}": str(tmp_path / f"{number}.wav") for number in range(20)}
    store = write_lmdb(files, tmp_path / "store")
    assert 20_000_000 < (store / "data.mdb").stat().st_size < 22_000_000
    opened = open_store(store)
    assert all(len(opened.read(key, RATE)) == 500_000 for key in files)


def test_a_store_made_anew_and_forked_workers(tmp_path: Path, folder: Path) -> None:
    paths = paths_of(folder)
    path = write_lmdb(paths, tmp_path / "store")
    store, second = open_store(path), open_store(path)  # two stores on one LMDB
    expected = [store.read(key, RATE, np.random.default_rng(0), 1.0) for key in paths]
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            fresh = open_store_copy(second)
            found = [fresh.read(key, RATE, np.random.default_rng(0), 1.0) for key in paths]
            same = all(np.array_equal(left, right) for left, right in zip(found, expected, strict=True))
            os._exit(0 if same else 1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    write_lmdb({"only": paths["loose.wav"]}, path)
    assert open_store(path).keys() == ["only"]
