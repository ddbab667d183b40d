"""Every bad recording through every command that reads recordings.

A later command joins with a row in ``COMMANDS``; a later input with a row in ``inputs.BAD_AUDIO``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from speakerkit.data.ark import read_embeddings
from tests.command import Ran, speakerkit
from tests.conftest import speech_like
from tests.hostile.inputs import BAD_AUDIO, MAY_WORK, ODD_AUDIO, RATE, AudioInput, encoded

DEPTHS = ("header", "decoding", "signal")  # how far a command looks into a recording
TRAINING = """
exp_dir: {exp}
data: {{train: {train}, batch_size: 2, chunk_frames: 200, speeds: [1.0], workers: 0}}
model: {{name: ECAPA_TDNN, args: {{channels: 8, embed_dim: 8, joined: 16}}}}
trainer: {{steps: 1, device: cpu, log_every: 1}}
"""


@dataclass(frozen=True)
class Place:
    """Where a command works: a folder of its own, the recording in question, two good ones, and a model."""

    folder: Path
    bad: Path
    good: tuple[Path, Path]
    model: Path

    def scp(self, *paths: Path) -> Path:
        """A Kaldi directory's wav.scp (with utt2spk beside it) of these recordings, keys a, b, c."""
        folder = self.folder / "data"
        folder.mkdir(exist_ok=True)
        (folder / "wav.scp").write_text("".join(f"{key} {path}\n" for key, path in zip("abc", paths, strict=False)))
        (folder / "utt2spk").write_text("".join(f"{key} s{key}\n" for key, _ in zip("abc", paths, strict=False)))
        return folder / "wav.scp"

    def corpus(self) -> Path:
        """A folder a speaker, the recording in question among good ones."""
        root = self.folder / "corpus"
        for speaker, path in zip(("one", "two"), (self.good[0], self.bad), strict=True):
            (root / speaker).mkdir(parents=True)
            (root / speaker / path.name).symlink_to(path)
        return root

    def config(self) -> Path:
        """An experiment that trains on the recording in question alone."""
        listing = self.folder / "raw.list"
        listing.write_text(json.dumps({"key": "a", "spk": "s", "wav": str(self.bad)}) + "\n", encoding="utf-8")
        path = self.folder / "conf.yaml"
        path.write_text(TRAINING.format(exp=self.folder / "exp", train=listing))
        return path


@dataclass(frozen=True)
class Command:
    """A command that is given the recording.

    Attributes:
        sees: how far it looks: what takes more to notice passes.
        code: its exit code where it notices.
        tells: where it names the recording: "stderr", "stdout" (a report), or a file beside its output.
        left: what must not be there after it refused, or must hold the good part of a batch.
    """

    name: str
    arguments: Callable[[Place], list[object]]
    sees: str = "signal"
    code: int = 2
    tells: str = "stderr"
    check: Callable[[Place], None] = lambda place: None


def _absent(name: str) -> Callable[[Place], None]:
    def check(place: Place) -> None:
        assert not (place.folder / name).exists()

    return check


def _voices(place: Place, command: str, *arguments: object) -> list[object]:
    return [command, "-m", place.model, "--db", place.folder / "voices.db", "--", *arguments]


def _enrolled(place: Place, command: str, *arguments: object) -> list[object]:
    """A command on a database that holds the voice "a"."""
    assert speakerkit(*_voices(place, "enroll", "a", place.good[0])).code == 0
    return _voices(place, command, *arguments)


def _rest_was_written(place: Place) -> None:
    embeddings = read_embeddings(place.folder / "emb.npz")
    assert embeddings.keys == ["a", "c"]


COMMANDS = (
    Command("embed", lambda p: ["embed", "-m", p.model, "--", p.bad]),
    Command(
        "embed --out", lambda p: ["embed", "-m", p.model, p.bad, "--out", p.folder / "x.npy"], check=_absent("x.npy")
    ),
    Command(
        "embed --scp",
        lambda p: ["embed", "-m", p.model, "--scp", p.scp(p.good[0], p.bad, p.good[1]), "--out", p.folder / "emb.npz"],
        code=3,
        tells="failed.tsv",
        check=_rest_was_written,
    ),
    Command("similarity, first", lambda p: ["similarity", "-m", p.model, "--", p.bad, p.good[0]]),
    Command("similarity, second", lambda p: ["similarity", "-m", p.model, "--json", "--", p.good[0], p.bad]),
    Command("enroll", lambda p: _voices(p, "enroll", "x", p.good[0], p.bad), check=_absent("voices.db")),
    Command("verify, first", lambda p: ["verify", "-m", p.model, "--", p.bad, p.good[0]]),
    Command("verify, second", lambda p: ["verify", "-m", p.model, "--threshold", -1, "--", p.good[0], p.bad]),
    Command("verify, a voice", lambda p: _enrolled(p, "verify", "a", p.bad)),
    Command("identify", lambda p: _enrolled(p, "identify", p.bad)),
    Command(
        "data prepare",
        lambda p: ["data", "prepare", "folder", p.corpus(), p.folder / "out"],
        sees="header",
        code=3,
        tells="out/failed.tsv",
    ),
    Command(
        "data shards",
        lambda p: ["data", "shards", p.scp(p.good[0], p.bad).parent, p.folder / "out", "--workers", 1],
        sees="header",
        check=_absent("out/shard.list"),
    ),
    Command(
        "data lmdb",
        lambda p: ["data", "lmdb", p.scp(p.good[0], p.bad), p.folder / "store"],
        sees="header",
        check=_absent("store"),
    ),
    Command("data check", lambda p: ["data", "check", p.scp(p.good[0], p.bad).parent], sees="header", tells="stdout"),
    Command(
        "data check --decode",
        lambda p: ["data", "check", "--decode", p.scp(p.good[0], p.bad).parent],
        sees="decoding",
        tells="stdout",
    ),
    Command(
        "train", lambda p: ["train", p.config()], sees="decoding", check=_absent("exp/checkpoints/step_00000001.pt")
    ),
)


