"""How mixtures are made: the metadata of LibriMix, of SparseLibriMix, and ours, which is LibriMix's and a bit more."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speakerkit.data.lists import read_lines
from speakerkit.errors import DataError
from speakerkit.files import atomic_open


@dataclass(frozen=True)
class Piece:
    """What of a recording is in a mixture, and where.

    Attributes:
        path: of the recording; in published metadata below the corpus's folder.
        gain: factor; ``None`` where ``level`` counts.
        level: LUFS that the piece is brought to, by blocks of 0.1 s.
        start: second of the mixture where it begins.
        cut: (first, last) second of the recording; ``None`` for all of it.
        channel: of the recording.
    """

    path: str
    gain: float | None = None
    level: float | None = None
    start: float = 0.0
    cut: tuple[float, float] | None = None
    channel: int = 0


@dataclass(frozen=True)
class Recipe:
    """How one mixture is made.

    Attributes:
        key: name of its files.
        sources: pieces of each voice; one each but in SparseLibriMix.
        speakers: of the sources.
        utterances: ids of what the sources are from.
        noise: ``None`` where there is none.
        alias: another name that lists use for it.
        enrolments: of the sources, where they were drawn with it.
        absent: a speaker to look for who is not in the mixture, and their enrolment.
    """

    key: str
    sources: tuple[tuple[Piece, ...], ...]
    speakers: tuple[str, ...]
    utterances: tuple[str, ...]
    noise: Piece | None = None
    alias: str = ""
    enrolments: tuple[str, ...] = ()
    absent: tuple[str, str] | None = None


def read_recipes(path: str | Path) -> list[Recipe]:
    """Mixtures of a metadata file: LibriMix's csv (with our columns, if they are there) or SparseLibriMix's json.

    Raises:
        DataError: neither, a row that is not whole, or a mixture twice.
    """
    path = Path(path)
    recipes = _read_sparse(path) if path.suffix == ".json" else _read_librimix(path)
    if not recipes:
        raise DataError(path, "names no mixtures", "give a metadata file of LibriMix or SparseLibriMix")
    seen: set[str] = set()
    for recipe in recipes:
        if recipe.key in seen:
            raise DataError(path, f"the mixture {recipe.key!r} comes twice", "ids must be unique")
        if not recipe.key or "/" in recipe.key or len(recipe.key.split()) != 1 or recipe.key.startswith("."):
            raise DataError(path, f"{recipe.key[:200]!r} names no file", "ids hold neither blanks nor slashes")
        seen.add(recipe.key)
    return recipes


def _read_librimix(path: Path) -> list[Recipe]:
    rows = list(csv.DictReader(io.StringIO("\n".join(read_lines(path)))))
    recipes = []
    for number, row in enumerate(rows, start=2):
        try:
            recipes.append(_librimix_row(row))
        except (KeyError, ValueError, TypeError) as error:
            fault = f"line {number} is no mixture ({type(error).__name__}: {error})"
            columns = "mixture_ID,source_1_path,source_1_gain,...[,noise_path,noise_gain]"
            raise DataError(path, fault, f"its columns are {columns}") from None
    return recipes


def _librimix_row(row: Mapping[str, str]) -> Recipe:
    count = 0
    while row.get(f"source_{count + 1}_path"):  # mixtures of two and of three may share a file
        count += 1
    names = [f"source_{number + 1}" for number in range(count)]
    paths = [row[f"{name}_path"] for name in names]
    pieces = [
        Piece(path, gain=_number(row[f"{name}_gain"]), start=_number(row.get(f"{name}_start") or "0"))
        for name, path in zip(names, paths, strict=True)
    ]
    if not pieces or any(piece.start < 0 for piece in pieces):
        raise ValueError("no source, or one before the start")
    utterances = tuple(row.get(f"{name}_utterance") or Path(path).stem for name, path in zip(names, paths, strict=True))
    speakers = tuple(
        row.get(f"{name}_speaker") or utterance.partition("-")[0]
        for name, utterance in zip(names, utterances, strict=True)
    )
    if len(set(speakers)) < count:
        raise ValueError("a speaker comes twice")
    noise = Piece(row["noise_path"], gain=_number(row["noise_gain"])) if row.get("noise_path") else None
    enrolments = tuple(row.get(f"{name}_enrolment") or "" for name in names)
    return Recipe(
        row["mixture_ID"],
        tuple((piece,) for piece in pieces),
        speakers,
        utterances,
        noise,
        enrolments=enrolments if all(enrolments) else (),
        absent=(row["absent_speaker"], row["absent_enrolment"]) if row.get("absent_speaker") else None,
    )


def write_recipes(path: str | Path, recipes: Sequence[Recipe]) -> None:
    """Write mixtures of whole recordings as LibriMix's csv, with columns for start, speaker, utterance, enrolment."""
    most = max(len(recipe.sources) for recipe in recipes)
    names = [f"source_{number + 1}" for number in range(most)]
    columns = ["mixture_ID", *(f"{name}_{column}" for name in names for column in ("path", "gain"))]
    columns += ["noise_path", "noise_gain"] if any(recipe.noise for recipe in recipes) else []
    columns += [f"{name}_{column}" for name in names for column in ("start", "speaker", "utterance", "enrolment")]
    columns += ["absent_speaker", "absent_enrolment"] if any(recipe.absent for recipe in recipes) else []
    with atomic_open(path) as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_row(recipe) for recipe in recipes)


