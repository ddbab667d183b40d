"""Mixtures written to disk from recipes, in the published layouts: equal to what the published scripts write."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import soundfile
from scipy.signal import resample_poly

from speakerkit.audio import AudioInfo, audio_info, load_audio
from speakerkit.data.mixing.drawing import loudness
from speakerkit.data.mixing.recipes import Piece, Recipe
from speakerkit.data.parallel import map_threads
from speakerkit.errors import AudioError, DataError
from speakerkit.files import atomic_path, write_json, write_lines

Signal = npt.NDArray[Any]  # (samples,) float32, or float64 where the published scripts compute so
Mode = Literal["min", "max"]

SPARSE_BLOCK = 0.1  # seconds of SparseLibriMix's loudness blocks; BS.1770 has 0.4
SAMPLE_BYTES, HEADER_BYTES = 2, 44  # of what is written
SETTINGS = "generated.json"
CLEAN = "mix_clean"
# Where recordings lie below the folder that is given: as metadata say, or as corpora are unpacked.
SPEECH_FOLDERS = ("", "LibriSpeech", "test-clean", "LibriSpeech/test-clean")
NOISE_FOLDERS = ("", "wham_noise", "tt", "wham_noise/tt")


@dataclass(frozen=True, eq=False)
class Rendered:
    """The sound of a recipe: sources (K arrays of (S,)), and noise (S,) where it was wanted."""

    sources: list[Signal]
    noise: Signal | None

    def files(self, kinds: Collection[str]) -> dict[str, Signal]:
        """Folder to sound of all that is written."""
        voices = {f"s{number + 1}": source for number, source in enumerate(self.sources)}
        noise = {} if self.noise is None else {"noise": self.noise}
        return {**voices, **noise, **{kind: self.mix(kind) for kind in kinds}}

    def mix(self, kind: str) -> Signal:
        """(S,) of a type of mixture: mix_clean, mix_single (of the first source), or mix_both alias mix_noisy."""
        total = np.zeros_like(self.sources[0])
        for part in self.sources[:1] if kind == "mix_single" else self.sources:
            total += part
        if kind != "mix_clean" and self.noise is not None:
            total += self.noise
        return total


def render(recipe: Recipe, rate: int, mode: Mode = "max", noisy: bool = False) -> Rendered:
    """The sound of a recipe at ``rate`` Hz, as the scripts of its corpus make it.

    LibriMix's: each recording times its gain, resampled. SparseLibriMix's: each piece without its mean, resampled, at
    its loudness. "max" adds zeros up to the longest, noise included; "min" cuts all to the shortest.

    Raises:
        AudioError: a recording that cannot be read or has no loudness.
    """
    sources = [_voice(pieces, rate) for pieces in recipe.sources]
    parts = list(sources)
    if noisy and recipe.noise is not None:
        parts.append(_noise(recipe, rate))
    size = (min if mode == "min" else max)(map(len, parts))
    fitted = [np.pad(part[:size], (0, size - len(part[:size]))) for part in parts]
    return Rendered(fitted[: len(sources)], fitted[-1] if len(parts) > len(sources) else None)


def _voice(pieces: Sequence[Piece], rate: int) -> Signal:
    sounds = [_sound(piece, rate) for piece in pieces]
    if len(sounds) == 1:
        return sounds[0]
    voice = np.zeros(max(map(len, sounds)))
    for sound in sounds:
        voice[: len(sound)] += sound
    return voice


def _sound(piece: Piece, rate: int) -> Signal:
    """A piece in its place: zeros before it."""
    if piece.cut is None:
        audio = load_audio(piece.path, channel=piece.channel)
        signal = resample_poly(audio.samples * (piece.gain or 0.0), rate, audio.rate)
        return np.pad(signal, (round(piece.start * rate), 0)) if piece.start else signal
    own = audio_info(piece.path).rate
    first, last = (int(second * own) for second in piece.cut)
    heard = load_audio(piece.path, channel=piece.channel, start=first / own, duration=(last - first) / own).samples
    signal = heard.astype(np.float64)
    signal = resample_poly(signal - signal.mean(), rate, own)
    gain = 10 ** (((piece.level or 0.0) - loudness(signal, rate, piece.path, SPARSE_BLOCK)) / 20)
    return np.pad(gain * signal, (int(piece.start * rate), 0))


def _noise(recipe: Recipe, rate: int) -> Signal:
    """LibriMix's noise: from its beginning, as long as the longest source, repeated where it is too short."""
    piece = recipe.noise
    if piece is None or piece.cut is not None:
        return _sound(piece, rate) if piece is not None else np.zeros(0)
    seconds = max(audio_info(each.path).seconds + each.start for (each,) in recipe.sources)
    audio = load_audio(piece.path, channel=piece.channel, duration=seconds)
    try:
        noise = extended(audio.samples, round(seconds * audio.rate), audio.rate)
    except DataError as error:
        raise AudioError(piece.path, error.fault, error.remedy) from None
    return resample_poly(noise * (piece.gain or 0.0), rate, audio.rate)


