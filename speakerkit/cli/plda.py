"""``speakerkit plda`` and ``score plda``: train, adapt, import and show PLDA back-ends, and score with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from speakerkit.cli.options import Json

if TYPE_CHECKING:
    from speakerkit.verification.backend import Backend
    from speakerkit.verification.plda import Normalisation

EmbeddingFile = Annotated[Path, typer.Argument(help="Embeddings: .scp, .ark, .npz, .npy or .jsonl.")]
BackendFile = Annotated[Path, typer.Argument(help="Back-end, as `plda train` writes it.")]
OutFile = Annotated[Path, typer.Argument(help="Back-end to write (safetensors).")]
Normalise = Annotated[
    str, typer.Option(help="Length normalisation inside PLDA: kaldi (by its covariance), simple or none.")
]
Iterations = Annotated[int, typer.Option(help="Iterations of EM.")]

app = typer.Typer(no_args_is_help=True)


@app.callback()
def plda() -> None:
    """Train, adapt, import and show PLDA and PSDA back-ends; `score plda` scores with them."""


@app.command()
def train(
    embeddings: EmbeddingFile,
    utt2spk: Annotated[Path, typer.Argument(help="Speakers: 'utterance speaker' a line.")],
    out: OutFile,
    chain: Annotated[
        str, typer.Option(help="Processing before it: steps mean-subtract, whiten, lda N, length-norm, in any order.")
    ] = "mean-subtract | length-norm",
    kind: Annotated[str, typer.Option(help="plda, or psda (on the sphere).")] = "plda",
    iterations: Iterations = 10,
    normalise: Normalise = "kaldi",
) -> None:
    """Fit a processing chain and train PLDA (or PSDA) behind it."""
    from speakerkit.data.ark import read_embeddings
    from speakerkit.data.lists import read_table
    from speakerkit.verification.backend import KINDS, train_backend
    from speakerkit.verification.backend_file import write_backend

    backend = train_backend(
        read_embeddings(embeddings),
        read_table(utt2spk),
        chain,
        kind=cast(Any, _one_of(kind, KINDS, "--kind")),
        iterations=iterations,
        normalise=_normalisation(normalise),
    )
    write_backend(out, backend)
    typer.echo(f"{out}: {_summary(backend)}", err=True)


@app.command()
def adapt(
    backend: BackendFile,
    embeddings: Annotated[Path, typer.Argument(help="Embeddings of the new domain, of the same model.")],
    out: OutFile,
    method: Annotated[
        str, typer.Option(help="kaldi, coral, coral+ (without labels) or interpolate (needs --utt2spk).")
    ] = "kaldi",
    within: Annotated[
        float | None,
        typer.Option(help="Within speakers: scale of the excess (kaldi 0.3, coral+ 0.8), or weight of the new domain."),
    ] = None,
    between: Annotated[
        float | None, typer.Option(help="The same between speakers (kaldi 0.7, coral+ 0.8, interpolate 0.5).")
    ] = None,
    mean_diff_scale: Annotated[
        float | None, typer.Option(help="How much the shift of the mean counts as variance (kaldi 1).")
    ] = None,
    utt2spk: Annotated[Path | None, typer.Option(help="Speakers of the new domain.")] = None,
    iterations: Iterations = 10,
    recentre: Annotated[bool, typer.Option(help="Take the means of mean-subtract of the new domain.")] = True,
) -> None:
    """Adapt a PLDA back-end to another domain."""
    from speakerkit.data.ark import read_embeddings
    from speakerkit.data.lists import read_table
    from speakerkit.verification.adaptation import METHODS
    from speakerkit.verification.backend import adapt_backend
    from speakerkit.verification.backend_file import read_backend, write_backend

    adapted = adapt_backend(
        read_backend(backend),
        read_embeddings(embeddings),
        cast(Any, _one_of(method, METHODS, "--method")),
        speakers=None if utt2spk is None else read_table(utt2spk),
        within=within,
        between=between,
        mean_diff_scale=mean_diff_scale,
        iterations=iterations,
        recentre=recentre,
    )
    write_backend(out, adapted)
    typer.echo(f"{out}: {_summary(adapted)}", err=True)


@app.command("import")
def import_(
    kaldi: Annotated[Path, typer.Argument(help="Kaldi's PLDA, binary or text.")],
    out: OutFile,
    mean: Annotated[Path | None, typer.Option(help="Kaldi's mean.vec, subtracted first.")] = None,
    transform: Annotated[Path | None, typer.Option(help="Kaldi's transform.mat (LDA), multiplied then.")] = None,
    length_norm: Annotated[bool, typer.Option(help="Normalise lengths before PLDA, as Kaldi's recipes do.")] = True,
    normalise: Normalise = "kaldi",
    embeddings: Annotated[
        Path | None, typer.Option(help="Embeddings that it was made for: their model is noted, others are refused.")
    ] = None,
) -> None:
    """Make a back-end of Kaldi's plda, mean.vec and transform.mat."""
    from speakerkit.data.ark import read_embeddings
    from speakerkit.verification.backend import import_kaldi
    from speakerkit.verification.backend_file import write_backend
    from speakerkit.verification.cosine import model_digest

    imported = import_kaldi(
        kaldi,
        mean=mean,
        transform=transform,
        length_norm=length_norm,
        normalise=_normalisation(normalise),
        extractor=None if embeddings is None else model_digest(embeddings),
    )
    if embeddings is not None:
        imported.require_fit(read_embeddings(embeddings))
    write_backend(out, imported)
    typer.echo(f"{out}: {_summary(imported)}", err=True)


