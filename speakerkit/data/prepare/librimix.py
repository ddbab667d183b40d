"""Mixtures as published, read directly: LibriMix and SparseLibriMix folders, USED splits, lists of enrolments."""

from __future__ import annotations

import csv
import io
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speakerkit.audio import audio_info, load_audio
from speakerkit.config import require
from speakerkit.data.lists import Utterance, read_lines, write_table
from speakerkit.data.mixing.drawing import DrawSettings, draw_recipes
from speakerkit.data.mixing.generation import Mode, located, write_mixtures
from speakerkit.data.mixing.lists import ListedMixture, Target, target_key, write_mixture_dir
from speakerkit.data.mixing.recipes import Recipe, read_recipes, turns_of, write_recipes
from speakerkit.data.parallel import map_threads
from speakerkit.data.prepare.corpus import CORPORA, Prepared
from speakerkit.data.prepare.librispeech import SPEAKERS
from speakerkit.data.sources import GENDERS, read_genders, speech_spans
from speakerkit.errors import DataError

LAYOUT = "SPLIT/{mix_clean|mix_both|mix_noisy|mix_single}/KEY.wav and SPLIT/s1/KEY.wav"
KINDS = ("mix_clean", "mix_both", "mix_noisy", "mix_single")
UTTERANCE = re.compile(r"(\d+)-(\d+)-(\d+)$")  # LibriSpeech's id: speaker, chapter, number
METADATA = "metadata.csv"  # of what is drawn here
Enrolments = dict[str, dict[str, str]]  # mixture (or its alias) to speaker to path


@dataclass(frozen=True)
class _Split:
    """A folder of mixtures.

    Attributes:
        root: what paths of lists are below.
        folder: with ``s1`` and the like.
        kind: which mixtures.
        recipes: by key, of the metadata that lie with it; of the ids themselves where there are none.
    """

    root: Path
    folder: Path
    kind: str
    recipes: Mapping[str, Recipe]

    def path(self, name: str, key: str) -> str:
        return str((self.folder / name / f"{key}.wav").absolute())


@CORPORA.register("librimix")
def prepare(
    root: Path, out: Path, *, subset: str | None = None, trials: str | None = None, workers: int = 8
) -> Prepared:
    """Mixtures of a split of LibriMix, SparseLibriMix, or what ``data mixtures`` writes, for extraction.

    Args:
        root: a split (``Libri2Mix/wav8k/min/test``), or what lies above it.
        out: gets ``wav.scp ref.scp enroll.scp utt2spk rttm reco2dur reco2utts``, ``reco2alias`` where there is one, and
            ``spk2gender`` where a split, a folder above it or LibriSpeech there says: SPEAKERS.TXT, or in ``metadata``
            LibriMix's ``*_info.csv``.
        subset: path below ``root``, up to the type of mixture (``Libri2Mix/wav8k/min/test/mix_both``) or without it
            (mix_clean if it is there). With a list of USED's, whose paths are below ``root``, the parts of these paths
            to replace: ``wav8k/min/mix_clean``; with ``Libri2Mix`` before them, of such mixtures only.
        trials: list of enrolments: USED's, speakerbeam's (text or csv), wesep's ``spkN.enroll``, or an ``aux.scp`` as
            of SpEx+ or L-SpEx. Where there is none, each target is enrolled with a source of another mixture.

    Speakers talk where the metadata say so, or else where their source has energy.

    Raises:
        DataError: files that are missing (counted), a list of another form, targets that nothing can enrol.
    """
    if not root.is_dir():
        raise DataError(root, "no such directory", "give a split, or the folder above it")
    rows = _used_rows(Path(trials)) if trials else []
    if rows:
        mixtures = _used_mixtures(root, rows, subset, trials, workers)
        aliases: dict[str, str] = {}
        genders = _genders(root)
    else:
        split = _split(root, subset)
        given = _read_enrolments(Path(trials), root, split) if trials else {}
        mixtures = _listed(split, given, trials, workers)
        aliases = {key: recipe.alias for key, recipe in split.recipes.items() if recipe.alias}
        genders = _genders(split.folder)
    write_mixture_dir(out, mixtures)
    heard = {speaker for each in mixtures for _, _, speaker in each.turns}
    heard |= {target.speaker for each in mixtures for target in each.targets}
    if heard & genders.keys():
        write_table(out / GENDERS, {speaker: genders[speaker].lower() for speaker in heard & genders.keys()})
    if aliases:
        write_table(out / "reco2alias", {each.key: aliases[each.key] for each in mixtures})
    speakers = {target.speaker for each in mixtures for target in each.targets}
    return Prepared(out, len(mixtures), len(speakers), sum(each.seconds for each in mixtures), {})


