"""``speakerkit data conversations``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speakerkit.cli.options import AllowPipes


def conversations(
    source: Annotated[Path, typer.Argument(help="Kaldi directory or raw list of utterances of single speakers.")],
    out: Annotated[Path, typer.Argument(help="Kaldi directory to write.")],
    count: Annotated[int, typer.Option(min=1, help="Conversations.")] = 100,
    seconds: Annotated[float, typer.Option(help="Length of each.")] = 60.0,
    min_speakers: Annotated[int, typer.Option(min=1, help="Fewest speakers of one.")] = 2,
    max_speakers: Annotated[int, typer.Option(min=1, help="Most speakers of one.")] = 4,
    rate: Annotated[int, typer.Option(help="Sampling rate in Hz.")] = 16000,
    statistics: Annotated[
        Path | None, typer.Option(help="RTTM, or folder of them, whose turn-taking is measured; VoxConverse's if none.")
    ] = None,
    turn_seconds: Annotated[float | None, typer.Option(help="Mean length of turns, instead of the measured.")] = None,
    overlap_share: Annotated[
        float | None, typer.Option(help="Share of speaker changes in overlap, instead of the measured.")
    ] = None,
    segments: Annotated[
        Path | None, typer.Option(help="Kaldi segments: the speech of each utterance; by its energy if none.")
    ] = None,
    noise: Annotated[Path | None, typer.Option(help="Store of noises: LMDB, folder or Kaldi directory.")] = None,
    rir: Annotated[Path | None, typer.Option(help="Store of room responses.")] = None,
    noise_share: Annotated[float, typer.Option(help="Share of the conversations with noise.")] = 0.8,
    snr: Annotated[tuple[float, float], typer.Option(help="Lowest and highest, in dB.")] = (5.0, 25.0),
    reverb_share: Annotated[float, typer.Option(help="Share of the conversations in rooms.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Threads.")] = 2,
    allow_pipes: AllowPipes = False,
) -> None:
    """Mix conversations of several talkers, with their RTTM; the same command goes on where it was stopped."""
    from speakerkit.data.lists import read_vad
    from speakerkit.data.sources import read_sources, require_recordings
    from speakerkit.data.stores import open_store
    from speakerkit.diarization import simulation
    from speakerkit.diarization.formats import read_turns

    utterances = read_sources(source, allow_pipes)
    if segments is not None:
        utterances = simulation.with_segments(utterances, read_vad(segments), segments)
    measured = simulation.VOXCONVERSE
    if statistics is not None:
        measured = simulation.measure_statistics(read_turns(statistics, "rttm").values())
    settings = simulation.ConversationSettings(
        sample_rate=rate,
        seconds=seconds,
        speakers=(min_speakers, max_speakers),
        statistics=simulation.adjusted(measured, turn_seconds, overlap_share),
        noise_share=noise_share,
        snr=snr,
        reverb_share=reverb_share,
    )
    noises, rooms = (None if path is None else require_recordings(open_store(path)) for path in (noise, rir))
    made = simulation.Conversations(utterances, settings, seed, noises, rooms)
    hours = simulation.write_conversations(made, out, count, workers)
    typer.echo(f"{out}: {count} conversations, {hours:.2f} h")
