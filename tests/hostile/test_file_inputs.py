"""Every bad list, configuration, model, checkpoint, shard, store and score file through the commands that read it.

A later command joins with rows in ``CASES``: a name, the arguments (made in an empty folder), what the message says.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.command import Ran, speakerkit
from tests.hostile.inputs import (
    DEEP,
    JUNK,
    LONG_LINE,
    YAML_BOMB,
    encoded,
    shard,
    trap_pickle,
    yaml_that_runs,
)
from tests.hostile.test_audio_inputs import TRAINING


@dataclass(frozen=True)
class Place:
    """A folder to work in, with a good recording, a good model, and a file that must never appear."""

    folder: Path
    wav: Path
    model: Path
    sentinel: Path

    def file(self, name: str, content: str | bytes) -> Path:
        """Write a file and return its path."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def data(self, wav_scp: str | bytes, utt2spk: str | bytes = "a s1\nb s2\n") -> Path:
        """A Kaldi directory."""
        self.file("data/wav.scp", wav_scp)
        return self.file("data/utt2spk", utt2spk).parent

    def bundle(self, **replaced: str | bytes) -> Path:
        """A copy of the good model with some of its files replaced; ``onnx=b""`` and so on, ``None`` removes one."""
        path = self.folder / "bundle"
        shutil.copytree(self.model, path)
        names = {
            "config": "config.yaml",
            "weights": "model.safetensors",
            "onnx": "model.onnx",
            "calibration": "calibration.json",
        }
        for kind, content in replaced.items():
            (path / names[kind]).unlink(missing_ok=True)
            if content is not None:
                self.file(f"bundle/{names[kind]}", content)
        return path

    def configured(self, old: str, new: str) -> Path:
        """A copy of the good model with a piece of its configuration replaced."""
        text = (self.model / "config.yaml").read_text()
        assert old in text
        return self.bundle(config=text.replace(old, new))

    def wespeaker(self, checkpoint: bytes, **changed: object) -> Path:
        """A folder of WeSpeaker with this as its checkpoint."""
        args = {"feat_dim": 80, "embed_dim": 8}
        values = {"model": "ResNet18", "model_args": args, "exp_dir": "x", **changed}
        self.file("theirs/config.yaml", json.dumps(values))
        return self.file("theirs/avg_model.pt", checkpoint).parent

    def experiment(self, train: Path | None = None, **changed: str) -> Path:
        """An experiment on ``train``, with lines of its configuration replaced or added."""
        listing = train or self.file("raw.list", self.row("a") + self.row("b"))
        lines = TRAINING.format(exp=self.folder / "exp", train=listing).strip().splitlines()
        lines = [line for line in lines if line.partition(":")[0] not in changed]
        lines += [f"{key}: {value}" for key, value in changed.items()]
        return self.file("conf.yaml", "\n".join(lines) + "\n")

    def row(self, key: str, **changed: object) -> str:
        """A line of a raw list."""
        return json.dumps({"key": key, "spk": f"s{key}", "wav": str(self.wav), **changed}) + "\n"

    def shards(self, tar: Path, **data: str) -> Path:
        """An experiment on one shard."""
        listing = self.file("shard.list", f"{tar}\n")
        return self.experiment(
            data=f"{{train: {listing}, format: shard, batch_size: 2, chunk_frames: 200, speeds: [1.0], workers: 0}}"
        )

    def noise(self, store: Path) -> Path:
        """An experiment with a noise store."""
        listing = self.file("raw.list", self.row("a") + self.row("b"))
        return self.experiment(
            data=f"{{train: {listing}, noise: {store}, augment: [{{name: add_noise}}], batch_size: 2, workers: 0}}"
        )

    def lmdb(self, **entries: bytes) -> Path:
        """An LMDB store with these entries."""
        import lmdb

        path = self.folder / "store"
        with lmdb.open(str(path), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
            for key, value in entries.items():
                transaction.put(key.encode(), value)
        return path

    def embeddings(self) -> Path:
        """Good embeddings of a and b."""
        path = self.folder / "good.npz"
        np.savez(path, keys=np.array(["a", "b"]), embeddings=np.eye(2, dtype=np.float32))
        return path

    def experiment_folder(self, checkpoint: bytes) -> Path:
        """What a training would leave, with this as its checkpoint."""
        path = self.experiment()
        self.file("exp/config.yaml", path.read_bytes())
        return self.file("exp/checkpoints/step_00000001.pt", checkpoint).parent.parent


Arguments = Callable[[Place], list[object]]


@dataclass(frozen=True)
class Case:
    """A command line, the file that its message names, what it says about it, and the exit code."""

    name: str
    arguments: Arguments
    names: str
    fault: str
    code: int = 2


def _embed(scp: str | bytes, *more: object) -> Arguments:
    return lambda p: ["embed", "-m", p.model, "--scp", p.file("wav.scp", scp), *more]


def _scored(content: str | bytes, name: str) -> Arguments:
    return lambda p: ["score", "cosine", p.file(name, content), p.file("t", "a b target\n"), p.folder / "scores"]


def _tried(trials: str | bytes) -> Arguments:
    return lambda p: ["score", "cosine", p.embeddings(), p.file("trials", trials), p.folder / "scores"]


def _measured(scores: str | bytes) -> Arguments:
    return lambda p: ["metrics", p.file("measured", scores)]


def _told(utt2spk: str) -> Arguments:
    scores = "a b 0.5 target\na c 0.1 nontarget\n"
    return lambda p: ["metrics", p.file("measured", scores), "--bootstrap", 9, "--utt2spk", p.file("utt2spk", utt2spk)]


def _modelled(make: Callable[[Place], Path]) -> Arguments:
    return lambda p: ["embed", "-m", make(p), p.wav]


def _tuned(place: Place, init: Path, data: Path | None = None) -> list[object]:
    listing = data or place.file("raw.list", place.row("a") + place.row("b"))
    return ["finetune", "--init", init, "--data", listing, "--out", place.folder / "exp"]


def _taught(place: Place, teacher: Path, more: str = "") -> list[object]:
    return ["train", place.experiment(distillation=f"{{teacher: '{teacher}'{more}}}")]


def _imported(make: Callable[[Place], Path]) -> Arguments:
    return lambda p: ["import", make(p), p.folder / "scores"]


def speechbrain_like() -> bytes:
    """A checkpoint with the tensors that sizes are read off."""
    import io

    import torch

    names = ("blocks.0.conv.conv.weight", "fc.conv.weight", "mfa.conv.conv.weight", "asp.conv.conv.weight")
    stream = io.BytesIO()
    torch.save({name: torch.zeros(8, 8, 1) for name in names}, stream)
    return stream.getvalue()


def _object_array(sentinel: Path) -> bytes:
    import io

    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    return stream.getvalue() + trap_pickle(sentinel)


LISTS = (
    Case("empty scp", _embed(""), "wav.scp", "names no recordings"),
    Case("scp of blank lines", _embed("\n \n\t\n"), "wav.scp", "names no recordings"),
    Case("scp with one column", _embed("a /x.wav\nb\n"), "wav.scp", "line 2 has one column"),
    Case("scp with a duplicate", _embed("a /x.wav\na /y.wav\n"), "wav.scp", "'a' comes twice"),
    Case("scp with junk", _embed(JUNK), "wav.scp", "cannot be read as text"),
    Case("scp with a long line", _embed(LONG_LINE), "wav.scp", "one column"),
    Case("scp that is a folder", lambda p: ["embed", "-m", p.model, "--scp", p.folder], "work", "is a directory"),
    Case("scp that is missing", lambda p: ["embed", "-m", p.model, "--scp", p.folder / "no.scp"], "no.scp", "no such"),
    Case(
        "scp with a command",
        lambda p: _embed(f"a touch {p.sentinel}; cat {p.wav} |\n")(p),
        "wav.scp",
        "is a command, which would be run",
    ),
    Case("scp with pipe:", lambda p: _embed(f"a pipe:touch {p.sentinel}\n")(p), "wav.scp", "is a command"),
    Case("a file called like a command", lambda p: ["embed", "-m", p.model, f"touch {p.sentinel} |"], "|", "no such"),
    Case(
        "similarity of a command",
        lambda p: ["similarity", "-m", p.model, p.wav, f"touch {p.sentinel} |"],
        "|",
        "no such",
    ),
    Case("a path too long", lambda p: ["embed", "-m", p.model, "x" * 5000 + ".wav"], "xxx", "File name too long"),
    Case("a path too long in a scp", _embed(f"a {'x' * 5000}.wav\n"), "xxx", "File name too long"),
    Case("a file named twice", lambda p: ["embed", "-m", p.model, p.wav, p.wav], "good.wav", "named twice"),
    Case("raw: a duplicate", lambda p: ["data", "raw", p.data("a x\na y\n"), p.folder / "o"], "wav.scp", "comes twice"),
    Case(
        "raw: a duplicate in utt2spk",
        lambda p: ["data", "raw", p.data("a x\nb y\n", "a s\na t\n"), p.folder / "o"],
        "utt2spk",
        "comes twice",
    ),
    Case(
        "raw: two speakers of one utterance",
        lambda p: ["data", "raw", p.data("a x\n", "a s t\n"), p.folder / "o"],
        "utt2spk",
        "hold no blanks",
    ),
    Case("raw: one column", lambda p: ["data", "raw", p.data("a\n"), p.folder / "o"], "wav.scp", "one column"),
    Case("raw: junk", lambda p: ["data", "raw", p.data("a x\n", JUNK), p.folder / "o"], "utt2spk", "as text"),
    Case(
        "raw: a command",
        lambda p: ["data", "raw", p.data(f"a touch {p.sentinel} |\n"), p.folder / "o"],
        "wav.scp",
        "command",
    ),
    Case(
        "raw: lists that disagree", lambda p: ["data", "raw", p.data("a x\nc x\n"), p.folder / "o"], "data", "lacks 1"
    ),
    Case("raw: no folder", lambda p: ["data", "raw", p.folder / "none", p.folder / "o"], "none", "no such file"),
    Case(
        "raw: empty lists",
        lambda p: ["data", "raw", p.data("", ""), p.folder / "o"],
        "data",
        "no (utterances|recordings)",
    ),
    Case(
        "shards: empty lists", lambda p: ["data", "shards", p.data("", ""), p.folder / "o"], "wav.scp", "no recordings"
    ),
    Case(
        "shards: a command",
        lambda p: ["data", "shards", p.data(f"a touch {p.sentinel} |\n", "a s\n"), p.folder / "o"],
        "wav.scp",
        "command",
    ),
    Case(
        "shards: an id that leaves the tar",
        lambda p: ["data", "shards", p.data(f"../a {p.wav}\n", "../a s\n"), p.folder / "o"],
        "/o",
        r"unsafe name '\.\./a'",
    ),
    Case(
        "shards: junk list",
        lambda p: ["data", "shards", p.file("raw.list", JUNK), p.folder / "o"],
        "raw.list",
        "as text",
    ),
    Case(
        "shards: nested list",
        lambda p: ["data", "shards", p.file("raw.list", DEEP), p.folder / "o"],
        "raw.list",
        "line 1",
    ),
    Case(
        "shards: a row without speaker",
        lambda p: ["data", "shards", p.file("raw.list", p.row("a", spk=None)), p.folder / "o"],
        "raw.list",
        "spk",
    ),
    Case(
        "shards: a key with blanks",
        lambda p: ["data", "shards", p.file("raw.list", p.row("a b")), p.folder / "o"],
        "raw.list",
        "blanks",
    ),
    Case(
        "shards: a segment that is no time",
        lambda p: ["data", "shards", p.file("raw.list", p.row("a", vad=[["nan", "1"]])), p.folder / "o"],
        "raw.list",
        "vad segment",
    ),
    Case("lmdb: empty list", lambda p: ["data", "lmdb", p.file("s.scp", ""), p.folder / "o"], "/o", "no recordings"),
    Case("lmdb: no such folder", lambda p: ["data", "lmdb", p.folder / "none", p.folder / "o"], "none", "no such"),
    Case(
        "lmdb: a command",
        lambda p: ["data", "lmdb", p.file("s.scp", f"a touch {p.sentinel} |\n"), p.folder / "o"],
        "s.scp",
        "command",
    ),
    Case(
        "lmdb: onto something else",
        lambda p: ["data", "lmdb", p.file("s.scp", f"a {p.wav}\n"), p.file("precious/notes.txt", "x").parent],
        "precious",
        "is no LMDB store",
    ),
    Case(
        "holdout: a duplicate", lambda p: ["data", "holdout", p.data("a x\na y\n"), p.folder / "o"], "wav.scp", "twice"
    ),
    Case(
        "prepare: no folder", lambda p: ["data", "prepare", "folder", p.folder / "no", p.folder / "o"], "no", "no such"
    ),
    Case(
        "prepare: nothing there",
        lambda p: ["data", "prepare", "folder", p.folder, p.folder / "o"],
        "work",
        "nothing like",
    ),
    Case(
        "prepare: no such corpus", lambda p: ["data", "prepare", "foldr", p.folder, p.folder / "o"], "foldr", "'folder'"
    ),
    Case("check: no folder", lambda p: ["data", "check", p.folder / "none"], "none", "no such"),
    Case("check: junk", lambda p: ["data", "check", p.data(JUNK)], "wav.scp", "as text"),
)

SCORING = (
    Case("trials: empty", _tried(""), "trials", "no trials"),
    Case("trials: junk", _tried(JUNK), "trials", "as text"),
    Case("trials: unknown label", _tried("a b maybe\n"), "trials", "unknown label 'maybe'"),
    Case("trials: one column", _tried("a\n"), "trials", "1 columns"),
    Case("trials: key without embedding", _tried("a c target\n"), "good.npz", "no embedding for 'c'"),
    Case("trials: long line", _tried(LONG_LINE), "trials", "columns"),
    Case("embeddings: junk npz", _scored(JUNK, "e.npz"), "e.npz", "cannot be read"),
    Case("embeddings: junk npy", _scored(JUNK, "e.npy"), "e.npy", "cannot be read"),
    Case("embeddings: junk ark", _scored(JUNK, "e.ark"), "e.ark", "Kaldi"),
    Case("embeddings: junk scp", _scored(JUNK, "e.scp"), "e.scp", "as text"),
    Case("embeddings: junk jsonl", _scored(JUNK, "e.jsonl"), "e.jsonl", "as text"),
    Case("embeddings: nested jsonl", _scored(DEEP, "e.jsonl"), "e.jsonl", "not an embedding"),
    Case("embeddings: NaN", _scored('{"key": "a", "embedding": [NaN, 1]}\n', "e.jsonl"), "e.jsonl", "NaN"),
    Case(
        "embeddings: zero",
        _scored('{"key": "a", "embedding": [0]}\n{"key": "b", "embedding": [1]}\n', "e.jsonl"),
        "e.jsonl",
        "no direction",
    ),
    Case("embeddings: unknown suffix", _scored(JUNK, "e.bin"), "e.bin", "suffix"),
    Case("embeddings: empty", _scored("", "e.jsonl"), "e.jsonl", "no embeddings"),
    Case(
        "embeddings: a pickle as npy", lambda p: _scored(trap_pickle(p.sentinel), "e.npy")(p), "e.npy", "cannot be read"
    ),
    Case(
        "embeddings: an object array",
        lambda p: _scored(_object_array(p.sentinel), "e.npy")(p),
        "e.npy",
        "cannot be read",
    ),
    Case(
        "embeddings: a pickle as npz", lambda p: _scored(trap_pickle(p.sentinel), "e.npz")(p), "e.npz", "cannot be read"
    ),
    Case(
        "embeddings: a pickle in an ark",
        lambda p: _scored(b"a PKL" + trap_pickle(p.sentinel), "e.ark")(p),
        "e.ark",
        "not a Kaldi vector",
    ),
    Case(
        "embeddings: a command in a scp", lambda p: _scored(f"a touch {p.sentinel} |\n", "e.scp")(p), "e.scp", "command"
    ),
    Case(
        "mean: a pickle",
        lambda p: [
            "score",
            "cosine",
            p.embeddings(),
            p.file("t", "a b\n"),
            p.folder / "o",
            "--mean",
            p.file("m.npy", trap_pickle(p.sentinel)),
        ],
        "m.npy",
        "cannot be read",
    ),
    Case("metrics: empty", _measured(""), "measured", "no trials"),
    Case("metrics: junk", _measured(JUNK), "measured", "as text"),
    Case("metrics: NaN", _measured("a b nan target\na c 0.1 nontarget\n"), "measured", "no finite score"),
    Case("metrics: one class", _measured("a b 0.5 target\n"), "measured", "nontarget"),
    Case("metrics: no labels", _measured("a b 0.5\n"), "measured", "label"),
    Case("metrics: long line", _measured(LONG_LINE), "measured", "columns"),
)

GOOD_SCORES = "a b 0.9 target\na c 0.1 nontarget\nb c 0.4 target\na d 0.5 nontarget\n"
GOOD_MAP = (
    '{"format": "speakerkit-scoremap-1", "kind": "linear", "columns": ["s"], "systems": 1, "weights": [1], "offset": 0}'
)


def _ratios(score_map: str | bytes, *more: str) -> Arguments:
    return lambda p: ["score", "llr", p.file("m.json", score_map), p.folder / "scores", p.file("s", GOOD_SCORES), *more]


def _fitted(*scores: str | bytes) -> Arguments:
    return lambda p: ["score", "fit", p.folder / "scores", *(p.file(f"s{n}", s) for n, s in enumerate(scores))]


def _weighed(table: str | bytes) -> Arguments:
    return lambda p: [*_fitted(GOOD_SCORES)(p), "--quality", p.file("q.tsv", table)]


def _calibrated(trials: str | bytes, *more: object) -> Arguments:
    return lambda p: [
        "calibrate",
        *("-m", p.model, "--scp", p.file("wav.scp", f"a {p.wav}\nb {p.wav}\n"), "--trials", p.file("dev", trials)),
        *more,
    ]


def _decided(calibration: str | bytes) -> Arguments:
    return lambda p: ["similarity", "-m", p.bundle(calibration=calibration), p.wav, p.wav]


CALIBRATIONS = (
    Case("calibration: nested", _decided(DEEP), "calibration.json", "no threshold"),
    Case("calibration: a list", _decided("[1, 2]"), "calibration.json", "no threshold"),
    Case(
        "calibration: a map of text",
        _decided('{"threshold": 0.1, "source": "x", "llr": {"scale": "one", "offset": 0}}'),
        "calibration.json",
        "no threshold",
    ),
    Case(
        "calibration: of other weights",
        _decided(f'{{"threshold": 0.1, "source": "x", "model_sha256": "{"0" * 64}"}}'),
        "calibration.json",
        "of other weights",
    ),
    Case(
        "calibration: a digest cut short",
        _decided('{"threshold": 0.1, "source": "x", "model_sha256": "0"}'),
        "calibration.json",
        "no threshold",
    ),
    Case(
        "calibration: a ratio of infinity",
        _decided('{"threshold": 0.1, "source": "x", "llr": {"scale": 1e308, "offset": 1e308}}'),
        "calibration.json",
        "no threshold",
    ),
    Case(
        "similarity: a threshold of NaN",
        lambda p: ["similarity", "-m", p.model, p.wav, p.wav, "--threshold", "nan"],
        "--threshold",
        "Invalid value",
    ),
    Case("calibrate: no trials", _calibrated(""), "dev", "no trials"),
    Case("calibrate: junk", _calibrated(JUNK), "dev", "as text"),
    Case("calibrate: no labels", _calibrated("a b\n"), "dev", "no labels"),
    Case("calibrate: one class", _calibrated("a b target\n"), "dev", "0 nontarget"),
    Case("calibrate: a trial with itself", _calibrated("a a target\na b nontarget\n"), "dev", "with itself"),
    Case("calibrate: an unknown recording", _calibrated("a x target\na b nontarget\n"), "wav.scp", "does not list 'x'"),
    Case("calibrate: scores all alike", _calibrated("a b target\nb a nontarget\n"), "dev", "same in all trials"),
    Case("calibrate: a rate of two", _calibrated("a b target\nb a nontarget\n", "--far", 2), "FAR", "2.0 was asked"),
    Case("calibrate: a prior of one", _calibrated("a b target\nb a nontarget\n", "--prior", 1), "calibration", "prior"),
    Case("fit: junk", _fitted(JUNK), "s0", "as text"),
    Case("fit: no labels", _fitted("a b 0.5\n"), "s0", "no labels"),
    Case("fit: one class", _fitted("a b 0.5 target\n"), "s0", "0 nontarget"),
    Case("fit: upside down", _fitted("a b 0.1 target\na c 0.9 nontarget\n"), "s0", "do not mean the same"),
    Case("fit: one trial", _fitted("a b 0.1 target\n"), "s0", "0 nontarget"),
    Case("fit: NaN", _fitted("a b nan target\na c 0.9 nontarget\n"), "s0", "no finite score"),
    Case("fit: scores all alike", _fitted("a b 0.5 target\na c 0.5 nontarget\n"), "s0", "the same in all trials"),
    Case("fit: wild scores", _fitted("a b 1e308 target\na c -1e308 nontarget\n"), "s0", r"beyond 1e\+100"),
    Case("fit: other trials", _fitted(GOOD_SCORES, GOOD_SCORES.replace("b c", "b x")), "s1", "trial 3 is not that"),
    Case("fit: fewer trials", _fitted(GOOD_SCORES, "a b 0.9 target\n"), "s1", "has 1 trials"),
    Case("fit: junk measures", _weighed(JUNK), "q.tsv", "as text"),
    Case("fit: no measures", _weighed(""), "q.tsv", "no table"),
    Case("fit: a measure of words", _weighed("key\tx\na\tlong\n"), "q.tsv", "line 2"),
    Case("fit: a recording not measured", _weighed("key\tx\na\t1\nb\t2\n"), "q.tsv", "no measures of 'c'"),
    Case(
        "llr: no map", lambda p: ["score", "llr", p.folder / "none", p.folder / "scores", p.wav], "none", "no such file"
    ),
    Case("llr: junk", _ratios(JUNK), "m.json", "no map"),
    Case("llr: nested", _ratios(DEEP), "m.json", "no map"),
    Case("llr: a pickle", lambda p: _ratios(trap_pickle(p.sentinel))(p), "m.json", "no map"),
    Case("llr: a weight of infinity", _ratios(GOOD_MAP.replace("[1]", "[Infinity]")), "m.json", "no map"),
    Case("llr: a weight beyond reason", _ratios(GOOD_MAP.replace("[1]", "[1e308]")), "m.json", "no map"),
    Case("llr: one system too many", _ratios(GOOD_MAP.replace('1, "w', '2, "w')), "m.json", "no map"),
    Case(
        "quality: durations of words",
        lambda p: ["score", "quality", p.embeddings(), p.folder / "scores", "--utt2dur", p.file("d", "a long\nb 2\n")],
        "d",
        "'long'",
    ),
    Case(
        "quality: a duration of nothing",
        lambda p: ["score", "quality", p.embeddings(), p.folder / "scores", "--utt2dur", p.file("d", "a 0\nb 2\n")],
        "durations",
        "must be positive",
    ),
    Case(
        "quality: a command",
        lambda p: [
            *("score", "quality", p.embeddings(), p.folder / "scores"),
            *("--scp", p.file("w", f"a touch {p.sentinel} |\nb {p.wav}\n")),
        ],
        "w",
        "is a command",
    ),
    Case(
        "draw-trials: no durations",
        lambda p: ["score", "draw-trials", p.data(f"a {p.wav}\n", "a s\nb t\n"), p.folder / "scores"],
        "durations",
        "none is known of 'b'",
    ),
    Case(
        "draw-trials: nobody twice",
        lambda p: ["score", "draw-trials", p.data(f"a {p.wav}\nb {p.wav}\n"), p.folder / "scores"],
        "trials",
        "no two recordings",
    ),
    Case(
        "draw-trials: durations of NaN",
        lambda p: [
            *("score", "draw-trials", p.data(f"a {p.wav}\nb {p.wav}\n", "a s\nb s\n")),
            p.file("data/utt2dur", "a nan\nb 3\n").with_name("scores"),
        ],
        "utt2dur",
        "'nan'",
    ),
    Case("metrics: wild scores", _measured("a b 1e308 target\na c -1e308 nontarget\n"), "measured", r"beyond 1e\+100"),
    Case("metrics: contradicted speakers", _told("a s\nb t\nc s\n"), "measured", "contradict"),
    Case("metrics: unknown speakers", _told("a s\n"), "measured", "no speaker is known of"),
)


def _voices(content: str | bytes, *command: object) -> Arguments:
    return lambda p: [*command, "--db", p.file("voices.db", content)]


def _import_of_nan(place: Place) -> list[object]:
    place.file("good.model.json", '{"sha256": "c", "dimension": 2}')
    place.file("good.voices.jsonl", '{"key": "a", "name": "a", "seconds": NaN}\n')
    return ["voices", "import", place.embeddings(), "--db", place.folder / "v.db"]


VOICES = (
    Case("voices: junk", _voices(JUNK, "voices", "list"), "voices.db", "is damaged or no database"),
    Case("voices: an empty file", _voices("", "voices", "show", "a"), "voices.db", "is no database of voiceprints"),
    Case("voices: a text", _voices(LONG_LINE, "voices", "remove", "a"), "voices.db", "is damaged or no database"),
    Case("voices: none", lambda p: ["voices", "list", "--db", p.folder / "none"], "none", "no such database"),
    Case("voices: a folder", lambda p: ["voices", "list", "--db", p.folder], "work", "is a directory"),
    Case(
        "voices: no folder", lambda p: ["voices", "import", p.embeddings(), "--db", p.folder / "x/y"], "good", "model"
    ),
    Case(
        "enroll: junk",
        lambda p: ["enroll", "-m", p.model, "a", p.wav, "--db", p.file("voices.db", JUNK)],
        "voices.db",
        "is damaged or no database",
    ),
    Case(
        "identify: junk",
        lambda p: ["identify", "-m", p.model, p.wav, "--db", p.file("voices.db", JUNK)],
        "voices.db",
        "is damaged or no database",
    ),
    Case(
        "verify: junk",
        lambda p: ["verify", "-m", p.model, "a", p.wav, "--db", p.file("voices.db", JUNK)],
        "voices.db",
        "is damaged or no database",
    ),
    Case(
        "verify: a command",
        lambda p: ["verify", "-m", p.model, p.wav, f"touch {p.sentinel} |"],
        "|",
        "no such file",
    ),
    Case(
        "verify: neither a voice nor a file",
        lambda p: ["verify", "-m", p.model, "nobody.wav", p.wav, "--db", p.folder / "none.db"],
        "none.db",
        "no such database",
    ),
    Case("verify: no file", lambda p: ["verify", "-m", p.model, "nobody.wav", p.wav], "nobody.wav", "no such file"),
    Case(
        "voices: a broken address",
        lambda p: ["voices", "list", "--db", "postgresql://me:secret@[::1/voices"],
        "postgres",
        "cannot be used|not installed",
    ),
    Case(
        "voices import: seconds of NaN",
        _import_of_nan,
        "good.voices.jsonl",
        "bad details of 'a'",
    ),
    Case(
        "voices import: a pickle",
        lambda p: ["voices", "import", p.file("v.npy", _object_array(p.sentinel)), "--db", p.folder / "v.db"],
        "v.npy",
        "cannot be read as arrays",
    ),
)

MODELS = (
    Case("model: missing", _modelled(lambda p: p.folder / "none"), "none", "no such model folder"),
    Case("model: a file", _modelled(lambda p: p.wav), "good.wav", "is a file, not a model folder"),
    Case("model: an empty folder", _modelled(lambda p: p.folder), "work", "config.yaml"),
    Case("model: junk config", _modelled(lambda p: p.bundle(config=JUNK)), "config.yaml", "cannot be read"),
    Case(
        "model: a config that runs",
        _modelled(lambda p: p.bundle(config=yaml_that_runs(p.sentinel))),
        "config.yaml",
        "not plain YAML",
    ),
    Case(
        "model: a deep config", _modelled(lambda p: p.bundle(config=DEEP)), "config.yaml", "nested too deeply|not plain"
    ),
    Case("model: a bomb", _modelled(lambda p: p.bundle(config=YAML_BOMB)), "config.yaml", "more than 100000 values"),
    Case(
        "model: unknown key",
        _modelled(lambda p: p.configured("embedding_size", "embeding_size")),
        "config.yaml",
        "did you mean 'embedding_size'",
    ),
    Case(
        "model: unknown front-end key",
        _modelled(lambda p: p.configured("num_mels", "num_mel")),
        "config.yaml",
        r"frontend.num_mel .*'num_mels'",
    ),
    Case(
        "model: other mels", _modelled(lambda p: p.configured("num_mels: 80", "num_mels: 72")), "model.onnx", "80 mels"
    ),
    Case(
        "model: other size",
        _modelled(lambda p: p.configured("embedding_size: 16", "embedding_size: 17")),
        "model.onnx",
        "16 values",
    ),
    Case(
        "model: no rate",
        _modelled(lambda p: p.configured("sample_rate: 16000", "sample_rate: 0")),
        "config.yaml",
        "sample_rate",
    ),
    Case(
        "model: infinite window",
        _modelled(lambda p: p.configured("frame_length: 25.0", "frame_length: .inf")),
        "config.yaml",
        "frame_length",
    ),
    Case(
        "model: another format",
        _modelled(lambda p: p.configured("speakerkit-bundle-1", "speakerkit-bundle-9")),
        "config.yaml",
        "format",
    ),
    Case(
        "model: no weights",
        _modelled(lambda p: p.bundle(onnx=None, weights=None)),
        "bundle",
        "neither model.safetensors",
    ),
    Case("model: junk onnx", _modelled(lambda p: p.bundle(onnx=JUNK)), "model.onnx", "cannot be loaded"),
    Case(
        "model: empty onnx",
        _modelled(lambda p: p.bundle(onnx=b"")),
        "model.onnx",
        "cannot be loaded|inputs and outputs",
    ),
    Case("model: junk weights", _modelled(lambda p: p.bundle(onnx=None, weights=JUNK)), "model.safetensors", "damaged"),
    Case(
        "model: weights that are a pickle",
        _modelled(lambda p: p.bundle(onnx=None, weights=trap_pickle(p.sentinel))),
        "model.safetensors",
        "damaged",
    ),
    Case(
        "model: junk calibration",
        lambda p: ["similarity", "-m", p.bundle(calibration=JUNK), p.wav, p.wav],
        "calibration.json",
        "no threshold",
    ),
    Case(
        "model: a threshold of NaN",
        lambda p: ["similarity", "-m", p.bundle(calibration='{"threshold": NaN, "source": "x"}'), p.wav, p.wav],
        "calibration.json",
        "threshold of nan",
    ),
    Case("export: missing", lambda p: ["export", p.folder / "none"], "none", "no such model"),
    Case("export: junk weights", lambda p: ["export", p.bundle(weights=JUNK)], "model.safetensors", "damaged"),
    Case(
        "export: a pickle",
        lambda p: ["export", p.bundle(weights=trap_pickle(p.sentinel))],
        "model.safetensors",
        "damaged",
    ),
    Case(
        "export: a config that runs",
        lambda p: ["export", p.bundle(config=yaml_that_runs(p.sentinel))],
        "config.yaml",
        "YAML",
    ),
    Case(
        "export: unknown architecture",
        lambda p: ["export", p.configured("ECAPA_TDNN", "ECAPA_TDN")],
        "config.yaml",
        "did you mean 'ECAPA_TDNN'",
    ),
    Case(
        "export: wrong argument",
        lambda p: ["export", p.configured("channels: 32", "channels: wide")],
        "config.yaml",
        "do not build",
    ),
    Case(
        "export: other width",
        lambda p: ["export", p.configured("channels: 32", "channels: 40")],
        "bundle",
        "size mismatch",
    ),
    Case(
        "model: WeSpeaker's, a pickle",
        _modelled(lambda p: p.wespeaker(trap_pickle(p.sentinel))),
        "avg_model.pt",
        "refused",
    ),
    Case("model: WeSpeaker's, empty", _modelled(lambda p: p.wespeaker(b"")), "avg_model.pt", "damaged"),
    Case(
        "model: WeSpeaker's, a wrong argument",
        _modelled(lambda p: p.wespeaker(JUNK, model_args={"feat_dim": 80, "embed_dim": 8, "depht": 3})),
        "config.yaml",
        "no argument 'depht'",
    ),
    Case(
        "model: WeSpeaker's, an unknown model",
        _modelled(lambda p: p.wespeaker(JUNK, model="ResNet43")),
        "config.yaml",
        "did you mean 'ResNet34'",
    ),
    Case(
        "model: WeSpeaker's, a front-end that is not read",
        _modelled(lambda p: p.wespeaker(JUNK, dataset_args={"frontend": "s3prl"})),
        "config.yaml",
        "'s3prl'",
    ),
    Case(
        "model: a config that is a list", _modelled(lambda p: p.bundle(config="- a\n")), "config.yaml", "no.* mapping"
    ),
    Case("import: missing", _imported(lambda p: p.folder / "none"), "none", "no such file"),
    Case("import: an empty folder", _imported(lambda p: p.file("d/x.txt", "").parent), "/d", "no model file"),
    Case(
        "import: a config that is a list",
        _imported(lambda p: p.file("d/config.yaml", "- a\n").parent),
        "config.yaml",
        "not a YAML mapping",
    ),
    Case(
        "import: a config that runs",
        _imported(lambda p: p.file("d/config.yaml", yaml_that_runs(p.sentinel)).parent),
        "config.yaml",
        "YAML",
    ),
    Case(
        "import: hyperparameters that run",
        lambda p: [
            *_imported(lambda p: p.file("d/embedding_model.ckpt", speechbrain_like()))(p),
            *(["--kind", "speechbrain"] if p.file("d/hyperparams.yaml", yaml_that_runs(p.sentinel)) else []),
        ],
        "hyperparams.yaml",
        "YAML",
    ),
    Case("import: a pickle", _imported(lambda p: p.file("m.bin", trap_pickle(p.sentinel))), "m.bin", "refused"),
    Case("import: junk", _imported(lambda p: p.file("m.ckpt", JUNK)), "m.ckpt", "refused|damaged"),
    Case("import: empty", _imported(lambda p: p.file("m.pt", b"")), "m.pt", "damaged"),
    Case("import: junk onnx", _imported(lambda p: p.file("m.onnx", JUNK)), "m.onnx", "cannot be loaded"),
    Case("import: WeSpeaker's, a pickle", _imported(lambda p: p.wespeaker(trap_pickle(p.sentinel))), ".pt", "refused"),
    Case("import: a bundle", _imported(lambda p: p.bundle()), "bundle", "is a bundle already"),
    Case(
        "import: onto something else",
        lambda p: ["import", p.file("m.pt", JUNK), p.file("precious/notes.txt", "x").parent],
        "precious",
        "is there already",
    ),
    Case(
        "import: an unknown kind",
        lambda p: ["import", p.file("m.pt", JUNK), p.folder / "o", "--kind", "3d-speaker"],
        "3d-speaker",
        "'3dspeaker'",
    ),
    Case("average: no folder", lambda p: ["average", p.folder / "none"], "none", "config.yaml"),
    Case(
        "average: a pickle",
        lambda p: ["average", p.experiment_folder(trap_pickle(p.sentinel))],
        "step_00000001.pt",
        "refused",
    ),
    Case("average: junk", lambda p: ["average", p.experiment_folder(JUNK)], "step_00000001.pt", "refused|damaged"),
    Case("average: empty", lambda p: ["average", p.experiment_folder(b"")], "step_00000001.pt", "damaged"),
)

TRAININGS = (
    Case("train: no config", lambda p: ["train", p.folder / "no.yaml"], "no.yaml", "no such file"),
    Case("train: junk", lambda p: ["train", p.file("c.yaml", JUNK)], "c.yaml", "cannot be read"),
    Case(
        "train: a config that runs", lambda p: ["train", p.file("c.yaml", yaml_that_runs(p.sentinel))], "c.yaml", "YAML"
    ),
    Case("train: a bomb", lambda p: ["train", p.file("c.yaml", YAML_BOMB)], "c.yaml", "more than 100000"),
    Case(
        "train: holds itself", lambda p: ["train", p.file("c.yaml", "a: &a\n  b: *a\n")], "c.yaml", "more than 100000"
    ),
    Case("train: an unknown key", lambda p: ["train", p.experiment(optimm="{lr: 1}")], "conf.yaml", "optimm .*'optim'"),
    Case("train: a key twice", lambda p: ["train", p.file("c.yaml", "seed: 1\nseed: 2\n")], "c.yaml", "'seed' twice"),
    Case(
        "train: a wrong type", lambda p: ["train", p.experiment(), "--set", "trainer.steps=many"], "conf.yaml", "steps"
    ),
    Case(
        "train: an override without value",
        lambda p: ["train", p.experiment(), "--set", "trainer.steps"],
        "--set",
        "form",
    ),
    Case(
        "train: an unknown model",
        lambda p: ["train", p.experiment(model="{name: RESNET34}")],
        "RESNET34",
        "did you mean",
    ),
    Case(
        "train: an unknown argument",
        lambda p: ["train", p.experiment(model="{name: ResNet34, args: {depht: 3}}")],
        "depht",
        "has no argument",
    ),
    Case("train: an empty list", lambda p: ["train", p.experiment(p.file("r", ""))], "/r", "names no utterances"),
    Case("train: a junk list", lambda p: ["train", p.experiment(p.file("r", JUNK))], "/r", "as text"),
    Case("train: a duplicate", lambda p: ["train", p.experiment(p.file("r", 2 * p.row("a")))], "/r", "'a' comes twice"),
    Case(
        "train: a command",
        lambda p: ["train", p.experiment(p.file("r", p.row("a", wav=f"touch {p.sentinel} |")))],
        "/r",
        "command",
    ),
    Case(
        "train: a pickle as checkpoint",
        lambda p: ["train", p.experiment_folder(trap_pickle(p.sentinel)).parent / "conf.yaml"],
        "step_00000001.pt",
        "refused",
    ),
    Case(
        "train: resume from a pickle",
        lambda p: ["train", p.experiment(), "--resume", p.file("x.pt", trap_pickle(p.sentinel))],
        "x.pt",
        "refused",
    ),
    Case(
        "train: a shard with ../",
        lambda p: ["train", p.shards(shard(p.folder / "s.tar", {"../../a.spk": b"s", "../../a.wav": encoded("WAV")}))],
        "s.tar",
        "unsafe name",
    ),
    Case(
        "train: a truncated shard",
        lambda p: [
            "train",
            p.shards(
                p.file(
                    "s.tar", shard(p.folder / "t.tar", {"a.spk": b"s", "a.wav": encoded("WAV")}).read_bytes()[:20000]
                )
            ),
        ],
        "s.tar",
        "truncated|no readable tar",
    ),
    Case("train: a junk shard", lambda p: ["train", p.shards(p.file("s.tar", JUNK))], "s.tar", "no readable tar"),
    Case(
        "train: an empty shard",
        lambda p: ["train", p.shards(p.file("s.tar", b""))],
        "s.tar",
        "no readable tar|truncated",
    ),
    Case(
        "train: a shard of pickles",
        lambda p: [
            "train",
            p.shards(shard(p.folder / "s.tar", {"a.pyd": trap_pickle(p.sentinel), "a.pth": trap_pickle(p.sentinel)})),
        ],
        "s.tar",
        "no utterances",
    ),
    Case(
        "train: a pickle as audio",
        lambda p: ["train", p.shards(shard(p.folder / "s.tar", {"a.spk": b"s", "a.wav": trap_pickle(p.sentinel)}))],
        "s.tar",
        "cannot be decoded",
    ),
    Case(
        "train: a pickle as LMDB keys",
        lambda p: ["train", p.noise(p.lmdb(__keys__=trap_pickle(p.sentinel)))],
        "store",
        "unsafe",
    ),
    Case(
        "train: junk as LMDB",
        lambda p: ["train", p.noise(p.file("store/data.mdb", JUNK).parent)],
        "store",
        "no readable LMDB",
    ),
    Case(
        "finetune: a pickle as weights",
        lambda p: _tuned(p, p.bundle(weights=trap_pickle(p.sentinel), onnx=None)),
        "model.safetensors",
        "damaged",
    ),
    Case("finetune: a bundle of junk", lambda p: _tuned(p, p.bundle(config=JUNK)), "config.yaml", "cannot be read"),
    Case("finetune: a junk list", lambda p: _tuned(p, p.model, p.file("r", JUNK)), "/r", "as text"),
    Case("finetune: an empty list", lambda p: _tuned(p, p.model, p.file("r", "")), "/r", "names no utterances"),
    Case(
        "finetune: a command",
        lambda p: _tuned(p, p.model, p.file("r", p.row("a", wav=f"touch {p.sentinel} |"))),
        "/r",
        "command",
    ),
    Case(
        "finetune: junk trials",
        lambda p: [*_tuned(p, p.model), "--trials", p.file("trials", "a b maybe\n")],
        "trials",
        "maybe",
    ),
    Case(
        "finetune: a bomb as configuration",
        lambda p: [*_tuned(p, p.model), "--config", p.file("c.yaml", YAML_BOMB)],
        "c.yaml",
        "more than 100000",
    ),
    Case(
        "finetune: another embedding size",
        lambda p: [*_tuned(p, p.model), "--set", "model.args.embed_dim=32"],
        "model.args",
        "embeddings of 32, .* has 16",
    ),
    Case(
        "finetune: a part that is not there",
        lambda p: [*_tuned(p, p.model), "--freeze", "backbone.layer9"],
        "optim.lr_factors",
        "backbone.layer9",
    ),
    Case(
        "train: an unmatched part",
        lambda p: ["train", p.experiment(optim="{lr_factors: {bakbone: 0.1}}")],
        "optim.lr_factors",
        "bakbone.*did you mean 'backbone'",
    ),
    Case(
        "train: an average that forgets nothing",
        lambda p: ["train", p.experiment(), "--set", "trainer.ema=1"],
        "ema",
        "below 1",
    ),
    Case(
        "train: a pickle as teacher",
        lambda p: _taught(p, p.file("t.pt", trap_pickle(p.sentinel))),
        "t.pt",
        "refused",
    ),
    Case("train: a junk teacher", lambda p: _taught(p, p.file("t.pt", JUNK)), "t.pt", "refused|damaged"),
    Case("train: no teacher", lambda p: _taught(p, p.folder / "none"), "none", "no such model folder"),
    Case(
        "train: a teacher without classes",
        lambda p: _taught(p, p.model, ", label_weight: 1"),
        "distillation.teacher",
        "has no classes",
    ),
    Case("train: an LMDB without keys", lambda p: ["train", p.noise(p.lmdb(a=b"x"))], "store", "__keys__"),
)

USAGE = (
    Case("no such option", lambda p: ["embed", "--modle", "x"], "--modle", "No such option"),
    Case("no such command", lambda p: ["embedd"], "embedd", "No such command"),
    Case("no model", lambda p: ["embed", p.wav], "--model", "Missing option"),
    Case("neither files nor list", lambda p: ["embed", "-m", p.model], "embed", "takes either"),
    Case("a bad choice", lambda p: ["embed", "-m", p.model, "--short", "cut", p.wav], "--short", "'cut'"),
    Case("a bad channel", lambda p: ["embed", "-m", p.model, "--channel", "²", p.wav], "--channel", "'²'"),
    Case(
        "a channel that is not there",
        lambda p: ["embed", "-m", p.model, "--channel", 3, p.wav],
        "good.wav",
        "no channel 3",
    ),
    Case("a bad device", lambda p: ["similarity", "-m", p.model, "--device", "tpu", p.wav, p.wav], "--device", "'tpu'"),
    Case(
        "an unusable device",
        lambda p: ["embed", "-m", p.model, "--device", "cuda", p.wav],
        "cuda",
        "CPUExecutionProvider",
    ),
    Case(
        "an unknown output", lambda p: ["embed", "-m", p.model, p.wav, "--out", p.folder / "e.bin"], "e.bin", "suffix"
    ),
    Case(
        "an output in a file",
        lambda p: ["embed", "-m", p.model, p.wav, "--out", p.wav / "e.npy"],
        "good.wav",
        "directory|exists",
    ),
    Case(
        "a damaged model note",
        lambda p: ["embed", "-m", p.model, p.wav, "--out", _embedded(p, JUNK)],
        "e.npz",
        "does not tell",
    ),
)


def _embedded(place: Place, note: bytes) -> Path:
    """An earlier extraction whose note on its model is damaged."""
    out = place.folder / "e.npz"
    assert speakerkit("embed", "-m", place.model, place.wav, "--out", out).code == 0
    place.file("e.model.json", note)
    return out


def _verified(manifest: str | bytes) -> Arguments:
    return lambda p: ["models", "verify", p.file("fetched/fetched.json", manifest).parent]


PUBLIC_MODELS = (
    Case("models: a name nearly right", lambda p: ["models", "show", "resnet34.voxcelb"], "voxcelb", "did you mean"),
    Case("models: a path for a name", lambda p: ["models", "fetch", "../../etc"], "../../etc", "is not known"),
    Case("models: a name that is markup", lambda p: ["models", "show", "a\n\x1b[31mb"], "x1b", "is not known"),
    Case("models: one that was not fetched", _modelled(lambda p: Path("english")), "resnet221", "has not been fetched"),
    Case("models: nothing to verify", lambda p: ["models", "verify", p.folder], "work", "no fetched.json"),
    Case("models: manifest of junk", _verified(JUNK), "fetched.json", "is damaged"),
    Case("models: manifest nested", _verified(DEEP), "fetched.json", "is damaged"),
    Case("models: manifest of nothing", _verified("{}"), "fetched.json", "is damaged"),
    Case(
        "models: manifest that leaves its folder",
        _verified('{"name": "a", "files": [{"name": "../good.wav", "sha256": "0"}]}'),
        "fetched.json",
        "is damaged",
    ),
    Case(
        "models: manifest with an absolute name",
        _verified('{"name": "a", "files": [{"name": "/etc/passwd", "sha256": "0"}]}'),
        "fetched.json",
        "is damaged",
    ),
    Case(
        "models: a mirror that is a file",
        lambda p: ["models", "fetch", "english", "--out", p.folder / "m", "--mirror", "file:///etc"],
        "--mirror",
        "http:// or https://",
    ),
    Case(
        "models: onto something else",
        lambda p: ["models", "fetch", "english", "--out", p.file("precious/notes.txt", "x").parent],
        "precious",
        "was not made by",
    ),
    Case(
        "models: onto a file", lambda p: ["models", "fetch", "english", "--out", p.wav], "good.wav", "was not made by"
    ),
)


@pytest.fixture
def place(tmp_path: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("SPEAKERKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SPEAKERKIT_OFFLINE", "1")
    folder = tmp_path / "work"
    folder.mkdir()
    wav = tmp_path / "good.wav"
    wav.write_bytes(encoded("WAV"))
    return Place(folder, wav, small_bundle, tmp_path / "ran")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "case",
    [*LISTS, *SCORING, *MODELS, *TRAININGS, *USAGE, *PUBLIC_MODELS, *CALIBRATIONS, *VOICES],
    ids=lambda case: case.name,
)
def test_bad_file_is_refused(case: Case, place: Place) -> None:
    if "cuda" in case.names:
        _skip_with_cuda()
    ran = speakerkit(*case.arguments(place))
    assert not place.sentinel.exists(), "something was run"
    assert ran.code == case.code, ran
    assert len(ran.errors) == 1, ran.err[-3000:]
    assert len(ran.errors[0]) < 3000
    assert ran.out == ""
    assert case.names in ran.errors[0]
    assert re.search(case.fault, ran.errors[0]), ran.errors[0]
    assert not (place.folder / "scores").exists()


def _skip_with_cuda() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("CUDA is usable here")


def test_allowed_commands_run(place: Place) -> None:
    """With --allow-pipes, and only then, an entry of a list is run."""
    scp = place.file("wav.scp", f"a cat {place.wav} |\nb {place.wav}\n")
    ran: Ran = speakerkit("embed", "-m", place.model, "--scp", scp, "--allow-pipes")
    assert ran.code == 0, ran
    first, second = (json.loads(line)["embedding"] for line in ran.out.splitlines())
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_a_failing_command_is_one_failure_of_a_batch(place: Place) -> None:
    scp = place.file("wav.scp", f"a false |\nb {place.wav}\n")
    ran = speakerkit("embed", "-m", place.model, "--scp", scp, "--allow-pipes")
    assert ran.code == 3
    assert "false" in ran.errors[0]


def test_doctor_needs_nothing() -> None:
    ran = speakerkit("doctor", "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["onnxruntime_providers"]
