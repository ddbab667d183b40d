"""Back-ends: Kaldi's recipe, files on disk, and the commands that train, show and score."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from kaldiio import matio
from safetensors.numpy import save_file
from scipy.stats import multivariate_normal

from speakerkit.data.ark import Embeddings, write_embeddings
from speakerkit.errors import DataError
from speakerkit.verification.backend import Backend, Kind, adapt_backend, import_kaldi, score_backend, train_backend
from speakerkit.verification.backend_file import read_backend, write_backend
from speakerkit.verification.chain import Chain
from speakerkit.verification.kaldi_plda import read_kaldi_array, write_kaldi_plda
from speakerkit.verification.plda import Normalisation, Plda
from speakerkit.verification.psda import Psda
from speakerkit.verification.trials import Trials, read_scores
from tests.command import speakerkit
from tests.verification.gaussian import DIM, damaged, draw, llr_by_definition, spd


def test_kaldi_recipe(tmp_path: Path) -> None:
    """mean.vec, transform.mat with its offset, and plda: the scores of Kaldi's formulas, one trial at a time."""
    rng = np.random.default_rng(4)
    mean, lda = rng.normal(size=6), rng.normal(size=(DIM, 7))
    plda = Plda.of(rng.normal(size=DIM), spd(rng), spd(rng))
    with open(tmp_path / "mean.vec", "wb") as stream:
        matio.write_array(stream, mean)
    (tmp_path / "transform.mat").write_text(
        " [\n  " + "\n  ".join(" ".join(map(repr, row)) for row in lda.tolist()) + " ]\n"
    )
    np.testing.assert_array_equal(read_kaldi_array(tmp_path / "mean.vec"), mean)
    write_kaldi_plda(tmp_path / "plda", plda)
    backend = import_kaldi(tmp_path / "plda", mean=tmp_path / "mean.vec", transform=tmp_path / "transform.mat")
    assert str(backend.chain) == "mean-subtract | lda 4 | length-norm"
    vectors = rng.normal(size=(3, 6)).astype(np.float32)
    trials = Trials.from_pairs(["a", "a", "b"], ["b", "c", "c"])
    ours = score_backend(backend, Embeddings(list("abc"), vectors), trials).scores

    def kaldi(vector: np.ndarray) -> np.ndarray:
        row = lda[:, :-1] @ (vector - mean) + lda[:, -1]
        row *= np.sqrt(DIM) / np.linalg.norm(row)
        row = plda.transform @ row - plda.transform @ plda.mean
        return row * np.sqrt(DIM / np.sum(row**2 / (plda.psi + 1)))

    for score, (e, t) in zip(ours, ((0, 1), (0, 2), (1, 2)), strict=True):
        enrol, test = kaldi(vectors[e].astype(np.float64)), kaldi(vectors[t].astype(np.float64))
        same_speaker = multivariate_normal.logpdf(
            test, plda.psi / (plda.psi + 1) * enrol, np.diag(1 + plda.psi / (plda.psi + 1))
        )
        assert score == pytest.approx(
            same_speaker - multivariate_normal.logpdf(test, np.zeros(DIM), np.diag(1 + plda.psi))
        )
    with pytest.raises(DataError, match="what comes before it gives 6"):
        import_kaldi(tmp_path / "plda", mean=tmp_path / "mean.vec")


