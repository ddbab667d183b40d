"""speakerkit: speaker embeddings and what is built on them.

>>> import speakerkit as sk
>>> model = sk.load("exp/demo/bundle")  # doctest: +SKIP
>>> vector = model.embed("a.wav")  # doctest: +SKIP
>>> model.similarity("a.wav", "b.wav")  # doctest: +SKIP
>>> sk.diarize("meeting.wav", model).turns  # doctest: +SKIP
>>> sk.extract("mix.wav", enrol="ana.wav", model="exp/bsrnn/bundle").waveform  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from speakerkit.errors import SpeakerKitError

if TYPE_CHECKING:
    from speakerkit.diarization.pipeline import diarize
    from speakerkit.embedding.embedder import load
    from speakerkit.extraction.pipeline import extract

__version__ = "0.1.0"
__all__ = ["SpeakerKitError", "__version__", "diarize", "extract", "load"]


def __getattr__(name: str) -> object:
    """Import what needs onnxruntime only when it is asked for, so that ``import speakerkit`` stays light."""
    if name == "load":
        from speakerkit.embedding.embedder import load

        return load
    if name == "diarize":
        from speakerkit.diarization.pipeline import diarize

        return diarize
    if name == "extract":
        from speakerkit.extraction.pipeline import extract

        return extract
    raise AttributeError(f"module 'speakerkit' has no attribute {name!r}")