def write_drawn(
    utterances: Sequence[Utterance],
    out: str | Path,
    settings: DrawSettings,
    count: int,
    seed: int,
    *,
    rate: int = 16000,
    mode: Mode = "max",
    noises: Sequence[str] = (),
    genders: Mapping[str, str] | None = None,
    workers: int = 1,
) -> Prepared:
    """Draw ``count`` mixtures of utterances, write them as LibriMix does, with ``metadata.csv``, and list them.

    With noises, both mix_clean and mix_both are written, and mix_both is listed. Files that an interrupted call has
    left are not made again; the bytes do not depend on ``workers``.

    Args:
        noises: paths.
        genders: of speakers, for ``spk2gender``.

    Raises:
        DataError: as :func:`draw_recipes`, :func:`write_mixtures` and :func:`prepare`.
        ConfigError: "min" for utterances that do not begin together.
    """
    out, kinds = Path(out), ("mix_clean", "mix_both") if noises else ("mix_clean",)
    require(mode == "max" or settings.overlap[0] == 1, "mode", mode, "overlap below 1 goes with max")
    recipes = located(draw_recipes(utterances, settings, count, seed, noises, workers), None, "" if noises else None)
    write_mixtures(recipes, out, rate, mode, kinds, workers)
    write_recipes(out / METADATA, recipes)
    if genders:
        drawn = sorted({speaker for recipe in recipes for speaker in recipe.speakers} & genders.keys())
        write_table(out / GENDERS, {speaker: genders[speaker].lower() for speaker in drawn})
    return prepare(out, out, subset=kinds[-1], workers=workers)


def _split(root: Path, subset: str | None) -> _Split:
    folder = root / (subset or "")
    kind = folder.name if folder.name in KINDS else ""
    folder = folder.parent if kind else folder
    kind = kind or next((each for each in KINDS if (folder / each).is_dir()), "")
    keys = sorted(path.stem for path in (folder / kind).glob("*.wav")) if kind else []
    if not keys or not (folder / "s1").is_dir():
        raise DataError(
            folder, f"holds nothing like {LAYOUT}", "name a split with --subset, as Libri2Mix/wav8k/min/test"
        )
    return _Split(root, folder, kind, _recipes(folder, keys))


def _recipes(folder: Path, keys: Sequence[str]) -> dict[str, Recipe]:
    """How each mixture was made, as far as it is known."""
    name = folder.parent.name  # sparse_2_0, in SparseLibriMix
    places = (
        *(folder / METADATA, folder / "metadata.json", folder.parent / "metadata.json"),
        *(above / "metadata" / name / "metadata.json" for above in list(folder.absolute().parents)[1:4]),
    )
    metadata = next((place for place in places if place.is_file()), None)
    if metadata is not None:
        known = {recipe.key: recipe for recipe in read_recipes(metadata)}
        absent = [key for key in keys if key not in known]
        if absent:
            raise DataError(metadata, f"lacks {len(absent)} mixtures of {folder}, {absent[0]!r} first", "take its own")
        return {key: known[key] for key in keys}
    strange = [key for key in keys if not all(UTTERANCE.match(part) for part in key.split("_"))]
    if strange:
        fault = f"has {len(strange)} mixtures whose names are not LibriSpeech's utterances, {strange[0]!r} first"
        raise DataError(folder, fault, "put the metadata that it was made from beside them, as metadata.json")
    return {key: _from_id(key) for key in keys}