def test_kaldi_scores_of_several_sessions() -> None:
    """Kaldi's TransformIvector and LogLikelihoodRatio with the number of sessions, one trial at a time."""
    rng = np.random.default_rng(6)
    plda = Plda.of(rng.normal(size=DIM), spd(rng), spd(rng, scale=2))
    backend = Backend(Chain(), plda, DIM)
    vectors = rng.normal(size=(6, DIM)).astype(np.float32)
    sessions = {"one": ["a"], "three": ["b", "c", "d"]}
    trials = Trials.from_pairs(["one", "three", "one", "three"], ["e", "e", "f", "f"])
    rows = dict(zip("abcdef", vectors.astype(np.float64), strict=True))

    def kaldi(vector: np.ndarray, n: int) -> np.ndarray:
        row = plda.transform @ (vector - plda.mean)
        return row * np.sqrt(DIM / (row**2 @ (1 / (plda.psi + 1 / n))))

    for multi in ("book", "average"):
        ours = score_backend(backend, Embeddings(list("abcdef"), vectors), trials, enrol_map=sessions, multi=multi)
        for score, (model, test) in zip(ours.scores, trials.pairs(), strict=True):
            n = len(sessions[model]) if multi == "book" else 1
            enrol = kaldi(np.mean([rows[key] for key in sessions[model]], axis=0), n)
            mean, variance = n * plda.psi / (n * plda.psi + 1) * enrol, 1 + plda.psi / (n * plda.psi + 1)
            probe = kaldi(rows[test], 1)
            expected = multivariate_normal.logpdf(probe, mean, np.diag(variance))
            expected -= multivariate_normal.logpdf(probe, np.zeros(DIM), np.diag(1 + plda.psi))
            assert score == pytest.approx(expected, rel=1e-9)


