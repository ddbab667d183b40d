"""Files of turns: RTTM, LAB, JSON, CSV, TextGrid, Audacity labels, SRT and WebVTT, read and written; and UEM.

Every format holds the same turns: on whole milliseconds, sorted, inside the recording, those of one speaker disjoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from speakerkit.diarization.formats import labels, rttm, subtitles, tables, textgrid
from speakerkit.diarization.formats.rttm import read_uem, write_uem
from speakerkit.diarization.formats.text import by_key, rounded
from speakerkit.diarization.turns import Diarization
from speakerkit.errors import DataError
from speakerkit.files import atomic_open

__all__ = [
    "FORMATS",
    "Format",
    "format_of",
    "read_turns",
    "read_uem",
    "rounded",
    "to_text",
    "write_text",
    "write_uem",
]

Reader = Callable[[str | Path], dict[str, Diarization]]


@dataclass(frozen=True)
class Format:
    """How a format is read and written.

    Attributes:
        name: as the command line knows it.
        suffix: of its files.
        read: turns of a file by recording.
        write: text of some recordings; ``None`` where a file holds one.
        write_one: text of one recording, where a file holds one.
    """

    name: str
    suffix: str
    read: Reader
    write: Callable[[Iterable[Diarization]], str] | None = None
    write_one: Callable[[Diarization], str] | None = None


FORMATS = {
    each.name: each
    for each in (
        Format("rttm", ".rttm", rttm.read_rttm, write=rttm.write_rttm),
        Format("json", ".json", tables.read_json, write=tables.write_json),
        Format("csv", ".csv", tables.read_csv, write=tables.write_csv),
        Format("textgrid", ".TextGrid", textgrid.read_textgrid, write_one=textgrid.write_textgrid),
        Format("audacity", ".txt", labels.read_audacity, write_one=labels.write_audacity),
        Format("lab", ".lab", labels.read_lab, write_one=labels.write_lab),
        Format("srt", ".srt", subtitles.read_srt, write_one=subtitles.write_srt),
        Format("vtt", ".vtt", subtitles.read_vtt, write_one=subtitles.write_vtt),
    )
}


def format_of(path: str | Path, name: str | None = None) -> Format:
    """The format called ``name``, or else that of the file's suffix; a file called ``rttm`` is one, as in Kaldi.

    Raises:
        DataError: neither says one.
    """
    suffix = Path(path).suffix.lower()
    by_suffix = {each.suffix.lower(): each for each in FORMATS.values()}
    if name is None and Path(path).name == "rttm":
        return FORMATS["rttm"]
    if name is None and suffix in by_suffix:
        return by_suffix[suffix]
    if name in FORMATS:
        return FORMATS[name]
    if name is not None:
        raise DataError(name, "is no format of turns", f"formats are {', '.join(FORMATS)}")
    if suffix == ".uem":
        raise DataError(path, "holds regions to score, not turns", f"formats of turns are {', '.join(FORMATS)}")
    known = ", ".join(each.suffix for each in FORMATS.values())
    raise DataError(
        path, f"has a suffix ({suffix or 'none'}) of no known format", f"known are {known}; or name a format"
    )


def read_turns(path: str | Path, name: str | None = None) -> dict[str, Diarization]:
    """Recordings of a file, or of the files in a folder, of the format called ``name`` or that of the suffix.

    Keys are recordings' ids, or ``recording:channel`` where there are several channels of one. Formats that do not
    name their recording, and files without a turn, are of the one that the file is called after. Of a folder without
    ``name`` the RTTMs are read, or where it has none, whatever else has a known suffix (but ``.txt``).

    Raises:
        DataError: a file that is missing, damaged or of another format, with the line at fault; a folder without
            files of turns; a recording that is in two of them.
    """
    if not Path(path).exists():
        raise DataError(path, "no such file", "check the path")
    if not Path(path).is_dir():
        return format_of(path, name).read(path)
    rest = [each.suffix for each in FORMATS.values() if each.name not in ("rttm", "audacity")]
    for suffixes in ([FORMATS["rttm"].suffix], rest) if name is None else ([format_of(path, name).suffix],):
        files = _with_suffix(path, suffixes)
        if files:
            return by_key((each for file in files for each in read_turns(file, name).values()), path)
    raise DataError(path, "holds no file of turns", "name a file, or its format")


def _with_suffix(folder: str | Path, suffixes: Iterable[str]) -> list[Path]:
    lowered = {suffix.lower() for suffix in suffixes}
    return sorted(file for file in Path(folder).iterdir() if file.is_file() and file.suffix.lower() in lowered)


def to_text(diarizations: Iterable[Diarization], name: str) -> str:
    """Recordings in the format called ``name``, sorted.

    Raises:
        DataError: no such format, a recording that comes twice, or several where a file holds one.
    """
    found, listed = format_of("", name), list(by_key(diarizations, "recordings").values())
    if found.write is not None:
        return found.write(listed)
    if len(listed) != 1 or found.write_one is None:
        raise DataError(name, f"files hold one recording, not {len(listed)}", "choose one, or write into a folder")
    return found.write_one(listed[0])


def write_text(path: str | Path, text: str) -> None:
    """Write what :func:`to_text` gave, atomically."""
    with atomic_open(path) as stream:
        stream.write(text)
