"""The store of voiceprints, in SQLite and on a PostgreSQL server that the test starts; and what may befall the file."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from speakerkit.errors import ConfigError, DataError, MissingExtraError
from speakerkit.verification.voiceprints.search import Searcher, open_searcher
from speakerkit.verification.voiceprints.store import (
    Enrolment,
    ModelStamp,
    NoDatabase,
    VoiceStore,
    check_name,
    open_store,
    unit,
)

REPOSITORY = Path(__file__).resolve().parents[2]
DIM = 8
STAMP = ModelStamp("a" * 64, DIM)


def enrolment(seed: int, dim: int = DIM) -> Enrolment:
    """A recording with a random embedding; its hash goes by the seed."""
    embedding = np.random.default_rng(seed).normal(size=dim)
    return Enrolment.from_embedding(embedding, 1.0 + seed, f"{seed * 7919:064x}", f"{seed}.wav", 0.5 + seed)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Address of a server of our own; SPEAKERKIT_POSTGRES may name the folder of its programs."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'speakerkit[postgres]'")
    folders = [Path(os.environ.get("SPEAKERKIT_POSTGRES", "/nowhere")), *Path("/usr/lib/postgresql").glob("*/bin")]
    found = shutil.which("pg_ctl")
    folders += [Path(found).resolve().parent] if found else []
    programs = next((folder for folder in folders if (folder / "initdb").is_file()), None)
    if programs is None:
        pytest.skip("no PostgreSQL server is installed (Debian: postgresql)")
    # A server refuses to run as root; Debian's packages make a user for it.
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o777)

        def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
            command = [*as_user, str(programs / program), *map(str, arguments)]
            return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/tmp")

        made = run("initdb", "-D", folder / "data", "-A", "trust", "-U", "tester", "--no-sync", "--no-locale")
        if made.returncode:
            pytest.skip(f"initdb cannot be run: {made.stderr.strip()[-300:]}")
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"
        started = run("pg_ctl", "-D", folder / "data", "-w", "-l", folder / "data" / "log", "-o", options, "start")
        assert started.returncode == 0, started
        try:
            yield f"postgresql://tester:secret@/postgres?host={folder}"
        finally:
            run("pg_ctl", "-D", folder / "data", "-m", "immediate", "-w", "stop")


@pytest.fixture(params=["sqlite", "postgres"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new store may be made."""
    if request.param == "sqlite":
        return str(tmp_path / "voices.db")
    url = request.getfixturevalue("postgres")
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS speakerkit CASCADE")
    return url


@pytest.fixture
def store(location: str) -> Iterator[VoiceStore]:
    with open_store(location, create=True) as opened:
        yield opened


def test_what_is_kept(store: VoiceStore, location: str) -> None:
    items = [enrolment(1), enrolment(2)]
    added = store.add("Ana Ng", items, STAMP)
    assert (added.new, added.known, added.shared) == (2, (), ())
    with open_store(location) as again:
        assert again.voices() == [added.voice] == [again.voice("Ana Ng")]
        assert (added.voice.recordings, added.voice.seconds, added.voice.speech) == (2, 5.0, 4.0)
        assert again.stamp() == STAMP
        for kept, item in zip(again.enrolments("Ana Ng"), items, strict=True):
            np.testing.assert_array_equal(kept.vector, item.vector)
            assert {**vars(kept), "vector": 0} == {**vars(item), "vector": 0}
            embedding = np.random.default_rng(int(item.seconds) - 1).normal(size=DIM)
            np.testing.assert_allclose(kept.vector * kept.magnitude, embedding, rtol=1e-6)


def test_twice_adds_and_the_same_file_does_not(store: VoiceStore) -> None:
    store.add("a", [enrolment(1)], STAMP)
    added = store.add("a", [enrolment(2), enrolment(1), enrolment(2)], STAMP)
    assert (added.new, added.known) == (1, ("1.wav", "2.wav"))
    assert added.voice == store.voice("a")
    assert (added.voice.recordings, added.voice.seconds) == (2, 5.0)
    assert store.add("b", [enrolment(2), enrolment(3)], STAMP).shared == ("a",)


def test_the_order_does_not_matter(store: VoiceStore) -> None:
    """The mean is that of the directions, in float64, and the same bits in any order."""
    store.add("at once", [enrolment(n) for n in range(5)], STAMP)
    for number in (3, 1, 4, 0, 2):
        store.add("one by one", [enrolment(number)], STAMP)
    means = dict(store.means())
    np.testing.assert_array_equal(means["at once"], means["one by one"])
    embeddings = [np.random.default_rng(n).normal(size=DIM) for n in range(5)]
    expected = np.mean([embedding / np.linalg.norm(embedding) for embedding in embeddings], axis=0)
    np.testing.assert_allclose(means["at once"], expected / np.linalg.norm(expected), atol=1e-7)


