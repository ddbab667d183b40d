"""Speak with espeak-ng in a process of its own: a script of the standard library only, run by its path.

espeak-ng keeps global state (voice, noise generator, echo buffer), so its output depends on all that the process said
before. One short-lived process a speaker makes the bytes depend on the request alone, and a crash stays outside.

Reads a JSON object ``{"library", "data", "variant", "utterances": [{"accent", "voice", "words_per_minute", "text"}]}``
from stdin. ``voice`` is the text of a voice variant; it is written to the file ``variant`` of the data directory before
each utterance, one file a process, since espeak-ng lists no more than 350 voices. Writes a JSON line ``{"rate",
"samples": [...]}`` to stdout, then the 16-bit samples of all utterances.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import sys

SYNCHRONOUS, UTF8, RATE_PARAMETER, VOLUME_PARAMETER = 2, 1, 1, 2  # espeak-ng/speak_lib.h
VOLUME = 60  # percent; at 100 strong voices clip
BEGINNING, BY_CHARACTER, TO_THE_END = 0, 1, 0


def main() -> None:
    """Answer the one request on stdin."""
    request = json.load(sys.stdin)
    library = ctypes.CDLL(request["library"])
    rate = library.espeak_Initialize(SYNCHRONOUS, 0, os.fsencode(request["data"]), 0)
    if rate <= 0:
        sys.exit(f"espeak-ng did not start with the data in {request['data']}")
    samples = bytearray()

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    def collect(block: int | None, count: int, _events: int | None) -> int:
        if block and count > 0:
            samples.extend(ctypes.string_at(block, 2 * count))
        return 0

    library.espeak_SetSynthCallback(collect)
    variant = os.path.join(request["data"], "voices", "!v", request["variant"])
    ends = [0]
    for number, utterance in enumerate(request["utterances"], start=1):
        with open(variant, "w", encoding="utf-8") as stream:
            stream.write(utterance["voice"])
        voice = f"{utterance['accent']}+{request['variant']}"
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            sys.exit(f"espeak-ng has no voice {voice}")
        library.espeak_SetParameter(RATE_PARAMETER, utterance["words_per_minute"], 0)
        library.espeak_SetParameter(VOLUME_PARAMETER, VOLUME, 0)
        text = utterance["text"].encode() + b"\0"
        size = ctypes.c_size_t(len(text))
        library.espeak_ng_SetRandSeed(ctypes.c_long(number))  # the default is the time of day
        if library.espeak_Synth(text, size, BEGINNING, BY_CHARACTER, TO_THE_END, UTF8, None, None) != 0:
            sys.exit(f"espeak-ng could not say {utterance['text']!r}")
        library.espeak_Synchronize()
        ends.append(len(samples) // 2)
    os.remove(variant)
    counts = [end - start for start, end in itertools.pairwise(ends)]
    sys.stdout.buffer.write(json.dumps({"rate": rate, "samples": counts}).encode() + b"\n" + bytes(samples))


if __name__ == "__main__":
    main()
