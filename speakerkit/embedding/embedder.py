"""Recordings to embeddings with a finished bundle; on onnxruntime, or on torch where :func:`needs_torch` says so."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from speakerkit.audio import Audio, AudioSource, Channel, Samples, load_audio, require_signal
from speakerkit.bundle import CONFIG, GRAPH, Bundle, read_bundle
from speakerkit.data.lists import open_entry
from speakerkit.errors import AudioError, BundleError, ConfigError, MissingExtraError, SpeakerKitError, first_line
from speakerkit.features import Features, features
from speakerkit.zoo.store import open_name

if TYPE_CHECKING:
    import onnxruntime

logger = logging.getLogger("speakerkit")

Vector = npt.NDArray[np.float32]
Short = Literal["error", "pad"]
Run = Callable[[Features], Vector]
Entry = TypeVar("Entry")
Result = TypeVar("Result")
Tag = TypeVar("Tag")

CUDA = "CUDAExecutionProvider"

# Recordings of equal length are looked for within stretches of the list. Where a stretch ends depends on the list only:
# which recordings are run together, and so the last bit of an embedding, does not depend on the number of threads.
STRETCH_BATCHES = 8
STRETCH_FRAMES = 200_000  # 64 MB of features with 80 mels, 128 MB of samples at 16 kHz


@dataclass(frozen=True, eq=False)
class Extraction:
    """What became of one entry of a list.

    Attributes:
        key: its id.
        vector: (D,) embedding; ``None`` where it failed.
        seconds: length of the audio, before any repeating.
        padded: whether it was shorter than the model's minimum and was repeated to reach it.
        error: why it failed.
    """

    key: str
    vector: Vector | None
    seconds: float = 0.0
    padded: bool = False
    error: str = ""


class Embedder:
    """A model ready for use.

    Each recording is run whole and on its own, or stacked with others of exactly its length; so its embedding does not
    depend on what else is in the batch, and nothing is kept between calls.

    Args:
        bundle: the model.
        device: "cpu", "cuda", or "auto", which takes CUDA where the runtime offers it. For "cuda", a model with weights
            is run by torch where onnxruntime has no CUDA.
        threads: recordings worked on at once by :meth:`embed_many`; 0 for one a core.

    Attributes:
        device: what it runs on, in words.
    """

    def __init__(self, bundle: Bundle, device: str = "auto", threads: int = 0) -> None:
        self.bundle = bundle
        self.threads = threads or os.cpu_count() or 1
        open_runner = _torch_runner if needs_torch(bundle.graph, bundle.has_weights, device) else _onnx_runner
        self._run, self.device, min_frames = open_runner(bundle, device)
        self.frontend = bundle.config.frontend.with_minimum(min_frames)
        self._rate_warning = threading.Lock()  # taken by the first to warn and never given back

    def embed(
        self, source: AudioSource, *, rate: int | None = None, channel: Channel = "mix", short: Short = "error"
    ) -> Vector:
        """The embedding of a whole recording.

        Args:
            source: path, bytes, binary file object, or array with its ``rate`` in Hz.
            channel: "mix", or the number of a channel from 0.
            short: what to do below the model's minimum length: raise, or repeat the audio to reach it.

        Returns:
            (D,) float32, not length-normalised.

        Raises:
            AudioError: audio that cannot be read, is silent, or is too short.
        """
        name = str(source) if isinstance(source, (str, os.PathLike)) else "audio"
        audio, _ = self._prepare(source, name, rate, channel, short)
        vector = self._vectors([features(audio.samples, self.frontend)])[0]
        self._refuse_nothing(vector, name)
        return vector

    def similarity(
        self,
        first: AudioSource,
        second: AudioSource,
        *,
        rate: int | None = None,
        channel: Channel = "mix",
        short: Short = "error",
    ) -> float:
        """Cosine of the embeddings of two recordings, in [-1, 1].

        Args:
            first: as the ``source`` of :meth:`embed`; so is ``second``.
            rate: rate in Hz of those that are arrays; a file carries its own.
            channel: as for :meth:`embed`, of both.
            short: as for :meth:`embed`.
        """
        one, other = (
            self.embed(
                source, rate=rate if isinstance(source, np.ndarray) else None, channel=channel, short=short
            ).astype(np.float64)
            for source in (first, second)
        )
        return float(np.clip(one @ other / np.sqrt((one @ one) * (other @ other)), -1.0, 1.0))

    def embed_many(
        self,
        entries: Iterable[tuple[str, str]],
        *,
        channel: Channel = "mix",
        short: Short = "error",
        batch_size: int = 16,
        allow_pipes: bool = False,
    ) -> Iterator[Extraction]:
        """Embed a list of (key, path); entries that fail are yielded with their error, and the others go on.

        Decoding and features run ahead in threads; within a stretch of the list, recordings of equal length are run as
        one batch. One stretch of features stands in memory at once.

        Args:
            allow_pipes: run entries that are commands (``cmd |``) instead of taking them for paths.

        Yields:
            one :class:`Extraction` an entry, not always in the order of the list.
        """

        def prepare(entry: tuple[str, str]) -> tuple[Extraction, Features | None]:
            key, path = entry
            try:
                source = open_entry(path) if allow_pipes else path
                audio, seconds = self._prepare(source, path, None, channel, short)
                extraction = Extraction(key, None, seconds, padded=audio.seconds > seconds)
                return extraction, features(audio.samples, self.frontend)
            except (SpeakerKitError, OSError, MemoryError) as error:
                return _failure(key, path, error), None

        def finish(group: list[tuple[Extraction, Features]]) -> list[Extraction]:
            try:
                vectors = self._vectors([feats for _, feats in group])
            except (SpeakerKitError, MemoryError) as error:
                return [_failure(item.key, item.key, error) for item, _ in group]
            return [self._finished(item, vector) for (item, _), vector in zip(group, vectors, strict=True)]

        most = STRETCH_FRAMES * self.frontend.rows_per_shift
        pool = ThreadPoolExecutor(self.threads)
        try:
            ready: list[tuple[Extraction, Features]] = []
            for item, feats in _ahead(pool, prepare, entries, 2 * self.threads + 2):
                if feats is None:
                    yield item
                    continue
                ready.append((item, feats))
                if len(ready) == STRETCH_BATCHES * batch_size or sum(len(f) for _, f in ready) >= most:
                    yield from _all(pool, finish, _equal_lengths(ready, batch_size))
                    ready = []
            yield from _all(pool, finish, _equal_lengths(ready, batch_size))
        finally:
            pool.shutdown(cancel_futures=True)

    def embed_batches(self, batches: Iterable[tuple[Tag, Samples]]) -> Iterator[tuple[Tag, Vector]]:
        """Embed stacks of cuts of equal length, some of them at once in threads; what is in a batch is not checked.

        Args:
            batches: whatever names a batch, and its samples (B, samples) at the model's rate; cuts that are shorter
                than the model's minimum are repeated to reach it.

        Yields:
            the same names in the same order with embeddings (B, D).

        Raises:
            BundleError: an embedding that is zero or not finite.
        """

        def run(batch: tuple[Tag, Samples]) -> tuple[Tag, Vector]:
            tag, samples = batch
            length = max(samples.shape[1], self.frontend.min_samples)
            vectors = self._vectors([features(np.resize(cut, length), self.frontend) for cut in samples])
            for vector in vectors:
                self._refuse_nothing(vector, "a cut of a recording")
            return tag, vectors

        pool = ThreadPoolExecutor(self.threads)
        try:
            yield from _ahead(pool, run, batches, 2 * self.threads)
        finally:
            pool.shutdown(cancel_futures=True)

    def warn_of_rate(self, name: str, rate: int) -> None:
        """Warn, once, of a recording at a lower rate than the model's."""
        wanted = self.frontend.sample_rate
        if rate < wanted and self._rate_warning.acquire(blocking=False):
            logger.warning("%s is at %d Hz, the model at %d Hz: what is above is missing", name, rate, wanted)

    def _prepare(
        self, source: AudioSource, name: str, rate: int | None, channel: Channel, short: Short
    ) -> tuple[Audio, float]:
        """Audio at the model's rate, checked for signal and length, and its seconds before any repeating."""
        native = load_audio(source, rate=rate, channel=channel)
        require_signal(native, name)
        wanted = self.frontend.sample_rate
        self.warn_of_rate(name, native.rate)
        audio = native if native.rate == wanted else load_audio(native.samples, wanted, rate=native.rate)
        if len(audio.samples) >= self.frontend.min_samples:
            return audio, audio.seconds
        if short == "pad":
            return Audio(np.resize(audio.samples, self.frontend.min_samples), wanted), audio.seconds
        raise AudioError(
            name,
            f"lasts {audio.seconds:.3f} s, the model needs {self.frontend.min_samples / wanted:.3f} s",
            "give longer audio, or accept a poor embedding with --short pad",
        )

    def _vectors(self, feats: list[Features]) -> Vector:
        """Embeddings (B, D) of B feature matrices of equal shape."""
        vectors = self._run(np.stack(feats))
        expected = len(feats), self.bundle.config.embedding_size
        if vectors.shape != expected:
            raise BundleError(
                self.bundle.path, f"gives embeddings of shape {vectors.shape}, not {expected}", "export it again"
            )
        return vectors

    def _refuse_nothing(self, vector: Vector, name: str) -> None:
        if not np.isfinite(vector).all() or not vector.any():
            raise BundleError(
                name, f"gets an embedding that is zero or not finite from {self.bundle.path}", "check the model"
            )

    def _finished(self, item: Extraction, vector: Vector) -> Extraction:
        try:
            self._refuse_nothing(vector, item.key)
        except BundleError as error:
            return _failure(item.key, item.key, error)
        return Extraction(item.key, vector, item.seconds, item.padded)


