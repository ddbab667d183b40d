"""Cosine scoring: of trials, of everything against everything, with one or several recordings an enrolment."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from speakerkit.data.ark import Embeddings, read_array, read_embeddings
from speakerkit.data.lists import read_table
from speakerkit.errors import ConfigError, DataError
from speakerkit.verification.trials import Scores, Trials
from speakerkit.verification.vectors import PAIRS_AT_ONCE, Floats, Rows, pair_products

AVERAGES = ("embeddings", "scores")
# Below this share of its length, what is left of a float32 embedding after subtraction is rounding.
ROUNDING = 1e-7
# Scores of a block of rows against all others: 8 MB.
SCORES_AT_ONCE = 1 << 20


@dataclass(frozen=True, eq=False)
class Sides:
    """The two sides of a comparison as directions, of which the inner product is the cosine.

    Attributes:
        enrol_ids: enrolment ids, unique.
        test_ids: test ids, unique.
        vectors: (rows, dim) centred, of length one (at most one where the scores of sessions are averaged).
        enrol: (enrolment ids,) row of each.
        test: (test ids,) row of each; an embedding that stands on both sides has one row.
    """

    enrol_ids: tuple[str, ...]
    test_ids: tuple[str, ...]
    vectors: Floats
    enrol: Rows
    test: Rows

    @property
    def same(self) -> bool:
        """Whether both sides are the same embeddings."""
        return np.array_equal(self.enrol, self.test)

    @property
    def pairs(self) -> int:
        """What :func:`score_all` scores."""
        return len(self.enrol) * (len(self.enrol) - 1) // 2 if self.same else len(self.enrol) * len(self.test)


def score_cosine(
    embeddings: Embeddings,
    trials: Trials,
    *,
    mean: npt.ArrayLike | None = None,
    enrol_embeddings: Embeddings | None = None,
    enrol_map: Mapping[str, Sequence[str]] | None = None,
    average: str = "embeddings",
) -> Scores:
    """Cosine of the two embeddings of each trial, in [-1, 1]; the arguments are those of :func:`cosine_sides`."""
    sides = cosine_sides(
        embeddings,
        trials.enrol_ids,
        trials.test_ids,
        mean=mean,
        enrol_embeddings=enrol_embeddings,
        enrol_map=enrol_map,
        average=average,
    )
    return score_trials(sides, trials)


def cosine_sides(
    embeddings: Embeddings,
    enrol_ids: Sequence[str],
    test_ids: Sequence[str],
    *,
    mean: npt.ArrayLike | None = None,
    enrol_embeddings: Embeddings | None = None,
    enrol_map: Mapping[str, Sequence[str]] | None = None,
    average: str = "embeddings",
) -> Sides:
    """Directions of what is to be compared.

    Args:
        embeddings: embeddings of the test ids, and of the enrolment ids unless ``enrol_embeddings`` is given.
        enrol_ids: enrolments wanted.
        test_ids: tests wanted.
        mean: (dim,) subtracted from all first, see :func:`embedding_mean`.
        enrol_embeddings: embeddings of the enrolment side.
        enrol_map: keys of the sessions of each enrolment; without it an enrolment is one embedding of its own name.
        average: with ``enrol_map``, "embeddings": an enrolment is the mean of its directions, at length one again;
            "scores": a score is the mean of the cosines with the sessions. The mean of inner products is that with
            the mean, so the second differs by leaving the mean at its length, which is smaller the less the sessions
            agree.

    Raises:
        DataError: a key without embedding, an enrolment that the map lacks, different dimensions, or an embedding that
            has no direction (zero, or equal to the mean).
        ConfigError: an unknown way to average.
    """
    if average not in AVERAGES:
        raise ConfigError("average", f"{average!r} is not known", f"choose one of {' '.join(AVERAGES)}")
    source = embeddings if enrol_embeddings is None else enrol_embeddings
    if source.dim != embeddings.dim:
        raise DataError(
            source.source,
            f"has {source.dim} values a row, {embeddings.source} {embeddings.dim}",
            "both sides must come from one model",
        )
    enrol_ids, test_ids = tuple(enrol_ids), tuple(test_ids)
    if enrol_embeddings is None and enrol_map is None:
        rows = {key: row for row, key in enumerate(dict.fromkeys(enrol_ids + test_ids))}
        vectors = directions(embeddings, tuple(rows), mean)
        enrol, test = (np.array([rows[key] for key in ids], dtype=np.intp) for ids in (enrol_ids, test_ids))
        return Sides(enrol_ids, test_ids, vectors, enrol, test)
    if enrol_map is None:
        enrolments = directions(source, enrol_ids, mean)
    else:
        enrolments = mean_directions(source, sessions_of(enrol_ids, enrol_map), mean)
        if average == "embeddings":
            enrolments = at_length_one(enrolments, enrol_ids, source.source)
    vectors = np.concatenate([enrolments, directions(embeddings, test_ids, mean)])
    enrol, test = np.split(np.arange(len(vectors)), [len(enrol_ids)])
    return Sides(enrol_ids, test_ids, vectors, enrol, test)


def score_trials(sides: Sides, trials: Trials, block: int = PAIRS_AT_ONCE) -> Scores:
    """Cosine of each trial, in [-1, 1]; memory beside ``sides`` and the scores is 2 x block x dim x 8 bytes.

    Args:
        sides: directions of the ids of ``trials``, in their order.
        trials: what to compare.
        block: trials scored at once; it does not change the scores.
    """
    pairs = sides.enrol[trials.enrol], sides.test[trials.test]
    scores = pair_products(sides.vectors, sides.vectors, pairs, block)
    return Scores(trials, np.clip(scores, -1.0, 1.0, out=scores))


def score_all(sides: Sides, scores_at_once: int = SCORES_AT_ONCE) -> Iterator[Scores]:
    """Cosine of every enrolment with every test, in blocks of whole rows, so that memory does not grow with the pairs.

    Where both sides are the same embeddings each pair comes once, and none with itself.

    Raises:
        DataError: there is one embedding only, on both sides.
    """
    if not sides.pairs:
        raise DataError(sides.enrol_ids[0], "is the only embedding, so that there are no pairs", "give two or more")
    same = sides.same
    enrol, test = sides.vectors[sides.enrol], sides.vectors[sides.test]
    height = max(1, scores_at_once // len(test))
    for start in range(0, len(enrol), height):
        rows = np.arange(start, min(start + height, len(enrol)))
        first = start + 1 if same else 0
        block = enrol[rows] @ test[first:].T  # (height, tests)
        columns = np.arange(first, len(test))
        wanted = columns > rows[:, None] if same else np.ones(block.shape, dtype=np.bool_)
        row, column = np.nonzero(wanted)
        if len(row):
            pairs = Trials(sides.enrol_ids, sides.test_ids, rows[row], columns[column])
            yield Scores(pairs, np.clip(block[wanted], -1.0, 1.0))


def read_enrol_map(path: str | Path) -> dict[str, list[str]]:
    """Sessions of each enrolment, lines ``enrolment key key ...`` as in Kaldi's ``spk2utt``.

    Raises:
        DataError: the file is missing or malformed, or an enrolment names a key twice.
    """
    sessions = {name: keys.split() for name, keys in read_table(path).items()}
    for name, keys in sessions.items():
        if len(set(keys)) != len(keys):
            twice = next(key for row, key in enumerate(keys) if key in keys[:row])
            raise DataError(path, f"enrolment {name!r} names {twice!r} twice", "each session counts once")
    return sessions


def sessions_of(ids: Sequence[str], enrol_map: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Keys of the sessions of each of ``ids``, in their order.

    Raises:
        DataError: an enrolment without sessions; names the first and counts them.
    """
    missing = [name for name in ids if not enrol_map.get(name)]
    if missing:
        raise DataError(
            "enrolment map",
            f"no recordings for {missing[0]!r} ({len(missing)} of {len(ids)} enrolments are missing)",
            "a line is: enrolment key key ...",
        )
    return {name: enrol_map[name] for name in ids}


