"""``speakerkit data librimix``, ``data mixtures`` and ``data rooms``: what extraction is learnt from and tested on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from speakerkit.audio import MAX_RATE, MIN_RATE

if TYPE_CHECKING:
    from speakerkit.data.lists import Utterance

Rate = Annotated[int, typer.Option(min=MIN_RATE, max=MAX_RATE, help="Sampling rate in Hz.")]
Mode = Annotated[str, typer.Option(help="max (zeros up to the longest source), or min (cut to the shortest).")]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads.")]


def librimix(
    metadata: Annotated[Path, typer.Argument(help="csv of LibriMix's metadata, or SparseLibriMix's metadata.json.")],
    out: Annotated[Path, typer.Argument(help="Folder of the corpus: gets Libri2Mix/wav8k/min/test and the like.")],
    speech: Annotated[Path, typer.Option("--librispeech", help="LibriSpeech, with test-clean and the like in it.")],
    noise: Annotated[
        Path | None, typer.Option("--wham", help="WHAM's noises (wham_noise); for clean ones, none.")
    ] = None,
    rate: Rate = 16000,
    mode: Mode = "max",
    types: Annotated[
        str | None, typer.Option(help="mix_clean,mix_both,mix_single (sparse: mix_clean,mix_noisy); all there can be.")
    ] = None,
    workers: Threads = 2,
) -> None:
    """Make the mixtures of published metadata as the published scripts do; goes on where it was stopped."""
    from speakerkit.data.mixing import generation
    from speakerkit.data.mixing.recipes import read_recipes
    from speakerkit.files import write_lines

    recipes = read_recipes(metadata)
    sparse = metadata.suffix == ".json"
    chosen = _mode(mode)
    if sparse and chosen == "min":
        raise typer.BadParameter("SparseLibriMix has max only", param_hint="--mode")
    known = ("mix_clean", "mix_noisy") if sparse else ("mix_clean", "mix_both", "mix_single")
    kinds = (known if noise else known[:1]) if types is None else tuple(types.split(","))
    strange = next((kind for kind in kinds if kind not in known), None)
    if strange is not None:
        raise typer.BadParameter(f"{strange!r} is none of {', '.join(known)}", param_hint="--types")
    folder = out / generation.published_folder(metadata, recipes, rate, chosen)
    noisy = any(kind != "mix_clean" for kind in kinds)
    made = generation.located(recipes, speech, noise if noisy else None)
    generation.write_mixtures(made, folder, rate, chosen, kinds, workers)
    if sparse:
        write_lines(folder / "metadata.json", metadata.read_text(encoding="utf-8").rstrip("\n").split("\n"))
    else:
        generation.write_mixture_tables(folder, made, kinds)
    typer.echo(f"{folder}: {len(made)} mixtures, {', '.join(kinds)}")


def mixtures(
    source: Annotated[Path, typer.Argument(help="Kaldi directory or raw list of utterances of single speakers.")],
    out: Annotated[Path, typer.Argument(help="Directory to write; with --split, one below it for each.")],
    count: Annotated[int, typer.Option(min=1, help="Mixtures, in all splits together.")] = 100,
    min_speakers: Annotated[int, typer.Option(min=1, help="Fewest speakers of one.")] = 2,
    max_speakers: Annotated[int, typer.Option(min=1, help="Most speakers of one.")] = 2,
    overlap: Annotated[
        tuple[float, float], typer.Option(help="Lowest and highest share of the shorter of two that overlaps.")
    ] = (1.0, 1.0),
    loudness: Annotated[tuple[float, float], typer.Option(help="LUFS of the first speaker.")] = (-33.0, -25.0),
    sir: Annotated[tuple[float, float], typer.Option(help="dB of the first over each other.")] = (-5.0, 5.0),
    noise: Annotated[Path | None, typer.Option(help="Folder or Kaldi directory of noises; clean if none.")] = None,
    snr: Annotated[tuple[float, float], typer.Option(help="dB of the first over the noise.")] = (0.0, 10.0),
    absent_share: Annotated[float, typer.Option(help="Share in which an absent speaker is a target, too.")] = 0.0,
    split: Annotated[
        list[str] | None, typer.Option(help="NAME=SHARE of the speakers and mixtures; repeated, train=0.8 test=0.2.")
    ] = None,
    rate: Rate = 16000,
    mode: Mode = "max",
    seed: Seed = 0,
    workers: Threads = 2,
) -> None:
    """Draw mixtures of whole utterances, with enrolments, references and RTTM; goes on where it was stopped."""
    from speakerkit.data.mixing.drawing import DrawSettings, split_speakers
    from speakerkit.data.prepare.librimix import write_drawn
    from speakerkit.data.sources import GENDERS, read_genders, read_sources
    from speakerkit.data.stores import audio_files

    settings = DrawSettings((min_speakers, max_speakers), overlap, loudness, sir, snr, absent_share)
    utterances = read_sources(source)
    noises = () if noise is None else tuple(audio_files(noise)[0].values())
    genders = read_genders(source / GENDERS) if (source / GENDERS).is_file() else None
    names, shares = _shares(split)
    parts: list[list[Utterance]] = split_speakers(utterances, shares, seed) if names else [utterances]
    for number, part in enumerate(parts):
        folder = out / names[number] if names else out
        wanted = max(1, round(count * shares[number])) if names else count
        made = write_drawn(
            *(part, folder, settings, wanted, seed),
            rate=rate,
            mode=_mode(mode),
            noises=noises,
            genders=genders,
            workers=workers,
        )
        typer.echo(f"{folder}: {made.utterances} mixtures, {made.speakers} speakers, {made.seconds / 3600:.2f} h")


def rooms(
    out: Annotated[Path, typer.Argument(help="Folder of responses to write: a store for reverberation.")],
    count: Annotated[int, typer.Option(min=1, help="Rooms.")] = 100,
    places: Annotated[int, typer.Option(min=1, help="Places of a talker in each.")] = 4,
    rt60: Annotated[tuple[float, float], typer.Option(help="Shortest and longest, in seconds.")] = (0.1, 0.6),
    rate: Rate = 16000,
    seed: Seed = 0,
    workers: Threads = 2,
) -> None:
    """Simulate the responses of box-shaped rooms by the image method; goes on where it was stopped."""
    from speakerkit.data.mixing.rooms import RoomSettings, write_rooms

    write_rooms(out, RoomSettings(rate, places, rt60), count, seed, workers)
    typer.echo(f"{out}: {count} rooms, {count * places} responses")


def _mode(value: str) -> Literal["min", "max"]:
    if value not in ("min", "max"):
        raise typer.BadParameter(f"{value!r} is neither 'min' nor 'max'", param_hint="--mode")
    return cast('Literal["min", "max"]', value)


def _shares(splits: list[str] | None) -> tuple[list[str], list[float]]:
    names, shares = [], []
    for text in splits or []:
        name, equals, share = text.partition("=")
        try:
            value = float(share)
        except ValueError:
            equals = ""
        if not equals or not name or "/" in name or name in names or name.startswith("."):
            raise typer.BadParameter(f"{text!r} is not NAME=SHARE", param_hint="--split")
        names.append(name)
        shares.append(value)
    return names, shares