def _failure(key: str, subject: str, error: Exception) -> Extraction:
    if not isinstance(error, SpeakerKitError):
        reason = str(error) or type(error).__name__
        error = AudioError(subject, f"cannot be read ({reason})", "check the disk and memory")
    return Extraction(key, None, error=str(error))


def load(path: str | Path, device: str = "auto", threads: int = 0) -> Embedder:
    """Open a model bundle, a folder of WeSpeaker, or a fetched model by its registered name; see :class:`Embedder`.

    Raises:
        BundleError: the folder is no bundle, or its weights do not fit its architecture.
        ConfigError: ``device="cuda"`` where it cannot be used.
    """
    return Embedder(read_bundle(open_name(Path(path))), device, threads)


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[Entry], Result], items: Iterable[Entry], window: int
) -> Iterator[Result]:
    """Results in the order of ``items``, at most ``window`` of them under way."""
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) == window:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _all(
    pool: ThreadPoolExecutor, function: Callable[[Entry], list[Extraction]], groups: Iterable[Entry]
) -> Iterator[Extraction]:
    for future in [pool.submit(function, group) for group in groups]:
        yield from future.result()


def _equal_lengths(
    items: list[tuple[Extraction, Features]], batch_size: int
) -> Iterator[list[tuple[Extraction, Features]]]:
    """Groups of at most ``batch_size`` items of one length, longest first, so that no thread ends with a long one."""
    by_length: dict[int, list[tuple[Extraction, Features]]] = {}
    for item in items:
        by_length.setdefault(len(item[1]), []).append(item)
    for length in sorted(by_length, reverse=True):
        group = by_length[length]
        for first in range(0, len(group), batch_size):
            yield group[first : first + batch_size]