def test_cosine_to_mean_and_to_exemplars(store: VoiceStore) -> None:
    vectors = np.eye(DIM, dtype=np.float32)
    items = [Enrolment.from_embedding(3 * vectors[n], 1.0, f"{n:064x}", f"{n}.wav") for n in range(2)]
    store.add("a", items, STAMP)
    assert store.cosine("a", vectors[0]) == pytest.approx(np.sqrt(0.5), abs=1e-7)
    assert store.cosine("a", vectors[0], "exemplars") == 1.0
    assert store.cosine("a", -vectors[0], "exemplars") == 0.0


def test_remove_and_rename(store: VoiceStore) -> None:
    store.add("a", [enrolment(1)], STAMP)
    store.add("b", [enrolment(2)], STAMP)
    with pytest.raises(DataError, match="has a voice 'b' already"):
        store.rename("a", "b")
    store.rename("a", "Zoe\u0308")
    assert "Zo\u00eb" in store  # composed or not, it is one name
    store.remove("Zo\u00eb")
    assert [voice.name for voice in store.voices()] == ["b"]
    for work in (
        lambda: store.remove("a"),
        lambda: store.rename("a", "c"),
        lambda: store.voice("a"),
        lambda: store.enrolments("a"),
        lambda: store.cosine("a", enrolment(1).vector),
    ):
        with pytest.raises(DataError, match="has no voice 'a'"):
            work()
    assert [item.sha256 for _, item in store.recordings()] == [enrolment(2).sha256]


def test_one_model_a_store(store: VoiceStore) -> None:
    store.add("a", [enrolment(1)], STAMP)
    for other, item in ((ModelStamp("b" * 64, DIM), enrolment(2)), (ModelStamp("a" * 64, 4), enrolment(2, 4))):
        with pytest.raises(DataError, match="holds voiceprints of model aaaaaaaaaaaa"):
            store.add("b", [item], other)
    with pytest.raises(DataError, match=r"has an embedding of shape \(4,\)"):
        store.add("b", [enrolment(2, 4)], STAMP)
    store.remove("a")
    store.add("b", [enrolment(2)], ModelStamp("b" * 64, DIM))  # an empty store is anyone's


def test_all_or_nothing(store: VoiceStore) -> None:
    before = store.generation()
    with pytest.raises(ConfigError):
        store.add_all([("a", [enrolment(1)]), ("bad\nname", [enrolment(2)])], STAMP)
    assert (len(store), store.generation()) == (0, before)
    opposite = [Enrolment.from_embedding(sign * np.ones(DIM), 1, f"{sign + 1:064x}", "x") for sign in (-1, 1)]
    with pytest.raises(DataError, match="without a direction"):
        store.add("a", opposite, STAMP)
    with pytest.raises(DataError, match="is given no recordings"):
        store.add("a", [], STAMP)
    assert "a" not in store


def test_all_of_several_are_removed_or_none(store: VoiceStore) -> None:
    store.add_all([(name, [enrolment(number)]) for number, name in enumerate("abc")], STAMP)
    with pytest.raises(DataError, match="has no voice 'x'"):
        store.remove("a", "x", "b")
    assert [voice.name for voice in store.voices()] == ["a", "b", "c"]
    store.remove("a", "c")
    assert [voice.name for voice in store.voices()] == ["b"]


def test_a_path_that_is_no_text(store: VoiceStore) -> None:
    item = Enrolment.from_embedding(np.ones(DIM), 1.0, "0" * 64, os.fsdecode(b"caf\xe9.wav"))
    store.add("a", [item], STAMP)
    assert store.enrolments("a")[0].source == "caf\\xe9.wav"


def test_blocks_since_a_generation(store: VoiceStore) -> None:
    store.add_all([(f"v{n}", [enrolment(2 * n), enrolment(2 * n + 1)]) for n in range(3)], STAMP)
    first = store.generation()
    store.add("v1", [enrolment(9)], STAMP)
    for match, rows, recent in (("mean", 3, 1), ("exemplars", 7, 3)):
        assert sum(len(block.ids) for block in store.blocks(match)) == rows
        assert sum(len(block.ids) for block in store.blocks(match, since=first)) == recent