@pytest.fixture
def embedded(tmp_path: Path) -> Callable[..., Path]:
    """``embedded(name, dim=6, sha="a", seed=0)``: 20 speakers of 5 utterances, utt2spk, and the note of their model."""

    def write(name: str, dim: int = 6, sha: str | None = "a", seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        rows, speakers = draw(rng, rng.normal(size=dim), spd(rng, dim), spd(rng, dim, 2), np.full(20, 5))
        keys = [f"u{number:03d}" for number in range(len(rows))]
        (tmp_path / "utt2spk").write_text("".join(f"{k} {s}\n" for k, s in zip(keys, speakers, strict=True)))
        if sha is not None:
            note = {"sha256": sha * 64, "dimension": dim}
            (tmp_path / name).with_suffix(".model.json").write_text(json.dumps(note))
        return write_embeddings(tmp_path / name, Embeddings(keys, rows.astype(np.float32)))

    return write


@pytest.fixture
def trials_file(tmp_path: Path) -> Path:
    (tmp_path / "trials").write_text("u000 u001 target\nu000 u050 nontarget\nu007 u005 target\nu007 u099 nontarget\n")
    return tmp_path / "trials"


def run_ok(*arguments: object) -> str:
    ran = speakerkit(*arguments)
    assert ran.code == 0, ran.err
    return ran.out


@pytest.mark.parametrize("kind", ["plda", "psda"])
def test_train_show_and_score(kind: str, embedded: Callable[..., Path], trials_file: Path, tmp_path: Path) -> None:
    embeddings, backend = embedded("e.npz"), tmp_path / "b.safetensors"
    chain = "mean-subtract | whiten | lda 4 | length-norm"
    command = ("plda", "train", embeddings, tmp_path / "utt2spk", backend, "--chain", chain, "--kind", kind)
    run_ok(*command)
    first = backend.read_bytes()
    run_ok(*command)
    assert backend.read_bytes() == first, "the same data give the same bytes"
    facts = json.loads(run_ok("plda", "show", backend, "--json"))
    assert (facts["kind"], facts["chain"], facts["dimension"], facts["extractor"]) == (kind, chain, 6, "a" * 64)
    assert facts["history"][0]["speakers"] == 20
    assert facts["history"][0]["iterations"] == 10
    assert chain in run_ok("plda", "show", backend)
    run_ok("score", "plda", embeddings, trials_file, tmp_path / "scores", "--plda", backend)
    scores = read_scores(tmp_path / "scores")
    assert scores.trials.labels is not None
    assert scores.scores[scores.trials.labels].min() > scores.scores[~scores.trials.labels].max()


def test_multi_enrolment(embedded: Callable[..., Path], tmp_path: Path) -> None:
    """By the book: the joint density of all sessions; average: their mean as one."""
    embeddings, backend = embedded("e.npz"), tmp_path / "b"
    run_ok("plda", "train", embeddings, tmp_path / "utt2spk", backend, "--chain", "none", "--normalise", "none")
    (tmp_path / "map").write_text("m u000 u001 u002\nsingle u004\n")
    (tmp_path / "trials").write_text("m u003\nm u070\nsingle u003\n")
    model = read_backend(backend).model
    assert isinstance(model, Plda)
    rows = np.load(embeddings)["embeddings"].astype(np.float64)
    for multi, enrolled in (("book", rows[:3]), ("average", rows[:3].mean(axis=0, keepdims=True))):
        run_ok(
            *("score", "plda", embeddings, tmp_path / "trials", tmp_path / "s", "--plda", backend),
            *("--enrol-map", tmp_path / "map", "--multi", multi),
        )
        expected = [
            llr_by_definition(model, enrolled, rows[3]),
            llr_by_definition(model, enrolled, rows[70]),
            llr_by_definition(model, rows[4:5], rows[3]),
        ]
        np.testing.assert_allclose(read_scores(tmp_path / "s").scores, expected, rtol=1e-9, atol=1e-9)


def test_export_import_round_trip(embedded: Callable[..., Path], trials_file: Path, tmp_path: Path) -> None:
    embeddings = embedded("e.npz")
    run_ok("plda", "train", embeddings, tmp_path / "utt2spk", tmp_path / "b", "--chain", "length-norm")
    for flag in ((), ("--text",)):
        run_ok("plda", "export", tmp_path / "b", tmp_path / "kaldi", *flag)
        run_ok("plda", "import", tmp_path / "kaldi", tmp_path / "again", "--embeddings", embeddings)
        again = read_backend(tmp_path / "again")
        assert (str(again.chain), again.extractor) == ("length-norm", "a" * 64)
        for backend in ("b", "again"):
            run_ok("score", "plda", embeddings, trials_file, tmp_path / f"s-{backend}", "--plda", tmp_path / backend)
        assert (tmp_path / "s-b").read_bytes() == (tmp_path / "s-again").read_bytes()


def test_embeddings_of_another_model(embedded: Callable[..., Path], trials_file: Path, tmp_path: Path) -> None:
    backend = tmp_path / "b"
    run_ok("plda", "train", embedded("e.npz"), tmp_path / "utt2spk", backend)
    other, wide, unknown = embedded("o.npz", sha="b"), embedded("w.npz", dim=7), embedded("u.npz", sha=None)
    for command in (
        ("score", "plda", other, trials_file, tmp_path / "s", "--plda", backend),
        ("score", "plda", tmp_path / "e.npz", trials_file, tmp_path / "s", "--plda", backend, "--enrol", other),
        ("plda", "adapt", backend, other, tmp_path / "s"),
    ):
        ran = speakerkit(*command)
        assert (ran.code, len(ran.errors)) == (2, 1), ran
        assert "o.npz: was made by another model" in ran.errors[0]
    ran = speakerkit("score", "plda", wide, trials_file, tmp_path / "s", "--plda", backend)
    assert ran.code == 2
    assert "w.npz: has 7 values a row, the back-end was made for 6" in ran.err
    assert not (tmp_path / "s").exists()
    run_ok("score", "plda", unknown, trials_file, tmp_path / "s", "--plda", backend)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--kind", "lda"), "'lda' is none of plda, psda"),
        (("--normalise", "yes"), "'yes' is none of kaldi, simple, none"),
        (("--chain", "whitening"), "did you mean 'whiten'?"),
        (("--chain", "lda 20"), "keep 6 at most"),
        (("--iterations", "0"), "train for 1 or more"),
    ],
)
def test_training_faults(
    arguments: tuple[str, ...], message: str, embedded: Callable[..., Path], tmp_path: Path
) -> None:
    ran = speakerkit("plda", "train", embedded("e.npz"), tmp_path / "utt2spk", tmp_path / "b", *arguments)
    assert (ran.code, len(ran.errors)) == (2, 1), ran
    assert message in ran.errors[0]
    assert not (tmp_path / "b").exists()


def test_an_embedding_without_speaker(embedded: Callable[..., Path], tmp_path: Path) -> None:
    embeddings = embedded("e.npz")
    (tmp_path / "utt2spk").write_text("u000 s0\nelsewhere s1\n")
    ran = speakerkit("plda", "train", embeddings, tmp_path / "utt2spk", tmp_path / "b")
    assert ran.code == 2
    assert "no speaker for 'u001' (99 of 100 embeddings)" in ran.err