@pytest.fixture
def place(tmp_path: Path, onnx_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[AudioInput], Place]:
    def make(case: AudioInput) -> Place:
        recordings = tmp_path / "recordings"
        recordings.mkdir()
        good = tuple(recordings / f"good{number}.wav" for number in range(2))
        for path in good:
            path.write_bytes(encoded("WAV"))
        case.write(recordings / case.name)
        work = tmp_path / "work"
        work.mkdir()
        return Place(work, recordings / case.name, good, onnx_bundle)

    return make


@pytest.mark.timeout(60)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
@pytest.mark.parametrize("case", BAD_AUDIO, ids=lambda case: case.name)
def test_bad_recording_is_refused(case: AudioInput, command: Command, place: Callable[[AudioInput], Place]) -> None:
    where = place(case)
    ran = speakerkit(*command.arguments(where))
    if DEPTHS.index(case.shown_by) > DEPTHS.index(command.sees):
        assert ran.code in (0, 2), ran
        return
    if case.name == "directory.wav" and command.name == "data prepare":
        assert ran.code == 0  # a folder inside a speaker's folder
        return
    assert ran.code == command.code, ran
    if command.tells == "stdout":
        assert case.name in ran.out
        return
    assert len(ran.errors) == 1, ran.err
    assert ran.out == "" or command.code == 3
    told = ran.errors[0] if command.tells == "stderr" else (where.folder / command.tells).read_text(encoding="utf-8")
    assert case.name in told
    assert re.search(case.fault, told), told
    command.check(where)


@pytest.mark.parametrize("case", ODD_AUDIO, ids=lambda case: case.name)
@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.name not in ("data check", "embed --out")], ids=lambda command: command.name
)
def test_odd_recording_works(case: AudioInput, command: Command, place: Callable[[AudioInput], Place]) -> None:
    ran = speakerkit(*command.arguments(place(case)))
    assert ran.code == 0, ran
    assert ran.errors == []
    assert "nan" not in ran.out.lower()


@pytest.mark.parametrize("case", MAY_WORK, ids=lambda case: case.name)
def test_damage_that_decoders_survive(case: AudioInput, place: Callable[[AudioInput], Place]) -> None:
    ran = speakerkit(*COMMANDS[0].arguments(place(case)))
    assert ran.code == 0 or re.search(case.fault, ran.errors[0])
    if ran.code == 0:
        assert np.isfinite(json.loads(ran.out)["embedding"]).all()


def test_earlier_output_is_kept(place: Callable[[AudioInput], Place]) -> None:
    """A run that fails as a whole leaves what an earlier one wrote."""
    where = place(BAD_AUDIO[0])
    out = where.folder / "emb.npz"
    assert speakerkit("embed", "-m", where.model, where.good[0], "--out", out).code == 0
    before = out.read_bytes()
    assert speakerkit("embed", "-m", where.model, where.bad, "--out", out).code == 2
    assert out.read_bytes() == before


@pytest.mark.parametrize("short", ["error", "pad"])
def test_lengths_from_one_sample_up(tmp_path: Path, onnx_bundle: Path, short: str) -> None:
    """No length gives a NaN: it is an embedding, or one line that says why not."""
    from speakerkit.embedding.embedder import load
    from speakerkit.errors import AudioError

    embedder = load(onnx_bundle, "cpu")
    noise = speech_like(1.0)
    for length in sorted(
        {1, 2, 3, 159, 399, 400, 401, 4799, 4800, RATE, *np.random.default_rng(0).integers(1, RATE, 40)}
    ):
        try:
            vector = embedder.embed(noise[: int(length)], rate=RATE, short=short)
        except AudioError as error:
            reason = str(error)
        else:
            reason = ""
            assert np.isfinite(vector).all()
        assert bool(reason) == (length < 4800 and (short == "error" or "silent" in reason)), (length, reason)
        assert not reason or re.search("lasts|silent|too short", reason)


def test_unreadable_by_permission(tmp_path: Path, onnx_bundle: Path) -> None:
    path = tmp_path / "secret.wav"
    path.write_bytes(encoded("WAV"))
    path.chmod(0)
    try:
        path.read_bytes()
    except PermissionError:
        ran: Ran = speakerkit("embed", "-m", onnx_bundle, path)
        assert ran.code == 2
        assert "secret.wav" in ran.errors[0]
    else:
        pytest.skip("this user may read everything")