def needs_torch(graph: Path | None, has_weights: bool, device: str) -> bool:
    """Whether torch runs a model: without an ONNX file, or on a GPU that torch can use and onnxruntime cannot."""
    if graph is None:
        return True
    if device != "cuda" or not has_weights:
        return False
    try:
        import onnxruntime

        if CUDA in onnxruntime.get_available_providers():
            return False
    except (ImportError, OSError):
        pass
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


def open_session(graph: Path, device: str, threads: int = 1) -> tuple[onnxruntime.InferenceSession, str]:
    """An ONNX file on onnxruntime, and what it runs on in words.

    Args:
        device: "cpu", "cuda", or "auto", which takes CUDA where onnxruntime offers it.
        threads: of one call.

    Raises:
        BundleError: a file that cannot be loaded, or no onnxruntime.
        ConfigError: "cuda" where onnxruntime cannot use it.
    """
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        fault = f"cannot be run: onnxruntime cannot be imported ({first_line(error)})"
        raise BundleError(graph, fault, "pip install onnxruntime, and see `speakerkit doctor`") from None

    available = onnxruntime.get_available_providers()
    providers = ["CPUExecutionProvider"]
    if device != "cpu" and CUDA in available:
        providers.insert(0, CUDA)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4 if device == "auto" else 3
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=providers)
    except Exception as error:  # onnxruntime raises several classes of its own without a common base
        raise BundleError(graph, f"cannot be loaded ({first_line(error)})", "export it again") from None
    used = session.get_providers()[0]
    if device == "cuda" and used != CUDA:
        raise ConfigError(
            "device cuda",
            f"cannot be used: onnxruntime offers {', '.join(available)} and came up with {used}",
            "install onnxruntime-gpu and check the driver with nvidia-smi, or use --device cpu",
        )
    return session, f"{'cuda' if used == CUDA else 'cpu'} (onnxruntime)"