def test_damaged_backends(embedded: Callable[..., Path], tmp_path: Path) -> None:
    embeddings = embedded("e.npz")
    backend = train_backend(
        Embeddings(list("abcdefgh"), np.random.default_rng(0).normal(size=(8, 2))),
        dict(zip("abcdefgh", "xxxxyyyy", strict=True)),
        "mean-subtract",
    )
    path = tmp_path / "b"
    write_backend(path, backend)
    whole = path.read_bytes()
    damaged = [b"", b"{}", b"\x80\x04junk", whole[:100], whole[:-8], whole.replace(b"plda-1", b"plda-9")]
    save_file({"x": np.zeros(2)}, tmp_path / "plain")
    damaged.append((tmp_path / "plain").read_bytes())
    save_file({"model.mean": np.zeros(2)}, tmp_path / "plain", metadata={"speakerkit": "[" * 100_000})
    damaged.append((tmp_path / "plain").read_bytes())
    for content in damaged:
        path.write_bytes(content)
        ran = speakerkit("plda", "show", path)
        assert (ran.code, len(ran.errors)) == (2, 1), ran
        assert "no back-end" in ran.errors[0]
    assert speakerkit("plda", "show", embeddings).code == 2
    assert "no such file" in speakerkit("plda", "show", tmp_path / "gone").err


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("model.psi"),
        lambda arrays: arrays.update({"model.psi": np.array([1.0, -1.0])}),
        lambda arrays: arrays.update({"model.mean": np.array([1.0, np.nan])}),
        lambda arrays: arrays.update({"model.mean": np.ones(3)}),
        lambda arrays: arrays.update({"model.transform": np.ones((2, 2))}),
        lambda arrays: arrays.update({"model.transform": np.eye(2) * 1e-300}),
        lambda arrays: arrays.update({"model.psi": np.full(2, 1e308)}),
        lambda arrays: arrays.update({"model.mean": np.ones(2, np.float32)}),
        lambda arrays: arrays.update({"model.more": np.ones(2)}),
        lambda arrays: arrays.update({"chain.0.mean": np.ones(3)}),
        lambda arrays: arrays.pop("chain.0.mean"),
    ],
)
def test_backends_that_contradict_themselves(change: Callable[[dict[str, np.ndarray]], object], tmp_path: Path) -> None:
    note = {"format": "speakerkit-plda-1", "kind": "plda", "chain": "mean-subtract", "dimension": 2}
    note |= {"extractor": None, "normalise": "kaldi", "history": []}
    arrays = {
        "chain.0.mean": np.ones(2),
        "model.mean": np.ones(2),
        "model.transform": np.eye(2),
        "model.psi": np.ones(2),
    }
    save_file(arrays, tmp_path / "b", metadata={"speakerkit": json.dumps(note)})
    assert read_backend(tmp_path / "b").dimension == 2
    change(arrays)
    save_file(arrays, tmp_path / "b", metadata={"speakerkit": json.dumps(note)})
    with pytest.raises(DataError, match="no back-end of ours"):
        read_backend(tmp_path / "b")


@pytest.mark.parametrize(
    "change",
    [{"mean": np.ones(3)}, {"mean": np.zeros(3)}, {"between": np.array(-1.0)}, {"within": np.array(1e308)}],
)
def test_psda_that_is_none(change: dict[str, np.ndarray]) -> None:
    arrays = {"mean": np.eye(3)[0], "between": np.array(0.0), "within": np.array(5.0)}
    assert Psda.stored(**arrays).within == 5
    with pytest.raises(ValueError, match=r"direction|positive"):
        Psda.stored(**(arrays | change))


