"""Trial lists and score files."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speakerkit.errors import DataError
from speakerkit.verification import trials as trials_module
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
        ("a b target\n\n \na c true\n", "line 4 has an unknown label 'true'"),
        ("a b\nc\nd e f\ng h\n", "line 2 has 1 columns"),
        ("\n\na b target extra\n", "line 3 has 4 columns"),
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


@pytest.mark.parametrize("characters", [1, 20, 50, 1 << 22])
def test_blocks_of_text_do_not_show(tmp_path: Path, characters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials_module, "READ_CHARACTERS", characters)
    monkeypatch.setattr(trials_module, "WRITTEN_LINES", 3)
    rows = [(f"id{number % 5}", f"\0té{number % 7}" if number % 3 else "t", number % 2) for number in range(40)]
    lines = [
        f"{enrol}\t{test} {number / 7!r}  {('imp', 'tgt')[label]}" for number, (enrol, test, label) in enumerate(rows)
    ]
    for gap in ("\n", "\n\n \n", "\r\n"):
        scores = read_scores(write(tmp_path / "scores", "\ufeff" + gap.join(lines)))
        assert list(scores.trials.pairs()) == [(enrol, test) for enrol, test, _ in rows]
        assert scores.scores.tolist() == [number / 7 for number in range(40)]
        assert scores.trials.labels is not None
        assert scores.trials.labels.tolist() == [bool(label) for *_, label in rows]
    write_scores(tmp_path / "again", scores)
    assert (tmp_path / "again").read_text(encoding="utf-8") == "".join(
        f"{enrol} {test} {number / 7!r} {('nontarget', 'target')[label]}\n"
        for number, (enrol, test, label) in enumerate(rows)
    )
    path = write(tmp_path / "scores", "\n".join([*lines[:30], "", "a b nan tgt"]))
    with pytest.raises(DataError, match="line 32 has no finite score: 'a b nan tgt'"):
        read_scores(path)
    path.write_bytes(path.read_bytes() + b"\xff")
    with pytest.raises(DataError, match="cannot be read as text"):
        read_scores(path)


def test_reading_needs_memory_for_numbers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials_module, "READ_CHARACTERS", 1 << 16)
    path = write(tmp_path / "trials", "".join(f"id{n % 100} id{n % 99} target\n" for n in range(100_000)))
    tracemalloc.start()
    try:
        assert len(read_trials(path)) == 100_000
        assert tracemalloc.get_traced_memory()[1] < 5e6  # words alone take 15 MB
    finally:
        tracemalloc.stop()


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