def _onnx_runner(bundle: Bundle, device: str) -> tuple[Run, str, int]:
    """Features (B, T, F) to embeddings (B, D) on onnxruntime; one thread a call, so that results do not vary.

    Returns:
        the function, what it runs on in words, and the fewest frames that it takes.
    """
    session, used = open_session(bundle.path / GRAPH, device)
    _check_graph(bundle, session)

    batch = session.get_inputs()[0].shape[0]
    step = batch if isinstance(batch, int) else None  # a published graph may take one recording at a time only

    def run(feats: Features) -> Vector:
        try:
            parts = [feats[first : first + (step or len(feats))] for first in range(0, len(feats), step or len(feats))]
            vectors = np.concatenate([session.run(["embs"], {"feats": part})[0] for part in parts])
        except Exception as error:
            fault = f"fails on features of shape {feats.shape} ({first_line(error)})"
            raise BundleError(bundle.graph, fault, "give shorter audio, or export it again") from None
        return np.asarray(vectors, dtype=np.float32)

    min_frames = session.get_modelmeta().custom_metadata_map.get("min_frames", "1")
    if not min_frames.isdecimal():
        raise BundleError(bundle.graph, f"says that min_frames is {min_frames!r}", "export it again")
    return run, used, int(min_frames)


def _check_graph(bundle: Bundle, session: onnxruntime.InferenceSession) -> None:
    """Raise where an ONNX file is not that of its bundle."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    names = [node.name for node in inputs], [node.name for node in outputs]
    if names != (["feats"], ["embs"]):
        raise BundleError(bundle.graph, f"has inputs and outputs {names}", "feats and embs are expected")
    for name, node, wanted in (
        ("mels", inputs[0], bundle.config.frontend.feature_dim),
        ("values an embedding", outputs[0], bundle.config.embedding_size),
    ):
        if isinstance(node.shape[-1], int) and node.shape[-1] != wanted:
            raise BundleError(
                bundle.graph, f"has {node.shape[-1]} {name}, its {CONFIG} says {wanted}", "export it again"
            )
    made_from = session.get_modelmeta().custom_metadata_map.get("weights_sha256")
    if made_from and bundle.has_weights and made_from != bundle.digest():
        raise BundleError(
            bundle.graph, f"was exported from other weights than {bundle.weights} beside it", "run `speakerkit export`"
        )


def _torch_runner(bundle: Bundle, device: str) -> tuple[Run, str, int]:
    """The same on torch."""
    try:
        import torch
    except ImportError:
        raise MissingExtraError(f"{bundle.path}: running a bundle without model.onnx", "train") from None
    from speakerkit.embedding.model import open_backbone
    from speakerkit.nn.device import usable_device

    chosen = usable_device(device)
    original = open_backbone(bundle).eval()
    backbone = original.deployed().to(chosen)

    def run(feats: Features) -> Vector:
        try:
            with torch.inference_mode():
                return backbone(torch.from_numpy(feats).to(chosen)).float().cpu().numpy()
        except RuntimeError as error:
            fault = f"fails on features of shape {feats.shape} ({first_line(error)})"
            raise BundleError(bundle.path, fault, "give shorter audio") from None

    return run, f"{chosen.type} (torch)", original.min_frames