@pytest.mark.parametrize("kind", ["plda", "psda"])
def test_backends_with_any_damage(kind: Kind, tmp_path: Path) -> None:
    """Bytes changed, lost or added: an error that names the file, or a back-end that scores with finite numbers."""
    rng = np.random.default_rng(1)
    keys = [f"u{number}" for number in range(20)]
    embeddings = Embeddings(keys, rng.normal(size=(20, 2)).astype(np.float32))
    speakers = {key: f"s{number % 4}" for number, key in enumerate(keys)}
    path = tmp_path / "b"
    write_backend(path, train_backend(embeddings, speakers, kind=kind))
    trials = Trials.from_pairs(["u0", "u1"], ["u4", "u2"])
    refused = []
    for content in damaged(path.read_bytes(), rng, 200):
        path.write_bytes(content)
        try:
            backend = read_backend(path)
            scores = score_backend(backend, embeddings, trials).scores
        except DataError as error:
            refused.append(str(error))
            continue
        assert np.isfinite(scores).all()
    assert all(message.startswith((str(path), "embeddings: ")) for message in refused)
    assert len(refused) > 50


@pytest.mark.parametrize("kind", ["plda", "psda"])
def test_embeddings_of_zeros_are_refused(kind: Kind) -> None:
    """What a broken extraction leaves has no score, whatever the chain makes of it."""
    rng = np.random.default_rng(2)
    keys = [f"u{number}" for number in range(12)]
    vectors = rng.normal(size=(12, 3)).astype(np.float32)
    speakers = {key: f"s{number % 3}" for number, key in enumerate(keys)}
    backend = train_backend(Embeddings(keys, vectors), speakers, "mean-subtract", kind=kind)
    broken = Embeddings(keys, vectors * (np.arange(12) != 4)[:, None])
    message = r"'u4' is all zeros \(1 of "
    for enrol, test in (("u4", "u0"), ("u0", "u4")):
        with pytest.raises(DataError, match=message):
            score_backend(backend, broken, Trials.from_pairs([enrol], [test]))
    with pytest.raises(DataError, match=message):
        score_backend(backend, broken, Trials.from_pairs(["m"], ["u0"]), enrol_map={"m": ["u1", "u4"]})
    with pytest.raises(DataError, match=message):
        train_backend(broken, speakers, "mean-subtract", kind=kind)
    if kind == "plda":
        with pytest.raises(DataError, match=message):
            adapt_backend(backend, broken, "kaldi")


@pytest.mark.parametrize("normalise", ["kaldi", "simple", "none"])
def test_an_embedding_at_the_mean_has_no_direction(normalise: Normalisation) -> None:
    plda = Plda(np.ones(2), np.eye(2), np.ones(2))
    backend = Backend(Chain(), plda, 2, normalise=normalise)
    embeddings = Embeddings(["a", "b"], np.array([[1.0, 1.0], [2.0, 0.0]]))
    for enrol, test in (("a", "b"), ("b", "a")):
        trials = Trials.from_pairs([enrol], [test])
        if normalise == "none":
            assert np.isfinite(score_backend(backend, embeddings, trials).scores).all()
        else:
            with pytest.raises(DataError, match="'a' has no direction"):
                score_backend(backend, embeddings, trials)


@pytest.mark.parametrize("path", [".", "/", "..", "", "/dev/null"])
def test_paths_that_name_no_file(path: str, embedded: Callable[..., Path], trials_file: Path, tmp_path: Path) -> None:
    embeddings, backend = embedded("e.npz"), tmp_path / "b"
    run_ok("plda", "train", embeddings, tmp_path / "utt2spk", backend)
    score = (embeddings, trials_file, tmp_path / "s")
    for command in (
        ("score", "cosine", path, trials_file, tmp_path / "s"),
        ("score", "cosine", *score, "--mean", path),
        ("score", "norm", *score, "--top", 5, "--cohort", path),
        ("score", "plda", path, trials_file, tmp_path / "s", "--plda", backend),
        ("score", "plda", *score, "--plda", path),
        ("plda", "train", path, tmp_path / "utt2spk", tmp_path / "s"),
        ("plda", "adapt", backend, path, tmp_path / "s"),
        ("plda", "import", path, tmp_path / "s"),
    ):
        ran = speakerkit(*command)
        assert (ran.code, len(ran.errors)) == (2, 1), (command, ran)
    assert not (tmp_path / "s").exists()