def test_search_in_either(store: VoiceStore) -> None:
    """The nearest by a plain loop, in the server where it has pgvector, and through its index where it built one."""
    store.add_all([(f"v{n}", [enrolment(3 * n + m) for m in range(3)]) for n in range(40)], STAMP)
    query, _ = unit(np.random.default_rng(999).normal(size=DIM), "query")
    for match in ("mean", "exemplars"):
        cosines = {
            name: max(float(np.float64(vector) @ query) for vector in vectors)
            for name, vectors in _vectors(store, match).items()
        }
        expected = sorted(cosines, key=lambda name: -cosines[name])[:4]
        for _ in range(2):
            found = open_searcher(store, match).nearest(query, 4)
            assert [candidate.name for candidate in found] == expected
            assert [candidate.cosine for candidate in found] == pytest.approx([cosines[n] for n in expected], abs=1e-6)
            if not getattr(store, "has_pgvector", False):
                break
            store.build_index(match)
            store._rows("SET enable_seqscan = off")


def test_the_index_of_pgvector_is_used(postgres: str, location: str) -> None:
    if not location.startswith("postgresql"):
        pytest.skip("pgvector belongs to PostgreSQL")
    with open_store(location, create=True) as store:
        if not store.has_pgvector:
            with pytest.raises(DataError, match="holds no voices"):
                store.build_index("mean")
            store.add("a", [enrolment(1)], STAMP)
            with pytest.raises(DataError, match="has no extension pgvector"):
                store.build_index("mean")
            pytest.skip("this server has no pgvector (Debian: postgresql-NN-pgvector)")
        store.add_all([(f"v{n}", [enrolment(n)]) for n in range(20)], STAMP)
        store.build_index("mean")
        store._rows("SET enable_seqscan = off")
        kind = f"vector({DIM})"
        plan = store._rows(
            f"EXPLAIN SELECT id FROM voices ORDER BY vector::{kind} <#> ?::real[]::{kind} LIMIT 5",  # noqa: S608
            enrolment(1).vector.tolist(),
        )
        assert "voices_nearest" in str(plan)
        store.remove(*(f"v{n}" for n in range(20)))
        store.add("wider", [enrolment(1, 2 * DIM)], ModelStamp("b" * 64, 2 * DIM))  # which the index would refuse
        found = open_searcher(store).nearest(enrolment(1, 2 * DIM).vector, 1)
        assert [candidate.name for candidate in found] == ["wider"]


def _vectors(store: VoiceStore, match: str) -> dict[str, list[np.ndarray]]:
    if match == "mean":
        return {name: [vector] for name, vector in store.means()}
    return {voice.name: [item.vector for item in store.enrolments(voice.name)] for voice in store.voices()}