def extended(noise: Signal, count: int, rate: int) -> Signal:
    """(count,): ``noise`` again and again, each time faded into the last by half a second of a Hann window of one.

    Raises:
        DataError: it has to be repeated, and is no longer than the fade.
    """
    window = np.hanning(rate + 1)
    rising = window[: rate // 2 + 1]
    fade = len(rising)
    if len(noise) < count and len(noise) <= fade:  # repeating it would add nothing
        raise DataError(None, f"is {len(noise) / rate:.2f} s long, too short to be repeated", "noises last over 0.5 s")
    longer = noise
    while len(longer) < count:
        joint = longer[-fade:] * rising[::-1] + noise[:fade] * rising
        longer = np.concatenate([longer[:-fade], joint, noise[fade:]])
    return longer[:count]


def located(recipes: Sequence[Recipe], speech: str | Path | None, noise: str | Path | None) -> list[Recipe]:
    """The same with paths of files: of the recordings below ``speech``, and of the noises below ``noise``.

    Without ``noise`` the mixtures have none.

    Raises:
        DataError: files that are not there or have no readable header, counted and the first named.
    """
    found: dict[str, str] = {}
    pieces = [piece for recipe in recipes for source in recipe.sources for piece in source]
    missing = [
        path for path in sorted({piece.path for piece in pieces}) if not _find(path, speech, SPEECH_FOLDERS, found)
    ]
    total = len({piece.path for piece in pieces})
    if noise is not None:
        noises = sorted({recipe.noise.path for recipe in recipes if recipe.noise is not None})
        missing += [path for path in noises if not _find(path, noise, NOISE_FOLDERS, found)]
        total += len(noises)
    if missing:
        fault = f"lacks {len(missing)} of the {total} recordings to mix, {missing[0]} first"
        raise DataError(
            speech if missing[0] in {piece.path for piece in pieces} else noise, fault, "complete the corpus"
        )
    return [
        replace(
            recipe,
            sources=tuple(
                tuple(replace(piece, path=found[piece.path]) for piece in source) for source in recipe.sources
            ),
            noise=None
            if noise is None or recipe.noise is None
            else replace(recipe.noise, path=found[recipe.noise.path]),
        )
        for recipe in recipes
    ]


def _find(path: str, root: str | Path | None, folders: Sequence[str], found: dict[str, str]) -> bool:
    for folder in folders:
        place = os.path.join(root or "", folder, path)
        if os.path.isfile(place):
            found[path] = os.path.abspath(place)
            return True
    return False


def write_mixtures(
    recipes: Sequence[Recipe],
    folder: str | Path,
    rate: int,
    mode: Mode = "max",
    kinds: Sequence[str] = (CLEAN,),
    workers: int = 1,
) -> None:
    """Write ``KIND/KEY.wav``, ``s1/KEY.wav`` ... and, unless all is clean, ``noise/KEY.wav``, in 16 bits.

    Sources are read and space is looked for before anything is written. Files that an interrupted call has left are not
    made again. The bytes do not depend on ``workers``.

    Raises:
        DataError: unreadable sources (counted), noise that is missing, too little space, or a folder of other mixtures.
        AudioError: a source that turns out to be damaged or has no loudness.
    """
    folder = Path(folder)
    noisy = any(kind != CLEAN for kind in kinds)
    silent = [recipe.key for recipe in recipes if recipe.noise is None] if noisy else []
    if silent:
        fault = f"has no noise for {len(silent)} mixtures, {silent[0]!r} first"
        raise DataError(folder, fault, "give the folder of noises, or ask for mix_clean only")
    infos = _headers(recipes, noisy, workers)
    waiting = [recipe for recipe in recipes if not _is_there(recipe, folder, kinds, noisy)]
    _require_space(folder, sum(_bytes(recipe, infos, rate, len(kinds) + noisy) for recipe in waiting))
    _require_same(folder, recipes, rate, mode, noisy)

    def make(recipe: Recipe) -> None:
        rendered = render(recipe, rate, mode, noisy)
        for name, samples in rendered.files(kinds).items():
            with atomic_path(folder / name / f"{recipe.key}.wav") as temporary:
                soundfile.write(temporary, samples, rate, subtype="PCM_16")

    for _ in map_threads(make, waiting, workers=workers, description=folder.name, unit="mix", block=1):
        pass


def _names(recipe: Recipe, kinds: Sequence[str], noisy: bool) -> list[str]:
    return [*(f"s{number + 1}" for number in range(len(recipe.sources))), *kinds, *(["noise"] if noisy else [])]


def _is_there(recipe: Recipe, folder: Path, kinds: Sequence[str], noisy: bool) -> bool:
    return all((folder / name / f"{recipe.key}.wav").exists() for name in _names(recipe, kinds, noisy))


def _headers(recipes: Sequence[Recipe], noisy: bool, workers: int) -> dict[str, AudioInfo]:
    """What every source declares.

    Raises:
        DataError: some cannot be read, counted and the first named.
    """
    paths = sorted({piece.path for recipe in recipes for source in recipe.sources for piece in source})
    if noisy:
        paths += sorted({recipe.noise.path for recipe in recipes if recipe.noise is not None})
    found = list(map_threads(_header, paths, workers=workers, description="reading headers"))
    faults = [str(each) for each in found if isinstance(each, AudioError)]
    if faults:
        raise DataError(None, f"{len(faults)} of {len(paths)} sources cannot be read, the first {faults[0]}", "")
    return {path: info for path, info in zip(paths, found, strict=True) if isinstance(info, AudioInfo)}


def _header(path: str) -> AudioInfo | AudioError:
    try:
        return audio_info(path)
    except AudioError as error:
        return error


def _bytes(recipe: Recipe, infos: dict[str, AudioInfo], rate: int, extra: int) -> int:
    """What the files of a mixture take at most."""
    ends = [
        piece.start + (infos[piece.path].seconds if piece.cut is None else piece.cut[1] - piece.cut[0])
        for pieces in recipe.sources
        for piece in pieces
    ]
    if recipe.noise is not None and recipe.noise.cut is not None:
        ends.append(recipe.noise.cut[1] - recipe.noise.cut[0])
    return (len(recipe.sources) + extra) * (round(max(ends) * rate) * SAMPLE_BYTES + HEADER_BYTES)


def _require_space(folder: Path, wanted: int) -> None:
    place = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(place).free
    if wanted > free:
        fault = f"has {free / 1e9:.2f} GB free, {wanted / 1e9:.2f} GB are to be written"
        raise DataError(folder, fault, "free some, or ask for fewer types, one rate and one mode")


def _require_same(folder: Path, recipes: Sequence[Recipe], rate: int, mode: Mode, noisy: bool) -> None:
    """Only mixtures of the same metadata go on in a folder; clean ones may get their noise later."""
    plain = [[each.key, [[_plain(piece) for piece in source] for source in each.sources]] for each in recipes]
    longer = noisy and any(recipe.noise is not None and recipe.noise.cut is not None for recipe in recipes)
    description = {"mixtures": _digest(plain), "rate": rate, "mode": mode, "as_long_as_noise": longer}
    noises = [[Path(each.noise.path).name, *_plain(each.noise)] for each in recipes if each.noise is not None]
    noise = {"noise": _digest(noises)} if noisy else {}
    known: dict[str, Any] = {}
    if (folder / SETTINGS).exists():
        known = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        if known != {**known, **description} or ("noise" in known and known != {**known, **noise}):
            raise DataError(folder, "holds mixtures of other metadata or settings", "choose another folder")
    elif folder.exists() and any(folder.iterdir()):
        raise DataError(folder, "is not empty", "choose another folder")
    write_json(folder / SETTINGS, {**known, **description, **noise})


def _plain(piece: Piece) -> list[Any]:
    return [piece.gain, piece.level, piece.start, piece.cut, piece.channel]


def _digest(plain: list[Any]) -> str:
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def published_folder(metadata: str | Path, recipes: Sequence[Recipe], rate: int, mode: Mode) -> Path:
    """Where the published scripts write the mixtures of a metadata file, below the folder they are given."""
    path = Path(metadata)
    if path.suffix == ".json":
        name = path.parent.name if path.parent.name.startswith("sparse_") else path.stem
        return Path(name) / f"wav{rate}"
    count = max(len(recipe.sources) for recipe in recipes)
    name = path.stem.replace(f"libri{count}mix_", "").replace("-clean", "")
    rate_name = f"wav{rate // 1000}k" if rate % 1000 == 0 else f"wav{rate}"
    return Path(f"Libri{count}Mix") / rate_name / mode / name


def write_mixture_tables(folder: str | Path, recipes: Sequence[Recipe], kinds: Sequence[str]) -> None:
    """Write LibriMix's ``../metadata/mixture_SPLIT_KIND.csv`` of a folder: paths and samples of each mixture."""
    folder = Path(folder).absolute()
    for kind in kinds:
        count = 1 if kind == "mix_single" else max(len(recipe.sources) for recipe in recipes)
        names = [kind, *(f"s{number + 1}" for number in range(count)), *([] if kind == CLEAN else ["noise"])]
        columns = ["mixture", *(f"source_{number + 1}" for number in range(count)), "noise"][: len(names)]
        lines = [",".join(["mixture_ID", *(f"{column}_path" for column in columns), "length"])]
        for recipe in recipes:
            paths = [str(folder / name / f"{recipe.key}.wav") for name in names]
            lines.append(",".join([recipe.key, *paths, str(audio_info(paths[0]).frames)]))
        write_lines(folder.parent / "metadata" / f"mixture_{folder.name}_{kind}.csv", lines)
