"""Recordings to embeddings with a finished bundle; on onnxruntime, or on torch where there is no ONNX file."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from speakerkit.audio import Audio, AudioSource, Channel, load_audio, require_signal
from speakerkit.bundle import Bundle, read_bundle
from speakerkit.data.lists import open_entry
from speakerkit.errors import AudioError, BundleError, ConfigError, MissingExtraError, SpeakerKitError
from speakerkit.features import Features, features

logger = logging.getLogger("speakerkit")

Vector = npt.NDArray[np.float32]
Short = Literal["error", "pad"]


@dataclass(frozen=True, eq=False)
class Extraction:
    """What became of one entry of a list.

    Attributes:
        key: its id.
        vector: (D,) embedding; ``None`` where it failed.
        seconds: length of the audio at the model's rate.
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
        device: "cpu", "cuda", or "auto", which takes CUDA where the runtime offers it.
        threads: recordings worked on at once by :meth:`embed_many`; 0 for one a core.
    """

    def __init__(self, bundle: Bundle, device: str = "auto", threads: int = 0) -> None:
        self.bundle = bundle
        self.frontend = bundle.config.frontend
        self.threads = threads or os.cpu_count() or 1
        self._run = _onnx_runner(bundle, device) if bundle.graph else _torch_runner(bundle, device)
        self._warned_of_rate = False

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
        return self._vectors([features(audio.samples, self.frontend)], [name])[0]

    def similarity(self, first: AudioSource, second: AudioSource, *, short: Short = "error") -> float:
        """Cosine of the embeddings of two recordings, in [-1, 1]."""
        one, other = (self.embed(source, short=short).astype(np.float64) for source in (first, second))
        return float(np.clip(one @ other / np.sqrt((one @ one) * (other @ other)), -1.0, 1.0))

    def embed_many(
        self,
        entries: Iterable[tuple[str, str]],
        *,
        channel: Channel = "mix",
        short: Short = "error",
        batch_size: int = 16,
    ) -> Iterator[Extraction]:
        """Embed a list of (key, path); entries that fail are yielded with their error, and the others go on.

        Decoding and features run ahead in threads; recordings are sorted by length within a stretch of the list and
        those of equal length are run as one batch. At most a few batches of features stand in memory at once.

        Yields:
            one :class:`Extraction` an entry, not always in the order of the list.
        """

        def prepare(key: str, path: str) -> tuple[Extraction, Features | None]:
            try:
                audio, padded = self._prepare(open_entry(path), path, None, channel, short)
                return Extraction(key, None, audio.seconds, padded), features(audio.samples, self.frontend)
            except SpeakerKitError as error:
                return Extraction(key, None, error=str(error)), None

        def finish(group: list[tuple[Extraction, Features]]) -> list[Extraction]:
            try:
                vectors = self._vectors([feats for _, feats in group], [item.key for item, _ in group])
            except SpeakerKitError as error:
                return [Extraction(item.key, None, error=str(error)) for item, _ in group]
            return [
                Extraction(item.key, vector, item.seconds, item.padded)
                for (item, _), vector in zip(group, vectors, strict=True)
            ]

        with ThreadPoolExecutor(self.threads) as pool:
            for stretch in _stretches(entries, batch_size * self.threads):
                prepared = list(pool.map(lambda entry: prepare(*entry), stretch))
                yield from (item for item, feats in prepared if feats is None)
                ready = [(item, feats) for item, feats in prepared if feats is not None]
                running: list[Future[list[Extraction]]] = [
                    pool.submit(finish, group) for group in _equal_lengths(ready, batch_size)
                ]
                for future in running:
                    yield from future.result()

    def _prepare(
        self, source: AudioSource, name: str, rate: int | None, channel: Channel, short: Short
    ) -> tuple[Audio, bool]:
        """Audio at the model's rate, checked for signal and length; whether it was repeated to reach the minimum."""
        native = load_audio(source, rate=rate, channel=channel)
        require_signal(native, name)
        wanted = self.frontend.sample_rate
        if native.rate < wanted and not self._warned_of_rate:
            self._warned_of_rate = True
            logger.warning("%s is at %d Hz, the model at %d Hz: what is above is missing", name, native.rate, wanted)
        audio = native if native.rate == wanted else load_audio(native.samples, wanted, rate=native.rate)
        if len(audio.samples) >= self.frontend.min_samples:
            return audio, False
        if short == "pad":
            return Audio(np.resize(audio.samples, self.frontend.min_samples), wanted), True
        raise AudioError(
            name,
            f"lasts {audio.seconds:.3f} s, the model needs {self.frontend.min_samples / wanted:.3f} s",
            "give longer audio, or accept a poor embedding with --short pad",
        )

    def _vectors(self, feats: list[Features], names: list[str]) -> Vector:
        """Embeddings (B, D) of B feature matrices of equal shape."""
        vectors = self._run(np.stack(feats))
        for name, vector in zip(names, vectors, strict=True):
            if not np.isfinite(vector).all() or not vector.any():
                raise BundleError(name, "gives an embedding that is zero or not finite", "check the model's weights")
        return vectors


