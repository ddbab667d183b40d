"""Of ``speakerkit score``: what makes log-likelihood ratios of scores, and what is learnt from."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from speakerkit.data.ark import Embeddings
    from speakerkit.verification.trials import Scores

ScoreFiles = Annotated[list[Path], typer.Argument(help="Score files of one list of trials, one a system.")]
QualityFile = Annotated[Path | None, typer.Option(help="Quality measures of the recordings, from `score quality`.")]


def fit(
    out: Annotated[Path, typer.Argument(help="Map to write, as .json.")],
    scores: ScoreFiles,
    method: Annotated[str, typer.Option(help="linear (logistic regression), or pav for any rising map.")] = "linear",
    quality: QualityFile = None,
    prior: Annotated[float, typer.Option(help="Probability of a target where ratios will be used.")] = 0.5,
) -> None:
    """Learn to turn scores into log-likelihood ratios: calibration of one system, fusion of several.

    With --quality the ratios also depend on the recordings (QMF). Learn on other trials than those to be measured.
    """
    from speakerkit.errors import one_line
    from speakerkit.verification.calibration import fit_linear, fit_pav, write_map
    from speakerkit.verification.metrics import cllr, min_cllr

    if method not in ("linear", "pav"):
        raise typer.BadParameter(f"{method!r} is neither 'linear' nor 'pav'", param_hint="--method")
    if method == "pav" and (quality is not None or len(scores) > 1):
        raise typer.BadParameter("pav takes one score file and no --quality", param_hint="--method")
    systems, names, columns = _columns(scores, quality)
    labels, source = _labels(systems), str(scores[0])
    if method == "pav":
        score_map: Any = fit_pav(columns[:, 0], labels, names[0], source)
    else:
        score_map = fit_linear(columns, labels, names, prior=prior, systems=len(scores), source=source)
    ratios = score_map(columns)
    data = {
        "scores": [one_line(str(path)) for path in scores],
        "quality": None if quality is None else one_line(str(quality)),
        "targets": int(labels.sum()),
        "nontargets": int((~labels).sum()),
        "cllr": cllr(ratios, labels),
        "min_cllr": min_cllr(ratios, labels),
    }
    write_map(out, score_map, data)
    typer.echo(f"{out}: Cllr {data['cllr']:.4f} bits on {len(labels)} trials, at best {data['min_cllr']:.4f}", err=True)


def llr(
    score_map: Annotated[Path, typer.Argument(metavar="MAP", help="Map from `score fit`.")],
    out: Annotated[Path, typer.Argument(help="Score file to write: log-likelihood ratios, natural logarithm.")],
    scores: ScoreFiles,
    quality: QualityFile = None,
) -> None:
    """Turn scores into log-likelihood ratios with a map; the systems in the order in which they were learnt."""
    from speakerkit.errors import DataError
    from speakerkit.verification.calibration import read_map
    from speakerkit.verification.trials import Scores, write_scores

    learnt = read_map(score_map)
    systems, names, columns = _columns(scores, quality)
    wanted, given = learnt.columns[learnt.systems :], names[len(scores) :]
    if len(scores) != learnt.systems or wanted != given:
        raise DataError(
            score_map,
            f"was learnt from {learnt.systems} systems and {', '.join(wanted) or 'no measures'}; "
            f"here are {len(scores)} and {', '.join(given) or 'no measures'}",
            "give the same",
        )
    write_scores(out, Scores(systems[0].trials, learnt(columns)))
    typer.echo(f"{out}: {len(columns)} log-likelihood ratios", err=True)


def quality(
    embeddings: Annotated[Path, typer.Argument(help="Embeddings of the recordings.")],
    out: Annotated[Path, typer.Argument(help="Table to write: key and measures, tab-separated.")],
    utt2dur: Annotated[Path | None, typer.Option(help="Durations in seconds; else from the headers of --scp.")] = None,
    scp: Annotated[Path | None, typer.Option(help="Recordings, for durations and --snr: lines `key path`.")] = None,
    snr: Annotated[bool, typer.Option("--snr", help="Estimate signal-to-noise ratios; decodes all of --scp.")] = False,
    cohort: Annotated[Path | None, typer.Option(help="Embeddings of impostors, for the mean score with them.")] = None,
    top: Annotated[int, typer.Option(min=2, help="Of the cohort, how many of the nearest count.")] = 300,
) -> None:
    """Measure recordings for `score fit --quality`: log duration, log length of the embedding, cohort mean, SNR."""
    from speakerkit.data.ark import read_embeddings
    from speakerkit.data.lists import read_durations, read_scp
    from speakerkit.errors import DataError
    from speakerkit.verification.cosine import magnitudes, require_one_model
    from speakerkit.verification.quality import Measure, log_of, measure, write_quality

    if utt2dur is None and scp is None:
        raise DataError("score quality", "durations are not known", "give --utt2dur or --scp")
    if snr and scp is None:
        raise DataError("score quality", "--snr needs the recordings", "give --scp")
    require_one_model(*(path for path in (embeddings, cohort) if path is not None))
    vectors = read_embeddings(embeddings)
    recordings = {} if scp is None else listed(read_scp(scp), vectors.keys, scp)
    seconds = _seconds(recordings) if utt2dur is None else read_durations(utt2dur)
    measures: dict[str, Measure] = {
        "log_duration": log_of({key: seconds[key] for key in vectors.keys if key in seconds}),
        "log_magnitude": log_of(dict(zip(vectors.keys, magnitudes(vectors, vectors.keys).tolist(), strict=True))),
    }
    if cohort is not None:
        impostors = read_embeddings(cohort)
        measures["cohort_mean"] = lambda keys: _cohort_means(vectors, impostors, keys, min(top, len(impostors)))
    if snr:
        measures["snr"] = lambda keys: [_snr(recordings[key]) for key in watched(keys, "SNR")]
    write_quality(out, measure(vectors.keys, measures))
    typer.echo(f"{out}: {', '.join(measures)} of {len(vectors)} recordings", err=True)


def draw(
    data_dir: Annotated[Path, typer.Argument(help="Kaldi directory with utt2spk, and utt2dur or wav.scp.")],
    out: Annotated[Path, typer.Argument(help="Trials to write.")],
    count: Annotated[int, typer.Option(min=6, help="Trials wanted, half of them targets.")] = 30_000,
    nontargets_each: Annotated[
        int, typer.Option(min=1, help="So many times as many nontargets, for thresholds at low false-accept rates.")
    ] = 1,
    shortest: Annotated[float, typer.Option(min=0, help="Leave out recordings below, in seconds.")] = 2.0,
    boundary: Annotated[float, typer.Option(min=0, help="Recordings below are short, in seconds.")] = 6.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    embeddings: Annotated[Path | None, typer.Option(help="Leave out recordings that have none here.")] = None,
) -> None:
    """Draw balanced trials of whole recordings to learn calibration from: short-short, short-long, long-long."""
    from speakerkit.data.ark import read_embeddings
    from speakerkit.data.lists import read_durations, read_scp, read_table
    from speakerkit.verification.quality import draw_trials
    from speakerkit.verification.trials import write_trials

    known = data_dir / "utt2dur"
    seconds = read_durations(known) if known.is_file() else _seconds(read_scp(data_dir / "wav.scp"))
    speakers = read_table(data_dir / "utt2spk")
    if embeddings is not None:
        embedded = set(read_embeddings(embeddings).keys)
        speakers = {key: speaker for key, speaker in speakers.items() if key in embedded}
    drawn = draw_trials(
        speakers, seconds, count, nontargets_each=nontargets_each, shortest=shortest, boundary=boundary, seed=seed
    )
    write_trials(out, drawn)
    typer.echo(f"{out}: {len(drawn)} trials", err=True)


def listed(entries: dict[str, str], keys: Iterable[str], scp: Path) -> dict[str, str]:
    """The entries of ``keys``.

    Raises:
        DataError: a key is not listed.
    """
    from speakerkit.errors import DataError

    wanted = list(keys)
    missing = [key for key in wanted if key not in entries]
    if missing:
        fault = f"does not list {missing[0]!r} ({len(missing)} of {len(wanted)} are missing)"
        raise DataError(scp, fault, "check that the two belong together")
    return {key: entries[key] for key in wanted}


def watched(items: Iterable[Any], what: str, total: int | None = None) -> Iterable[Any]:
    """``items`` under a progress bar, where there is a terminal."""
    from tqdm import tqdm

    return tqdm(items, desc=what, unit="file", total=total, disable=not sys.stderr.isatty())


def _columns(paths: list[Path], table: Path | None) -> tuple[list[Scores], tuple[str, ...], npt.NDArray[np.float64]]:
    """Systems, names of all columns, and the columns (trials, systems + measures)."""
    import numpy as np

    from speakerkit.errors import one_line
    from speakerkit.verification.calibration import stack_scores
    from speakerkit.verification.quality import read_quality, trial_quality
    from speakerkit.verification.trials import read_scores

    systems = [read_scores(path) for path in paths]
    stacked, names = stack_scores(systems), tuple(one_line(path.stem) for path in paths)
    if table is None:
        return systems, names, stacked
    measures, values = trial_quality(read_quality(table), systems[0].trials)
    return systems, (*names, *measures), np.concatenate([stacked, values], axis=1)


def _labels(systems: list[Scores]) -> npt.NDArray[np.bool_]:
    from speakerkit.errors import DataError

    for scores in systems:
        if scores.trials.labels is not None:
            return scores.trials.labels
    raise DataError(systems[0].trials.source, "has no labels", "score trials that end in target|nontarget")


def _seconds(recordings: dict[str, str]) -> dict[str, float]:
    from speakerkit.audio import audio_info

    return {key: audio_info(path).seconds for key, path in watched(recordings.items(), "headers", len(recordings))}


def _snr(path: str) -> float:
    from speakerkit.audio import load_audio
    from speakerkit.verification.quality import estimate_snr

    audio = load_audio(path)
    return estimate_snr(audio.samples, audio.rate)


def _cohort_means(vectors: Embeddings, impostors: Embeddings, keys: Sequence[str], top: int) -> npt.NDArray[np.float64]:
    """Mean cosine of each key with its nearest impostors."""
    from speakerkit.verification.cosine import cosine_sides
    from speakerkit.verification.normalisation import cohort_statistics, make_cohort
    from speakerkit.verification.trials import Trials

    each = Trials.from_pairs(keys, keys)
    return cohort_statistics(cosine_sides(vectors, keys, keys), each, make_cohort(impostors), top).enrol_means
