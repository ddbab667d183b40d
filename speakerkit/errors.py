"""Errors that a user can act on: which file, what is wrong with it, what would help."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

LONGEST_MESSAGE = 2000  # characters
LONGEST_SUBJECT = 1000


class SpeakerKitError(Exception):
    """Bad input or usage; the command line prints it in one line and exits with 2.

    Args:
        subject: the file, key or option at fault (``None`` where there is none).
        fault: what is wrong, as a clause ("is not a FLAC file").
        remedy: what would help, as a clause ("convert it with ...").
    """

    exit_code = 2

    def __init__(self, subject: str | Path | None, fault: str, remedy: str = "") -> None:
        self.subject = None if subject is None else str(subject)
        self.fault = fault
        self.remedy = remedy
        super().__init__(self.subject, fault, remedy)

    def __str__(self) -> str:
        subject = self.subject or ""
        if len(subject) > LONGEST_SUBJECT:
            subject = f"{subject[: LONGEST_SUBJECT // 2]} ... {subject[-LONGEST_SUBJECT // 2 :]}"
        head = f"{subject}: {self.fault}" if subject else self.fault
        return one_line(f"{head}; {self.remedy}" if self.remedy else head)


def one_line(text: str) -> str:
    """``text`` on one printable line: file names can hold line breaks, terminal commands and bytes that are no text."""
    joined = re.sub(r"\s*[\r\n]+\s*", " ", text.strip())
    if len(joined) > LONGEST_MESSAGE:
        joined = f"{joined[:LONGEST_MESSAGE]} ..."
    return "".join(
        c if c.isprintable() or unicodedata.category(c) == "Zs" else c.encode("unicode_escape").decode("ascii")
        for c in joined
    )


def first_line(error: Exception) -> str:
    """What an error of another library says in its first line, or its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class AudioError(SpeakerKitError):
    """Audio that cannot be used: missing, undecodable, truncated, too short, silent, not finite."""


class DataError(SpeakerKitError):
    """A list, shard, store or data directory that contradicts itself."""


class ConfigError(SpeakerKitError):
    """A configuration with an unknown key or a value of the wrong kind."""


class BundleError(SpeakerKitError):
    """A model bundle or checkpoint that is missing, unsafe or does not match its architecture."""


class TrainingError(SpeakerKitError):
    """Training that cannot go on: non-finite losses in a row, too many bad files, a changed speaker list."""


class MissingExtraError(SpeakerKitError):
    """A feature whose optional dependencies are not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(feature, "needs packages that are not installed", f"pip install 'speakerkit[{extra}]'")

    def __reduce__(self) -> tuple[type[SpeakerKitError], tuple[str | None, str, str]]:
        """Errors cross process borders; this one's arguments are not those it was built from."""
        return SpeakerKitError, (self.subject, self.fault, self.remedy)


class PartialFailure(SpeakerKitError):
    """Some items of a batch failed; the others are written. The command line exits with 3."""

    exit_code = 3


class PeerFailed(SpeakerKitError):
    """Another rank of a training failed and has said why; this one ends without a message of its own."""