def load(path: str | Path, device: str = "auto", threads: int = 0) -> Embedder:
    """Open a model bundle for use; see :class:`Embedder`.

    Raises:
        BundleError: the folder is no bundle, or its weights do not fit its architecture.
        ConfigError: ``device="cuda"`` where it cannot be used.
    """
    return Embedder(read_bundle(path), device, threads)


def _stretches(entries: Iterable[tuple[str, str]], size: int) -> Iterator[list[tuple[str, str]]]:
    stretch: list[tuple[str, str]] = []
    for entry in entries:
        stretch.append(entry)
        if len(stretch) == size:
            yield stretch
            stretch = []
    if stretch:
        yield stretch


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


def _onnx_runner(bundle: Bundle, device: str) -> Callable[[Features], Vector]:
    """Features (B, T, F) to embeddings (B, D) on onnxruntime; one thread a call, so that results do not vary."""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if device == "cuda" and "CUDAExecutionProvider" not in available:
        raise ConfigError(
            "device cuda", f"cannot be used: onnxruntime offers {', '.join(available)}", "install onnxruntime-gpu"
        )
    providers = ["CPUExecutionProvider"]
    if device != "cpu" and "CUDAExecutionProvider" in available:
        providers.insert(0, "CUDAExecutionProvider")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(bundle.graph), options, providers=providers)
    except Exception as error:  # onnxruntime raises several classes of its own without a common base
        raise BundleError(bundle.graph, f"cannot be loaded ({_first_line(error)})", "export it again") from None
    names = [node.name for node in session.get_inputs()], [node.name for node in session.get_outputs()]
    if names != (["feats"], ["embs"]):
        raise BundleError(bundle.graph, f"has inputs and outputs {names}", "feats and embs are expected")

    def run(feats: Features) -> Vector:
        (vectors,) = session.run(["embs"], {"feats": feats})
        return np.asarray(vectors, dtype=np.float32)

    return run


def _torch_runner(bundle: Bundle, device: str) -> Callable[[Features], Vector]:
    """The same on torch."""
    try:
        import torch
    except ImportError:
        raise MissingExtraError(f"{bundle.path}: running a bundle without model.onnx", "train") from None
    from speakerkit.embedding.model import backbone_for, load_backbone
    from speakerkit.nn.device import usable_device

    chosen = usable_device(device)
    backbone = backbone_for(bundle.config.model, bundle.config.frontend)
    load_backbone(backbone, bundle)
    backbone.to(chosen).eval()

    def run(feats: Features) -> Vector:
        with torch.inference_mode():
            return backbone(torch.from_numpy(feats).to(chosen)).float().cpu().numpy()

    return run


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
