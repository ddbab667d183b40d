"""``speakerkit data``: prepare corpora, generate the demo corpus, check data directories, write training lists."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speakerkit.cli import lists
from speakerkit.cli.conversations import conversations
from speakerkit.cli.mixtures import librimix, mixtures, rooms
from speakerkit.cli.options import Json

app = typer.Typer(help="Corpora and lists: prepare, generate, check, pack.", no_args_is_help=True)

Workers = Annotated[int, typer.Option(min=1, help="Threads that read or write files.")]


@app.command()
def prepare(
    corpus: Annotated[
        str,
        typer.Argument(
            help="voxceleb1, voxceleb2, librispeech, librimix, callhome, folder (one per speaker), musan, noise, rirs."
        ),
    ],
    root: Annotated[Path, typer.Argument(help="Folder that the corpus was unpacked to.")],
    out: Annotated[Path, typer.Argument(help="Data directory to write.")],
    subset: Annotated[
        str | None, typer.Option(help="Part of the corpus: dev, train-clean-100, simulated, music ...")
    ] = None,
    trials: Annotated[
        str | None,
        typer.Option(
            help="\"all-pairs\", or a trial list to convert (Kaldi's or VoxCeleb's); of librimix, enrolments."
        ),
    ] = None,
    workers: Workers = 8,
) -> None:
    """Write wav.scp, utt2spk, spk2utt, utt2dur and trials (noises: wav.scp, utt2type) of a corpus."""
    from speakerkit.data.prepare import prepare_corpus
    from speakerkit.errors import PartialFailure

    prepared = prepare_corpus(corpus, root, out, subset=subset, trials=trials, workers=workers)
    for note in prepared.notes:
        typer.echo(f"note: {note}", err=True)
    parts = [f"{prepared.utterances} recordings", f"{prepared.seconds / 3600:.2f} h"]
    if prepared.speakers:
        parts.insert(1, f"{prepared.speakers} speakers")
    parts += [f"{count} trials in {name}" for name, count in prepared.trials.items()]
    typer.echo(f"{out}: {', '.join(parts)}")
    if prepared.failed:
        raise PartialFailure(
            out / "failed.tsv", f"{len(prepared.failed)} files could not be used", "it names each and says why"
        )


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="Folder to write: train, test, noise, rir.")],
    speakers: Annotated[int, typer.Option(min=1, help="Speakers to train on.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same audio.")] = 0,
    utterances: Annotated[int, typer.Option(min=1, help="Utterances of each training speaker.")] = 8,
    test_speakers: Annotated[int, typer.Option(min=1, help="Other speakers, to test on.")] = 20,
    test_utterances: Annotated[int, typer.Option(min=2, help="Utterances of each test speaker.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.5, max=60, help="Mean length of an utterance.")] = 3.0,
    noises: Annotated[int, typer.Option(min=0, help="Noises of each type, and room responses.")] = 12,
    workers: Workers = 2,
) -> None:
    """Generate a corpus of synthetic voices with espeak-ng; nothing is downloaded. Results on it are demo results."""
    from speakerkit.data.demo import make_demo_corpus

    made = make_demo_corpus(
        out,
        speakers=speakers,
        seed=seed,
        utterances=utterances,
        test_speakers=test_speakers,
        test_utterances=test_utterances,
        seconds=seconds,
        noises=noises,
        workers=workers,
    )
    typer.echo(f"{out}: demo corpus, {made.train_hours:.2f} h to train on, {made.trials} trials to test on")


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="Data directory with wav.scp and utt2spk.")],
    rate: Annotated[int | None, typer.Option(min=1, help="Sampling rate in Hz that all must have.")] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode all audio, which finds damage as well.")] = False,
    trials: Annotated[
        Path | None, typer.Option(help="Trial list; by default `trials` of the directory if it is there.")
    ] = None,
    noise: Annotated[Path | None, typer.Option(help="Directory of noises or room responses to check as well.")] = None,
    allow_pipes: Annotated[bool, typer.Option("--allow-pipes", help="Take commands in wav.scp; not run here.")] = False,
    as_json: Json = False,
    workers: Workers = 8,
) -> None:
    """List every fault of a data directory at once; exits with 2 where there are errors."""
    from speakerkit.data.check import check_data_dir

    report = check_data_dir(
        folder,
        sample_rate=rate,
        decode=decode,
        trials=trials,
        noise=noise,
        allow_pipes=allow_pipes,
        workers=workers,
    )
    typer.echo(report.to_json() if as_json else report.to_table())
    if not report.ok:
        raise typer.Exit(2)


for command in (
    conversations,
    librimix,
    mixtures,
    rooms,
    lists.raw,
    lists.holdout,
    lists.shards,
    lists.lmdb,
    lists.augmentations,
):
    app.command()(command)