def _from_id(key: str) -> Recipe:
    utterances = tuple(key.split("_"))
    return Recipe(key, ((),) * len(utterances), tuple(map(_speaker, utterances)), utterances)


def _speaker(utterance: str) -> str:
    return utterance.partition("-")[0]


def _genders(folder: Path) -> dict[str, str]:
    """Speaker to "M" or "F", as far as a split or the folders above it say."""
    if (folder / GENDERS).is_file():
        return read_genders(folder / GENDERS)
    if (folder / METADATA).is_file():  # drawn here, of speakers who need not be LibriSpeech's
        return {}
    for above in [folder.absolute(), *folder.absolute().parents][:5]:
        for listed in (above / SPEAKERS, above / "LibriSpeech" / SPEAKERS):
            if listed.is_file():
                return read_genders(listed)
        tables = sorted((above / "metadata").rglob("*_info.csv"))
        if tables:
            return {speaker: gender for table in tables for speaker, gender in _info_genders(table)}
    return {}


def _info_genders(table: Path) -> Iterator[tuple[str, str]]:
    """Of LibriMix's ``*_info.csv``, whose ids of speakers look like 3536.0."""
    for row in csv.DictReader(io.StringIO("\n".join(read_lines(table)))):
        for number in (1, 2, 3):
            speaker, gender = row.get(f"speaker_{number}_ID"), row.get(f"speaker_{number}_sex")
            if speaker and gender in ("F", "M"):
                yield speaker.removesuffix(".0"), gender


def _listed(split: _Split, given: Enrolments, source: str | None, workers: int) -> list[ListedMixture]:
    recipes = list(split.recipes.values())
    sources = [
        {speaker: split.path(f"s{number + 1}", recipe.key) for number, speaker in enumerate(recipe.speakers)}
        for recipe in recipes
    ]
    missing = [path for table in sources for path in table.values() if not os.path.isfile(path)]
    if missing:
        raise DataError(split.folder, f"lacks {len(missing)} sources, {missing[0]} first", "make it anew")
    offered: dict[str, list[tuple[str, str]]] = {}
    for recipe, table in zip(recipes, sources, strict=True):
        for speaker, utterance in zip(recipe.speakers, recipe.utterances, strict=True):
            offered.setdefault(speaker, []).append((utterance, table[speaker]))
    rows = []
    for recipe, table in zip(recipes, sources, strict=True):
        heard = recipe.speakers[:1] if split.kind == "mix_single" else recipe.speakers
        own = (given.get(recipe.key) or given.get(recipe.alias) or {}) if source else _own(recipe, offered)
        rows.append((recipe, {speaker: table[speaker] for speaker in heard}, own))
    lacking = [
        target_key(recipe.key, speaker) for recipe, heard, own in rows for speaker in heard if not own.get(speaker)
    ]
    if lacking and source is None:
        fault = f"has no other utterance to enrol {len(lacking)} targets with, {lacking[0]!r} first"
        raise DataError(split.folder, fault, "give a list of enrolments with --trials")
    if len(lacking) == sum(len(heard) for _, heard, _ in rows):
        raise DataError(source, f"enrols no speaker of the mixtures in {split.folder}", "take the list of this split")

    def measured(row: tuple[Recipe, dict[str, str], Mapping[str, str]]) -> ListedMixture:
        recipe, heard, own = row
        path = split.path(split.kind, recipe.key)
        seconds = audio_info(path).seconds
        targets = tuple(Target(speaker, own[speaker], path) for speaker, path in heard.items() if own.get(speaker))
        if recipe.absent is not None and source is None:
            targets += (Target(*recipe.absent),)
        turns = turns_of(recipe) or _turns(heard)
        clipped = sorted((start, min(end, seconds), speaker) for start, end, speaker in turns if start < seconds)
        return ListedMixture(recipe.key, path, seconds, targets, tuple(clipped), recipe.utterances)

    return list(map_threads(measured, rows, workers=workers, description="mixtures", unit="mix", block=8))


