"""How far a long recording has been gone through, on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from tqdm import tqdm

from speakerkit.audio import Audio, AudioSource, Channel, audio_info, read_blocks

DELAY = 5.0  # seconds of work before anything is shown: most recordings take less


def watched_blocks(
    source: AudioSource,
    what: str,
    sample_rate: int | None = None,
    *,
    rate: int | None = None,
    channel: Channel = "mix",
) -> Iterator[Audio]:
    """:func:`speakerkit.audio.read_blocks`, with a bar of the seconds done on stderr where that is a terminal.

    Args:
        what: is done with the blocks, as the bar says.
    """
    blocks = read_blocks(source, sample_rate, rate=rate, channel=channel)
    if not sys.stderr.isatty():
        yield from blocks
        return
    total = audio_info(source).seconds if isinstance(source, (str, os.PathLike, bytes)) else None
    with tqdm(total=total and round(total), desc=what, unit="s", delay=DELAY, leave=False) as bar:
        done = 0.0
        for block in blocks:
            yield block
            done += block.seconds
            bar.update(int(done) - bar.n)