def embedding_mean(embeddings: Embeddings) -> Floats:
    """Mean (dim,) of a set, in float64; that of the training set centres embeddings before scoring."""
    return embeddings.vectors.mean(axis=0, dtype=np.float64)


def read_mean(path: str | Path) -> Floats:
    """Read a mean (dim,) from a ``.npy`` vector, or compute it from a file of embeddings.

    Raises:
        DataError: the file is missing or malformed.
    """
    path = Path(path)
    if path.suffix != ".npy":
        return embedding_mean(read_embeddings(path))
    array = read_array(path)
    return embedding_mean(read_embeddings(path)) if array.ndim == 2 else array.astype(np.float64)


def require_one_model(*paths: str | Path) -> None:
    """Compare the models that ``STEM.model.json`` beside each file names; files without one are taken on trust.

    Raises:
        DataError: two files come from different models; names both.
    """
    known: tuple[Path, str] | None = None
    for path in map(Path, paths):
        digest = model_digest(path)
        if digest is None:
            continue
        if known is not None and known[1] != digest:
            raise DataError(path, f"was made by another model than {known[0]}", "extract both with one model")
        known = known or (path, digest)


def model_digest(path: Path) -> str | None:
    """Hash of the model that made ``path``, as ``embed`` notes it; ``None`` where there is no note."""
    note = path.parent / f"{path.stem}.model.json"
    try:
        digest = json.loads(note.read_text(encoding="utf-8"))["sha256"]
    except OSError:
        return None
    except (ValueError, RecursionError, KeyError, TypeError):
        digest = None
    if not isinstance(digest, str):
        raise DataError(note, "does not tell which model it stands for", f"extract {path.name} again")
    return digest


