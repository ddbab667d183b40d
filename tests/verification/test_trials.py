"""Trial lists and score files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speakerkit.errors import DataError
from speakerkit.verification.trials import Scores, Trials, read_scores, read_trials, write_scores, write_trials


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "a x target\nb x nontarget\na y nontarget\n",
        "a x tgt\nb\tx   imp\n\na y imp",
        "1 a x\n0 b x\n0 a y\n",
        "\ufeffa x target\r\nb x nontarget\r\na y imp\r\n",
    ],
)
def test_labelled_dialects(tmp_path: Path, text: str) -> None:
    trials = read_trials(write(tmp_path / "trials", text))
    assert list(trials.pairs()) == [("a", "x"), ("b", "x"), ("a", "y")]
    assert trials.labels is not None
    assert trials.labels.tolist() == [True, False, False]
    assert trials.enrol_ids == ("a", "b")
    assert trials.test_ids == ("x", "y")
    assert trials.enrol.tolist() == [0, 1, 0]


def test_labels_decide_where_ids_are_digits(tmp_path: Path) -> None:
    trials = read_trials(write(tmp_path / "trials", "1 0 target\n0 1 nontarget\n"))
    assert list(trials.pairs()) == [("1", "0"), ("0", "1")]


def test_unlabelled_trials(tmp_path: Path) -> None:
    trials = read_trials(write(tmp_path / "trials", "a x\nb y\n"))
    assert trials.labels is None
    write_trials(tmp_path / "again", trials)
    assert (tmp_path / "again").read_text() == "a x\nb y\n"


def test_trials_round_trip(tmp_path: Path) -> None:
    text = "id1/v/1.wav id2/é/2.wav nontarget\nid1/v/1.wav id1/v/2.wav target\n"
    write_trials(tmp_path / "again", read_trials(write(tmp_path / "trials", text)))
    assert (tmp_path / "again").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "holds no trials"),
        ("\n \n", "holds no trials"),
        ("a b target\na c true\n", "line 2 has an unknown label 'true'"),
        ("1 a b\n2 a c\n", "line 2 has an unknown label '2'"),
        ("a b target\na c\n", "line 2 has 2 columns"),
        ("a b target\na c target extra\n", "line 2 has 4 columns"),
        ("a\n", "line 1 has 1 columns"),
        ("a b 0.25\n", "unknown label '0.25'"),
    ],
)
def test_bad_trials_name_the_line(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(DataError, match=fault) as error:
        read_trials(write(tmp_path / "trials", text))
    assert str(tmp_path / "trials") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a b x target\n", "no finite score"),
        ("a b 1 target\na b nan target\n", "line 2 has no finite score"),
        ("a b inf\n", "line 1 has no finite score"),
        ("a b 1 yes\n", "unknown label 'yes'"),
        ("a b\n", "line 1 has 2 columns"),
    ],
)
def test_bad_scores_name_the_line(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        read_scores(write(tmp_path / "scores", text))


@given(st.lists(st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.booleans()), min_size=1, max_size=30))
def test_score_files_give_back_every_bit(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, bool]]
) -> None:
    path = tmp_path_factory.mktemp("scores") / "scores"
    count = len(rows)
    values = np.array([score for score, _ in rows])
    truth = np.array([label for _, label in rows])
    enrol, test = [f"e{number % 3}" for number in range(count)], [f"t{number % 4}" for number in range(count)]
    for labels in (truth, None):
        write_scores(path, Scores(Trials.from_pairs(enrol, test, labels), values))
        again = read_scores(path)
        assert again.scores.tobytes() == values.tobytes()
        assert list(again.trials.pairs()) == list(zip(enrol, test, strict=True))
        assert (again.trials.labels is None) == (labels is None)
        if labels is not None:
            np.testing.assert_array_equal(again.trials.labels, labels)


def test_columns_must_agree() -> None:
    with pytest.raises(DataError, match="different lengths"):
        Trials.from_pairs(["a"], ["b", "c"])
    with pytest.raises(DataError, match="different lengths"):
        Trials.from_pairs(["a"], ["b"], [True, False])
    with pytest.raises(DataError, match="no trials"):
        Trials.from_pairs([], [])
    with pytest.raises(DataError, match="score each"):
        Scores(Trials.from_pairs(["a"], ["b"]), np.zeros(2))