def _own(recipe: Recipe, offered: Mapping[str, Sequence[tuple[str, str]]]) -> dict[str, str]:
    """The enrolments that a mixture was drawn with, or sources of other mixtures."""
    if recipe.enrolments:
        return dict(zip(recipe.speakers, recipe.enrolments, strict=True))
    return {speaker: _another(recipe, speaker, offered) for speaker in recipe.speakers}


def _another(recipe: Recipe, speaker: str, offered: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """A source of ``speaker`` with another utterance; the same one whatever else is listed beside."""
    others = sorted((utterance, path) for utterance, path in offered[speaker] if utterance not in recipe.utterances)
    rng = np.random.default_rng(zlib.crc32(target_key(recipe.key, speaker).encode()))
    return others[rng.integers(len(others))][1] if others else ""


def _turns(references: Mapping[str, str]) -> list[tuple[float, float, str]]:
    turns = []
    for speaker, path in references.items():
        audio = load_audio(path)
        turns += [(start, end, speaker) for start, end in speech_spans(audio.samples, audio.rate)]
    return turns


def _used_rows(path: Path) -> list[list[str]]:
    """Rows of a list of USED's: mixture, its path, that of the target, enrolment, speaker. None for other lists."""
    rows = [line.split("\t") for line in read_lines(path)]
    used = bool(rows) and len(rows[0]) == 5
    bad = next((number for number, row in enumerate(rows, start=1) if used and len(row) != 5), None)
    if bad is not None:
        raise DataError(path, f"line {bad} has {len(rows[bad - 1])} columns", "USED's lists have five, tab-separated")
    return rows if used else []


def _used_mixtures(
    root: Path, rows: Sequence[Sequence[str]], subset: str | None, source: str | None, workers: int
) -> list[ListedMixture]:
    wanted = subset.split("/") if subset else []
    by_mixture: dict[str, list[tuple[str, str, str, str]]] = {}
    for key, mixture, target, enrolment, speaker in rows:
        paths = (_replaced(mixture, wanted), _replaced(target, wanted, False), enrolment)
        if _is_wanted(*paths[:2], wanted):
            by_mixture.setdefault(key, []).append((*(str((root / path).absolute()) for path in paths), speaker))  # type: ignore[arg-type]
    if not by_mixture:
        raise DataError(source, f"has no targets in {subset or 'mix_single'}", "take another list, or --subset")
    missing = sorted(
        {path for group in by_mixture.values() for row in group for path in row[:3] if not os.path.isfile(path)}
    )
    if missing:
        raise DataError(
            root, f"lacks {len(missing)} files of the list, {missing[0]} first", "give the folder above them"
        )

    def measured(key: str) -> ListedMixture:
        group = by_mixture[key]
        path = group[0][0]
        seconds = audio_info(path).seconds
        folder = Path(path).parent.parent
        spoken = key.split("_")[:1] if Path(path).parent.name == "mix_single" else key.split("_")
        sources = {_speaker(part): str(folder / f"s{number + 1}" / f"{key}.wav") for number, part in enumerate(spoken)}
        heard = {speaker: each for speaker, each in sources.items() if os.path.isfile(each)}
        heard |= {speaker: target for _, target, _, speaker in group}
        turns = tuple(sorted((start, min(end, seconds), name) for start, end, name in _turns(heard)))
        targets = tuple(Target(speaker, enrolment, target) for _, target, enrolment, speaker in group)
        return ListedMixture(key, path, seconds, targets, turns, tuple(key.split("_")))

    return list(map_threads(measured, list(by_mixture), workers=workers, description="mixtures", unit="mix", block=8))


def _is_wanted(mixture: str, target: str, wanted: Sequence[str]) -> bool:
    """Whether a target is of the corpus that is asked for, and to be heard: in mix_single, s1 alone is."""
    corpus = next((part for part in wanted if re.fullmatch(r"Libri\dMix", part)), "")
    heard = "mix_single" not in mixture.split("/") or "s1" in target.split("/")
    return heard and corpus in ("", *mixture.split("/"))


def _replaced(path: str, wanted: Sequence[str], mixture: bool = True) -> str:
    """A path of USED's with another rate, mode or type of mixture."""
    kinds = (("wav8k", "wav16k"), ("min", "max"), KINDS if mixture else ())
    parts = path.split("/")
    for kind in kinds:
        asked = next((part for part in wanted if part in kind), None)
        parts = [asked if asked and part in kind else part for part in parts]
    return "/".join(parts)


def _read_enrolments(path: Path, root: Path, split: _Split) -> Enrolments:
    """Enrolments of any of the other lists."""
    lines = read_lines(path)
    found: Enrolments = {}
    for number, line in enumerate(lines, start=1):
        if line.startswith("mixture_id,"):
            continue
        row = _enrolment_row(line)
        if row is None:
            raise DataError(
                path, f"line {number} is no enrolment: {line[:200]!r}", "see the formats in the documentation"
            )
        mixture, speaker, enrolment = row
        found.setdefault(mixture, {}).setdefault(speaker, enrolment)
    absent: list[str] = []
    for mixture in found.keys() & {name for recipe in split.recipes.values() for name in (recipe.key, recipe.alias)}:
        for speaker, enrolment in found[mixture].items():
            place = _place(enrolment, root, split)
            absent += [] if place else [enrolment]
            found[mixture][speaker] = place
    if absent:
        fault = f"names {len(absent)} files that are not there, {min(absent)} first"
        raise DataError(path, fault, "give LibriSpeech below the root, or the split that holds them")
    return found


def _enrolment_row(line: str) -> tuple[str, str, str] | None:
    """(mixture, speaker, path) of a line."""
    fields = line.split("\t")
    if len(fields) == 4:  # USED's of SparseLibriMix: mixture, its path, enrolment, speaker
        return fields[0], fields[3], fields[2]
    fields = line.split(",") if "," in line and " " not in line else line.split()
    if len(fields) >= 4:  # speakerbeam's csv: mixture, utterance, path, length, further paths and lengths
        return fields[0], _speaker(fields[1]), fields[2]
    if len(fields) == 3:  # speakerbeam's text: mixture, utterance, source of another mixture
        return fields[0], _speaker(fields[1]), fields[2]
    if len(fields) != 2:
        return None
    mixture, _, last = fields[0].rpartition("_")
    source = re.search(r"(?:^|/)s(\d+)/([^/]+?)(?:\.wav)?$", fields[1])
    if source is not None and UTTERANCE.search(fields[0]):  # wesep's: mixture, source of another mixture
        parts = source[2].split("_")
        return (fields[0], _speaker(parts[int(source[1]) - 1]), fields[1]) if int(source[1]) <= len(parts) else None
    own = UTTERANCE.search(last)
    utterances = [UTTERANCE.search(part) for part in mixture.split("_")]
    if own is None or not any(utterances):
        return None
    # SpEx+'s and L-SpEx's: mixture and enrolment in the key; what else may stand before the utterances is left out.
    return "_".join(match[0] for match in utterances if match), own[1], fields[1]


def _place(path: str, root: Path, split: _Split) -> str:
    """Where an enrolment lies; "" where it is not found."""
    name = path if Path(path).suffix else f"{path}.wav"
    match = UTTERANCE.search(Path(name).stem)
    places = [Path(name), root / name, split.folder / name]
    if match:
        inner = f"{match[1]}/{match[2]}/{Path(name).stem}"
        for above in (root, root / "LibriSpeech"):
            places += [found / f"{inner}{suffix}" for found in _subsets(above) for suffix in (".flac", ".wav")]
    return next((str(place.absolute()) for place in places if place.is_file()), "")


def _subsets(folder: Path) -> list[Path]:
    return [folder, *sorted(each for each in folder.glob("*-*") if each.is_dir())]
