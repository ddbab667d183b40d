"""Processing chains: the language, each step against numpy or scikit-learn, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm, subspace_angles
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from speakerkit.errors import ConfigError, DataError
from speakerkit.verification.chain import Chain, fit_chain, load_chain, parse_chain
from speakerkit.verification.speakers import SpeakerStatistics

SPEAKERS, UTTERANCES, DIM = 30, 8, 6


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(3)
    speaker = np.repeat(np.arange(SPEAKERS), UTTERANCES)
    mixing = rng.normal(size=(DIM, DIM))
    rows = rng.normal(size=(SPEAKERS, DIM))[speaker] * np.arange(1, DIM + 1) + rng.normal(size=(len(speaker), DIM))
    return (rows @ mixing + 5).astype(np.float32), [f"s{number}" for number in speaker]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (
            "mean-subtract | whiten|lda 128 |length-norm",
            (("mean-subtract", None), ("whiten", None), ("lda", 128), ("length-norm", None)),
        ),
        ("length-norm", (("length-norm", None),)),
        ("", ()),
        ("none", ()),
    ],
)
def test_language(text: str, steps: tuple[tuple[str, int | None], ...]) -> None:
    assert parse_chain(text) == steps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mean-substract", "did you mean 'mean-subtract'"),
        ("frobnicate", "steps are"),
        ("whiten | | length-norm", "no step ''"),
        ("lda", "number of dimensions"),
        ("lda 0", "number of dimensions"),
        ("lda -3", "number of dimensions"),
        ("lda 1.5", "number of dimensions"),
        ("lda 3 4", "number of dimensions"),
        ("lda ²", "number of dimensions"),
        ("whiten 7", "takes no size"),
    ],
)
def test_language_faults(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_chain(text)


def test_mean_whitening_and_length(data: tuple[np.ndarray, list[str]]) -> None:
    rows, speakers = data
    centred = rows.astype(np.float64) - rows.astype(np.float64).mean(axis=0)
    white = centred @ np.linalg.inv(sqrtm(centred.T @ centred / len(rows)))
    np.testing.assert_allclose(fit_chain("mean-subtract", rows, speakers).apply(rows), centred, atol=1e-12)
    np.testing.assert_allclose(fit_chain("mean-subtract|whiten", rows, speakers).apply(rows), white, atol=1e-9)
    normed = fit_chain("mean-subtract | whiten | length-norm", rows, speakers).apply(rows)
    expected = white / np.linalg.norm(white, axis=1, keepdims=True) * np.sqrt(DIM)
    np.testing.assert_allclose(normed, expected, atol=1e-9)


def test_lda_is_that_of_scikit_learn(data: tuple[np.ndarray, list[str]]) -> None:
    rows, speakers = data
    theirs = LinearDiscriminantAnalysis(solver="eigen", n_components=3).fit(rows.astype(np.float64), speakers)
    chain = fit_chain("lda 3", rows, speakers)
    matrix = chain.steps[0].matrix
    assert matrix is not None
    assert matrix.shape == (3, DIM)
    assert subspace_angles(matrix.T, theirs.scalings_[:, :3]).max() < 1e-7
    statistics = SpeakerStatistics.of(chain.apply(rows), speakers)
    np.testing.assert_allclose(statistics.scatter / len(rows), np.eye(3), atol=1e-9)
    spread = np.var(statistics.means, axis=0)
    assert (np.diff(spread) < 0).all(), "the best direction comes first"


def test_steps_are_fitted_on_what_comes_before(data: tuple[np.ndarray, list[str]]) -> None:
    rows, speakers = data
    whole = fit_chain("length-norm | mean-subtract", rows, speakers)
    normed = rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True) * np.sqrt(DIM)
    np.testing.assert_allclose(whole.apply(rows), normed - normed.mean(axis=0), atol=1e-12)


def test_recentring_moves_means_only(data: tuple[np.ndarray, list[str]]) -> None:
    rows, speakers = data
    chain = fit_chain("mean-subtract | lda 4 | mean-subtract", rows, speakers)
    moved = rows + np.arange(DIM)
    np.testing.assert_allclose(chain.recentred(moved).apply(moved), chain.apply(rows), atol=1e-5)
    np.testing.assert_array_equal(chain.recentred(moved).steps[1].matrix, chain.steps[1].matrix)


def test_stored_and_loaded(data: tuple[np.ndarray, list[str]]) -> None:
    rows, speakers = data
    chain = fit_chain("mean-subtract | whiten | lda 2 | length-norm", rows, speakers)
    again = load_chain(str(chain), chain.tensors())
    assert str(again) == "mean-subtract | whiten | lda 2 | length-norm"
    np.testing.assert_array_equal(again.apply(rows), chain.apply(rows))
    assert str(load_chain(str(Chain()), {})) == "none"


def test_loading_contradictions(data: tuple[np.ndarray, list[str]]) -> None:
    rows, speakers = data
    chain = fit_chain("mean-subtract | lda 2", rows, speakers)
    tensors = chain.tensors()
    for text, arrays in (
        ("mean-subtract", tensors),
        ("mean-subtract | lda 3", tensors),
        ("mean-subtract | lda 2 | whiten", tensors),
        ("mean-subtract | lda 2", {**tensors, "0.mean": np.zeros(DIM + 1)}),
        ("mean-subtract | lda 2", {**tensors, "0.mean": np.zeros((1, DIM))}),
        ("length-norm", {"0.matrix": np.eye(2)}),
    ):
        with pytest.raises((KeyError, ValueError)):
            load_chain(text, arrays)


@pytest.mark.parametrize(
    ("chain", "rows", "speakers", "message"),
    [
        ("lda 2", np.ones((6, 3)), list("aabbcc"), "vary in 0 of 3"),
        ("lda 2", np.eye(6, 3), list("abcdef"), "0 speakers with two utterances"),
        ("lda 2", np.eye(6, 3), list("aabcde"), "1 speakers with two utterances"),
        ("lda 2", np.eye(6), list("aaabbc"), "at most 3 directions"),
        ("whiten", np.eye(3, 9), list("aab"), "vary in 2 of 9"),
        ("length-norm", np.zeros((4, 2)), list("aabb"), "row 0 has no direction"),
        ("mean-subtract | lda 1", np.full((4, 2), np.nan), list("aabb"), "NaN"),
    ],
)
def test_data_faults(chain: str, rows: np.ndarray, speakers: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit_chain(chain, rows, speakers, "emb.npz")


def test_lda_of_too_many_dimensions(data: tuple[np.ndarray, list[str]]) -> None:
    rows, speakers = data
    with pytest.raises(ConfigError, match="keep 6 at most"):
        fit_chain("lda 7", rows, speakers)
    few = [int(name[1:]) < 4 for name in speakers]
    with pytest.raises(ConfigError, match="keep 3 at most"):
        fit_chain("lda 4", rows[few], [name for name, keep in zip(speakers, few, strict=True) if keep])


def test_rows_of_another_dimension(data: tuple[np.ndarray, list[str]]) -> None:
    chain = fit_chain("mean-subtract | length-norm", *data)
    with pytest.raises(DataError, match="expects 6 values, not 5"):
        chain.apply(np.ones((2, 5)), source="other.npz")
    with pytest.raises(DataError, match="'utt2' has no direction"):
        fit_chain("length-norm", *data).apply(np.eye(2, DIM) * [[1], [0]], ["utt1", "utt2"])


def test_weights_of_speakers(data: tuple[np.ndarray, list[str]]) -> None:
    """A weight of 2 counts as a copy of the speaker under another name."""
    rows, speakers = data
    copies = [number for number, name in enumerate(speakers) if name == "s4"]
    doubled = SpeakerStatistics.of(np.vstack([rows, rows[copies]]), [*speakers, *("copy" for _ in copies)])
    weighted = SpeakerStatistics.of(rows, speakers, {"s4": 2.0})
    np.testing.assert_allclose(weighted.scatter, doubled.scatter, rtol=1e-12)
    np.testing.assert_allclose(weighted.mean, doubled.mean, rtol=1e-12)
    with pytest.raises(DataError, match="bad weight"):
        SpeakerStatistics.of(rows, speakers, {"s4": 0.0})