def directions(embeddings: Embeddings, keys: Sequence[str], mean: npt.ArrayLike | None = None) -> Floats:
    """Embeddings (keys, dim) in float64, centred if a ``mean`` (dim,) is given, at length one.

    Raises:
        DataError: a key without embedding, a mean of another dimension, or an embedding without direction.
    """
    vectors, lengths = _centred(embeddings, keys, mean)
    vectors /= lengths[:, None]
    return vectors


def magnitudes(embeddings: Embeddings, keys: Sequence[str], mean: npt.ArrayLike | None = None) -> Floats:
    """Lengths (keys,) of the centred embeddings, which cosine scoring leaves out: a measure of quality.

    Raises:
        DataError: as :func:`directions`.
    """
    return _centred(embeddings, keys, mean)[1]


def mean_directions(
    embeddings: Embeddings,
    groups: Mapping[str, Sequence[str]],
    mean: npt.ArrayLike | None = None,
    block: int = 4096,
) -> Floats:
    """Mean (groups, dim) of the directions of each group's embeddings: loud or long recordings weigh as others do.

    The means are shorter than one, the more so the less a group agrees. Directions are made ``block`` at a time.

    Raises:
        DataError: as :func:`directions`.
    """
    sizes = np.array([len(keys) for keys in groups.values()])
    group = np.repeat(np.arange(len(sizes)), sizes)
    keys = [key for members in groups.values() for key in members]
    embeddings.rows(keys)  # counts all that are missing
    sums = np.zeros((len(sizes), embeddings.dim))
    for start in range(0, len(keys), block):
        members = group[start : start + block]
        firsts = np.flatnonzero(np.diff(members, prepend=-1))
        part = directions(embeddings, keys[start : start + block], mean)
        sums[members[firsts]] += np.add.reduceat(part, firsts, axis=0)
    return sums / sizes[:, None]


def at_length_one(vectors: Floats, ids: Sequence[str], source: str) -> Floats:
    """Mean directions (ids, dim) scaled to length one.

    Raises:
        DataError: a mean of directions that cancel out.
    """
    lengths = np.linalg.norm(vectors, axis=1)
    if (lengths <= ROUNDING).any():
        name = ids[int(np.argmin(lengths))]
        raise DataError(source, f"the embeddings of {name!r} cancel out in their mean", "look at its recordings")
    return vectors / lengths[:, None]


def _centred(embeddings: Embeddings, keys: Sequence[str], mean: npt.ArrayLike | None) -> tuple[Floats, Floats]:
    """Centred embeddings (keys, dim) and their lengths (keys,), which are not zero."""
    vectors = embeddings.vectors[embeddings.rows(keys)].astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1)
    centred_lengths = lengths
    if mean is not None:
        centre = np.asarray(mean, dtype=np.float64)
        if centre.shape != (embeddings.dim,) or not np.isfinite(centre).all():
            raise DataError(
                embeddings.source,
                f"has {embeddings.dim} values a row, the mean has shape {centre.shape} (or is not finite)",
                "take the mean of embeddings of the same model",
            )
        vectors -= centre
        centred_lengths = np.linalg.norm(vectors, axis=1)
    bad = (lengths == 0) | (centred_lengths <= ROUNDING * lengths)
    if bad.any():
        raise DataError(
            embeddings.source,
            f"embedding {keys[int(np.argmax(bad))]!r} has no direction: it is zero or equals the mean "
            f"({np.sum(bad)} of {len(bad)})",
            "extract it again, and take the mean over more than one embedding",
        )
    return vectors, centred_lengths