ENROL = """
import sys
from speakerkit.verification.voiceprints.store import open_store
from tests.verification.test_voiceprints_store import STAMP, enrolment
location, first = sys.argv[1], int(sys.argv[2])
for number in range(first, first + 20):
    with open_store(location, create=True) as store:
        store.add("shared", [enrolment(number)], STAMP)
        store.add(f"own {number}", [enrolment(1000 + number)], STAMP)
"""
HANG = """
import sys, time
from speakerkit.verification.voiceprints.store import open_store
from tests.verification.test_voiceprints_store import STAMP, enrolment

def entries():
    for number in range(10):
        yield f"lost {number}", [enrolment(100 + number)]
    print("ready", flush=True)
    time.sleep(60)

with open_store(sys.argv[1], create=True) as store:
    store.add("kept", [enrolment(1)], STAMP)
    store.add_all(entries(), STAMP)
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Python code in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_two_processes_enrol_at_once(location: str) -> None:
    processes = [start(ENROL, location, first) for first in (0, 100)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    with open_store(location) as store:
        assert store.voice("shared").recordings == 40
        assert len(store) == 41
        assert store.generation() == 80
        vectors = [item.vector.astype(np.float64) for item in store.enrolments("shared")]
        expected, _ = unit(np.mean(vectors, axis=0), "mean")
        np.testing.assert_allclose(dict(store.means())["shared"], expected, atol=1e-7)


def test_a_killed_enrolment_loses_nothing(location: str) -> None:
    process = start(HANG, location)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    with open_store(location, create=True) as store:
        assert [voice.name for voice in store.voices()] == ["kept"]
        store.add("after", [enrolment(2)], STAMP)
        assert len(store) == 2


def test_a_writer_that_hangs_is_not_waited_for(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import psycopg

    monkeypatch.setattr("speakerkit.verification.voiceprints.postgres.LONGEST_WAIT", "100ms")
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS speakerkit CASCADE")
        with open_store(postgres, create=True) as store, connection.transaction():
            connection.execute("UPDATE speakerkit.state SET generation = generation")
            with pytest.raises(DataError, match="lock timeout"):
                store.add("a", [enrolment(1)], STAMP)
            assert len(store) == 0


def test_what_a_server_holds_by_others(postgres: str) -> None:
    """NULL among the values, or none at all."""
    import psycopg

    for spoilt in ("'{}'", "ARRAY[NULL, 1, 0, 0, 0, 0, 0, 0]::REAL[]"):
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute("DROP SCHEMA IF EXISTS speakerkit CASCADE")
            with open_store(postgres, create=True) as store:
                store.add("a", [enrolment(1)], STAMP)
                connection.execute(f"UPDATE speakerkit.voices SET vector = {spoilt}")  # noqa: S608
                with pytest.raises(DataError, match="holds a voiceprint without 8 values"):
                    Searcher(store).nearest(enrolment(1).vector, 1)


def test_only_the_owner_reads_the_file(tmp_path: Path) -> None:
    open_store(tmp_path / "voices.db", create=True).close()
    assert stat.S_IMODE((tmp_path / "voices.db").stat().st_mode) == 0o600


def test_what_is_removed_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "voices.db"
    item = enrolment(1)
    with open_store(path, create=True) as store:
        store.add("a", [item], STAMP)
        store.add("b", [enrolment(2)], STAMP)
        store.remove("a")
        content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        assert item.vector.tobytes() not in content
        assert enrolment(2).vector.tobytes() in content


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = content.index(enrolment(1).vector.tobytes())
    content[place + 3] ^= 0x40
    path.write_bytes(content)


def _other_program(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE voices (id INTEGER)")
    connection.close()


def _later_format(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda path: path.write_bytes(b"this is no database" * 100), "is damaged or no database"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "damaged|cannot be used"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:4096] + bytes(len(path.read_bytes()) - 4096)),
            "damaged|used",
        ),
        (lambda path: path.write_bytes(b""), "is no database of voiceprints"),
        (_other_program, "is no database of voiceprints"),
        (_later_format, "is of format 99, not 1"),
        (_flip, "not of length one"),
        (lambda path: path.unlink(), "no such database"),
        (lambda path: (path.unlink(), path.mkdir()), "is a directory"),
    ],
    ids=["text", "cut", "zeros", "empty", "other program", "later format", "a bit", "missing", "folder"],
)
def test_a_damaged_file_is_told_in_one_line(tmp_path: Path, spoil: Callable[[Path], object], fault: str) -> None:
    path = tmp_path / "voices.db"
    with open_store(path, create=True) as store:
        store.add("a", [enrolment(1)], STAMP)
    spoil(path)
    with pytest.raises(DataError, match=fault) as caught:
        _read_all(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def _read_all(path: Path) -> None:
    with open_store(path) as store:
        store.voices()
        Searcher(store).nearest(enrolment(1).vector, 1)
        Searcher(store, "exemplars").nearest(enrolment(1).vector, 1)


def test_a_file_of_a_name_that_sqlite_takes_for_another_thing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (":memory:", "file:x?mode=memory"):
        with open_store(name, create=True) as store:
            store.add("a", [enrolment(1)], STAMP)
        with open_store(name) as store:
            assert "a" in store


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be opened"):
        open_store(tmp_path / "none" / "voices.db", create=True)


@pytest.mark.parametrize("name", ["", " a", "a ", "a\nb", "a\tb", "unknown", "x" * 201, "\udcff"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ConfigError):
        check_name(name)


def test_names_that_can_be() -> None:
    for name in ("a", "Ana Ng", "日本", "O'Neil; DROP TABLE voices", "Zo\u00eb", "100 %"):
        assert check_name(name) == name


@pytest.mark.parametrize("vector", [np.zeros(3), np.full(3, np.nan), np.full(3, np.inf)])
def test_what_has_no_direction(vector: np.ndarray) -> None:
    with pytest.raises(DataError, match="without a direction"):
        unit(vector, "x.wav")


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://me:secret@127.0.0.1:1/voices"
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"speakerkit\[postgres\]"):
        open_store(url)
    monkeypatch.undo()
    pytest.importorskip("psycopg")
    with pytest.raises(DataError, match=r"^postgresql://me@127.0.0.1:1/voices: cannot be used") as caught:
        open_store(url)
    assert "secret" not in str(caught.value)
    for bad in ("postgresql://me:secret@[::1/voices", "postgresql://me:secret@host:port/voices?x"):
        with pytest.raises(DataError, match="cannot be used") as caught:
            open_store(bad)
        assert "secret" not in str(caught.value)


def test_a_server_without_voiceprints(postgres: str) -> None:
    import psycopg

    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS speakerkit CASCADE")
    with pytest.raises(NoDatabase, match="holds no voiceprints") as caught:
        open_store(postgres)
    assert "secret" not in str(caught.value)
