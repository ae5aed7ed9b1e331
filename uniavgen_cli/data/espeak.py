"""A process of its own around the espeak-ng library: phoneme times, and for training data samples too.

Run as a script with `time` or `speak`. Each line of standard input is one JSON request {voice, rate, pitch,
range, text}; each answer is one JSON line {phonemes: [[symbol, start_ms], ...], words: [[place in the text,
start_ms], ...], end_ms, num_bytes} or {error}, followed by num_bytes of 16-bit mono samples at 22050 Hz. A
`time` process looks at no sample: its num_bytes is always 0.

espeak-ng is GPLv3, so it is loaded here and never into the program itself. It is exactly repeatable only in a
fresh state; every request is answered by a fork of the just-loaded library, where the system can fork.
"""

import ctypes
import json
import os
import signal
import sys
from typing import Any, BinaryIO

_SYNCHRONOUS = 2
_PHONEME_EVENTS_IN_IPA = 1 | 2
_DO_NOT_EXIT = 0x8000
_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER
_LAST, _WORD, _PHONEME = 0, 1, 7  # espeak_EVENT_TYPE


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h; `id` is the union's eight bytes, a phoneme's name in UTF-8."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


def load() -> ctypes.CDLL:
    """The library, initialised once; raises OSError when it is missing or does not start."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    options = _PHONEME_EVENTS_IN_IPA | _DO_NOT_EXIT
    if library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), options) <= 0:
        raise OSError(f"espeak-ng did not start with its data in {espeakng_loader.get_data_path()}")
    return library


def answer(library: ctypes.CDLL, request: dict[str, Any], with_samples: bool) -> tuple[dict[str, Any], bytes]:
    """One request's phonemes and end, and its samples when `with_samples`, else no byte."""
    phonemes: list[tuple[str, int]] = []
    words: list[tuple[int, int]] = []
    samples = bytearray()
    num_samples = 0

    def receive(wave: Any, count: int, events: Any) -> int:
        nonlocal num_samples
        num_samples += count
        if with_samples and count > 0:
            samples.extend(ctypes.string_at(wave, 2 * count))
        index = 0
        while events[index].type != _LAST:
            if events[index].type == _PHONEME:
                phonemes.append((events[index].id.decode(), events[index].audio_position_ms))
            elif events[index].type == _WORD:
                words.append((events[index].text_position - 1, events[index].audio_position_ms))
            index += 1
        return 0

    library.espeak_ng_SetRandSeed(1)  # some voices breathe and flutter at random, seeded by the clock
    callback = _Callback(receive)
    library.espeak_SetSynthCallback(callback)
    code = library.espeak_SetVoiceByName(request["voice"].encode())
    if code != 0:  # the library would go on with the voice it had before
        return {"error": f"espeak-ng has no voice {request['voice']!r} (code {code})"}, b""
    for parameter, name in ((_RATE, "rate"), (_PITCH, "pitch"), (_RANGE, "range")):
        library.espeak_SetParameter(parameter, int(request[name]), 0)
    text = request["text"].encode()
    code = library.espeak_Synth(text, len(text) + 1, 0, 1, 0, _UTF8, None, None)
    if code != 0:
        return {"error": f"espeak-ng could not say the text (code {code})"}, b""
    end_ms = round(num_samples / 22.05)
    header = {"phonemes": phonemes, "words": words, "end_ms": end_ms, "num_bytes": len(samples)}
    return header, bytes(samples)


def write(output: BinaryIO, header: dict[str, Any], samples: bytes) -> None:
    output.write(json.dumps(header).encode() + b"\n" + samples)
    output.flush()


def serve(mode: str, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answers every line until the input ends; without fork, only the first one."""
    library = load()
    for line in requests:
        if not hasattr(os, "fork"):
            write(answers, *answer(library, json.loads(line), mode == "speak"))
            return
        child = os.fork()
        if child == 0:
            write(answers, *answer(library, json.loads(line), mode == "speak"))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status != 0:
            write(answers, {"error": f"espeak-ng ended with status {status}"}, b"")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is its owner's; it ends with its input
    serve(sys.argv[1], sys.stdin.buffer, sys.stdout.buffer)