def _row(recipe: Recipe) -> dict[str, object]:
    row: dict[str, object] = {"mixture_ID": recipe.key}
    for number, pieces in enumerate(recipe.sources):
        name, piece = f"source_{number + 1}", pieces[0]
        row |= {f"{name}_path": piece.path, f"{name}_gain": piece.gain, f"{name}_start": piece.start}
        row |= {f"{name}_speaker": recipe.speakers[number], f"{name}_utterance": recipe.utterances[number]}
        row[f"{name}_enrolment"] = recipe.enrolments[number] if recipe.enrolments else ""
    if recipe.absent is not None:
        row |= {"absent_speaker": recipe.absent[0], "absent_enrolment": recipe.absent[1]}
    if recipe.noise is not None:
        row |= {"noise_path": recipe.noise.path, "noise_gain": recipe.noise.gain}
    return row


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not finite")
    return value


def _read_sparse(path: Path) -> list[Recipe]:
    try:
        entries = json.loads("\n".join(read_lines(path)))
        return [_sparse_entry(entry) for entry in entries]
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, RecursionError) as error:
        fault = f"is no metadata of SparseLibriMix ({type(error).__name__}: {error})"
        raise DataError(path, fault, "give its metadata.json") from None


def _sparse_entry(entry: Mapping[str, Any]) -> Recipe:
    """Sources go by their names: in the published files s3 often stands before s2."""
    names = sorted(name for name in entry if name[0] == "s" and name[1:].isdigit())
    sources = tuple(tuple(_sparse_piece(segment) for segment in entry[name]) for name in names)
    if not sources or not all(sources):
        raise ValueError(f"{entry['mixture_name']!r} has a source without segments")
    noise = [_sparse_piece(segment) for segment in entry.get("noise", ())]
    if len(noise) > 1:
        raise ValueError(f"{entry['mixture_name']!r} has {len(noise)} noises")
    utterances = tuple(str(entry[name][0]["utt_id"]) for name in names)
    speakers = tuple(str(entry[name][0]["spk_id"]) for name in names)
    return Recipe(
        str(entry["mixture_name"]), sources, speakers, utterances, noise[0] if noise else None, "_".join(utterances)
    )


def _sparse_piece(segment: Mapping[str, Any]) -> Piece:
    cut = _number(segment["orig_start"]), _number(segment["orig_stop"])
    start = _number(segment["start"])
    if not 0 <= cut[0] < cut[1] or start < 0:
        raise ValueError(f"a segment from {cut[0]} to {cut[1]} s at {start} s")
    return Piece(str(segment["file"]), None, _number(segment["lvl"]), start, cut, int(segment.get("channel", 0)))


def turns_of(recipe: Recipe) -> list[tuple[float, float, str]]:
    """(start, end, speaker) in seconds of the pieces that say where in a recording they are: SparseLibriMix's."""
    return [
        (piece.start, piece.start + piece.cut[1] - piece.cut[0], speaker)
        for speaker, pieces in zip(recipe.speakers, recipe.sources, strict=True)
        for piece in pieces
        if piece.cut is not None
    ]
