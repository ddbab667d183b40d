"""``speakerkit score``: embeddings and trials to scores."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tqdm import tqdm

from speakerkit.cli.plda import score_plda

if TYPE_CHECKING:
    from speakerkit.data.ark import Embeddings
    from speakerkit.verification.trials import Scores

logger = logging.getLogger("speakerkit.verification")

EmbeddingFile = Annotated[Path, typer.Argument(help="Embeddings: .scp, .ark, .npz, .npy or .jsonl.")]
TrialFile = Annotated[Path, typer.Argument(help="Trials: 'enrol test target|nontarget' a line, or without the label.")]
ScoreFile = Annotated[Path, typer.Argument(help="Score file to write: the trials with a score before the label.")]
MeanFile = Annotated[
    Path | None, typer.Option(help="Mean to subtract first: a .npy vector, or embeddings to take it of.")
]
EnrolFile = Annotated[
    Path | None, typer.Option(help="Embeddings of the enrolment side, where they are in another file.")
]
EnrolMap = Annotated[
    Path | None,
    typer.Option(help="Enrolments of several recordings: 'enrolment key key ...' a line, as Kaldi's spk2utt."),
]
Average = Annotated[str, typer.Option(help="What is averaged over the recordings of an enrolment: embeddings|scores.")]

app = typer.Typer(no_args_is_help=True)
app.command("plda")(score_plda)


@app.callback()
def score() -> None:
    """Score verification trials, diarizations (der), and extracted voices (extraction)."""


@app.command()
def cosine(
    embeddings: EmbeddingFile,
    trials: Annotated[
        Path, typer.Argument(help="Trials: 'enrol test target|nontarget' a line, or without the label; or 'all-pairs'.")
    ],
    out: ScoreFile,
    mean: MeanFile = None,
    enrol: EnrolFile = None,
    enrol_map: EnrolMap = None,
    average: Average = "embeddings",
) -> None:
    """Cosine of the two embeddings of each trial, in [-1, 1].

    'all-pairs' is each pair of the embeddings once; with --enrol or --enrol-map, every enrolment against every
    embedding.
    """
    from speakerkit.data.trials import ALL_PAIRS
    from speakerkit.verification.cosine import cosine_sides, score_all, score_trials
    from speakerkit.verification.trials import read_trials, write_score_blocks

    tests, options = _read(embeddings, mean, enrol, enrol_map, average)
    if str(trials) == ALL_PAIRS:
        enrolments = options["enrol_map"] or (options["enrol_embeddings"] or tests).keys
        sides = cosine_sides(tests, sorted(enrolments), sorted(tests.keys), **options)
        count = write_score_blocks(out, _shown(score_all(sides), sides.pairs))
    else:
        listed = read_trials(trials)
        sides = cosine_sides(tests, listed.enrol_ids, listed.test_ids, **options)
        count = write_score_blocks(out, [score_trials(sides, listed)])
    typer.echo(f"{out}: {count} scores", err=True)


@app.command()
def norm(
    embeddings: EmbeddingFile,
    trials: TrialFile,
    out: ScoreFile,
    cohort: Annotated[Path, typer.Option(help="Embeddings of impostors, of the same model.")],
    cohort_utt2spk: Annotated[
        Path | None, typer.Option(help="Speakers of the cohort, to take the mean of each; without it, every utterance.")
    ] = None,
    method: Annotated[str, typer.Option(help="as-norm1, as-norm2, s-norm, z-norm or t-norm.")] = "as-norm1",
    top: Annotated[
        int | None, typer.Option(help="Best members of the cohort that as-norm takes; 300 unless given.")
    ] = None,
    utt2spk: Annotated[
        Path | None, typer.Option(help="Speakers of the trials, to warn if the cohort has them too.")
    ] = None,
    mean: MeanFile = None,
    enrol: EnrolFile = None,
    enrol_map: EnrolMap = None,
    average: Average = "embeddings",
) -> None:
    """Normalised cosine of each trial: how far it stands out from the cosines with a cohort of impostors."""
    from speakerkit.data.ark import read_embeddings
    from speakerkit.data.lists import read_table
    from speakerkit.verification.cosine import cosine_sides, require_one_model
    from speakerkit.verification.normalisation import cohort_overlap, make_cohort, normalise_cosine
    from speakerkit.verification.trials import read_trials, write_scores

    require_one_model(embeddings, cohort)
    tests, options = _read(embeddings, mean, enrol, enrol_map, average)
    listed = read_trials(trials)
    impostors = read_embeddings(cohort)
    cohort_speakers = None if cohort_utt2spk is None else read_table(cohort_utt2spk)
    trial_speakers = None if utt2spk is None else read_table(utt2spk)
    enrolled = [key for name in listed.enrol_ids for key in (options["enrol_map"] or {}).get(name, ())]
    trial_keys = [*listed.enrol_ids, *listed.test_ids, *enrolled]
    shared = cohort_overlap(impostors.keys, trial_keys, cohort_speakers, trial_speakers)
    if shared:
        logger.warning(
            "%s: %d names of the trials are in the cohort, %r first: scores with oneself are no impostor's",
            cohort,
            len(shared),
            shared[0],
        )
    sides = cosine_sides(tests, listed.enrol_ids, listed.test_ids, **options)
    members = make_cohort(impostors, cohort_speakers, options["mean"])
    scores = normalise_cosine(sides, listed, members, method, top)
    write_scores(out, scores)
    typer.echo(f"{out}: {len(scores)} scores, cohort of {len(members)}", err=True)


def _read(
    embeddings: Path, mean: Path | None, enrol: Path | None, enrol_map: Path | None, average: str
) -> tuple[Embeddings, dict[str, Any]]:
    """Embeddings of the tests, and the options of ``cosine_sides``."""
    from speakerkit.data.ark import read_embeddings
    from speakerkit.verification.cosine import read_enrol_map, read_mean, require_one_model

    require_one_model(*(path for path in (embeddings, mean, enrol) if path is not None))
    options = {
        "mean": None if mean is None else read_mean(mean),
        "enrol_embeddings": None if enrol is None else read_embeddings(enrol),
        "enrol_map": None if enrol_map is None else read_enrol_map(enrol_map),
        "average": average,
    }
    return read_embeddings(embeddings), options


def _shown(blocks: Iterable[Scores], total: int) -> Iterator[Scores]:
    """``blocks``, with a progress bar on a terminal."""
    with tqdm(total=total, unit=" trials", unit_scale=True, disable=None) as bar:
        for scores in blocks:
            yield scores
            bar.update(len(scores))