@app.command()
def export(
    backend: BackendFile,
    out: Annotated[Path, typer.Argument(help="Kaldi's PLDA to write; the chain stays behind.")],
    text: Annotated[bool, typer.Option(help="Write text instead of binary.")] = False,
) -> None:
    """Write the PLDA of a back-end as Kaldi's."""
    from speakerkit.errors import DataError
    from speakerkit.verification.backend_file import read_backend
    from speakerkit.verification.kaldi_plda import write_kaldi_plda
    from speakerkit.verification.plda import Plda

    model = read_backend(backend).model
    if not isinstance(model, Plda):
        raise DataError(backend, "is PSDA, which Kaldi has not", "train a PLDA")
    write_kaldi_plda(out, model, text=text)


@app.command()
def show(backend: BackendFile, as_json: Json = False) -> None:
    """Print what a back-end holds and how it was made."""
    from speakerkit.verification.backend_file import read_backend

    facts = _facts(read_backend(backend))
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    history = facts.pop("history")
    for name, value in facts.items():
        typer.echo(f"{name:<12}{_text(value)}")
    for event in history:
        typer.echo(f"{event['event']:<12}{_text({name: value for name, value in event.items() if name != 'event'})}")


def score_plda(
    embeddings: EmbeddingFile,
    trials: Annotated[Path, typer.Argument(help="Trials: 'enrol test target|nontarget' a line, or without the label.")],
    out: Annotated[Path, typer.Argument(help="Score file to write: the trials with a score before the label.")],
    backend: Annotated[Path, typer.Option("--plda", help="Back-end, as `plda train`, `adapt` or `import` writes it.")],
    enrol: Annotated[
        Path | None, typer.Option(help="Embeddings of the enrolment side, where they are in another file.")
    ] = None,
    enrol_map: Annotated[
        Path | None,
        typer.Option(help="Enrolments of several recordings: 'enrolment key key ...' a line, as Kaldi's spk2utt."),
    ] = None,
    multi: Annotated[
        str, typer.Option(help="Several recordings: book (posterior of the speaker), or average (their mean as one).")
    ] = "book",
) -> None:
    """Log-likelihood ratio (natural logarithm) of each trial by a PLDA or PSDA back-end."""
    from speakerkit.data.ark import read_embeddings
    from speakerkit.verification.backend import MULTIS, score_backend
    from speakerkit.verification.backend_file import read_backend
    from speakerkit.verification.cosine import read_enrol_map, require_one_model
    from speakerkit.verification.trials import read_trials, write_scores

    _one_of(multi, MULTIS, "--multi")
    require_one_model(*(path for path in (embeddings, enrol) if path is not None))
    scores = score_backend(
        read_backend(backend),
        read_embeddings(embeddings),
        read_trials(trials),
        enrol_embeddings=None if enrol is None else read_embeddings(enrol),
        enrol_map=None if enrol_map is None else read_enrol_map(enrol_map),
        multi=cast(Any, multi),
    )
    write_scores(out, scores)
    typer.echo(f"{out}: {len(scores)} scores", err=True)


def _one_of(value: str, known: tuple[str, ...], option: str) -> str:
    if value not in known:
        raise typer.BadParameter(f"{value!r} is none of {', '.join(known)}", param_hint=option)
    return value


def _normalisation(value: str) -> Normalisation:
    from speakerkit.verification.plda import NORMALISATIONS

    return cast("Normalisation", _one_of(value, NORMALISATIONS, "--normalise"))


def _summary(backend: Backend) -> str:
    return f"{backend.kind.upper()} of {backend.model.dim} values behind {backend.chain}"


def _facts(backend: Backend) -> dict[str, Any]:
    """What ``show`` prints, in plain values."""
    from speakerkit.verification.plda import Plda

    facts: dict[str, Any] = {
        "kind": backend.kind,
        "chain": str(backend.chain),
        "dimension": backend.dimension,
        "model_dim": backend.model.dim,
        "extractor": backend.extractor,
    }
    if isinstance(backend.model, Plda):
        psi = backend.model.psi
        facts["normalise"] = backend.normalise
        facts["psi"] = {"largest": psi[0], "median": float(sorted(psi)[len(psi) // 2]), "smallest": psi[-1]}
    else:
        facts["between"], facts["within"] = backend.model.between, backend.model.within
    return {**facts, "history": list(backend.history)}


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_text(part)}" for name, part in value.items())
    if isinstance(value, float):
        return f"{value:.5g}"
    return "unknown" if value is None else str(value)
