"""Errors a person can act on: each kind has its exit code, says what is wrong and what to do next."""

import errno


class UniAVGenError(Exception):
    """An expected failure, shown as one line.

    `what` names the thing and the value that is wrong, `hint` the next thing to do (may be empty).
    """

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}; {self.hint}" if self.hint else self.what


class UsageError(UniAVGenError):
    """The command itself is wrong: an option, a preset, a key, a combination."""

    exit_code = 2


class InputError(UniAVGenError):
    """A given file, text or picture can't be used."""

    exit_code = 3


class OutputError(UniAVGenError):
    """The result can't be written where it was asked for."""

    exit_code = 4


class WeightsError(UniAVGenError):
    """Model weights are missing, damaged or of another layout."""

    exit_code = 5


class OutOfMemoryError(UniAVGenError):
    """The work does not fit the memory of this device."""

    exit_code = 6


class Interrupted(UniAVGenError):
    """The person stopped it."""

    exit_code = 130


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory ran out, a device's or the host's, in Python's words or in torch's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, by name
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # torch has no class for these: its CPU allocator, pinned memory and other CUDA calls, cuBLAS and cuDNN
    words = ("can't allocate memory", "out of memory", "_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def known(error: BaseException) -> UniAVGenError:
    """Any exception as one that says what to do next."""
    if isinstance(error, UniAVGenError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted")
    if ran_out_of_memory(error):
        return OutOfMemoryError("out of memory", "take a smaller --size or a shorter --duration, or -n 1")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError("no space left on the disk", "make room, or write elsewhere with -o")
    reason = str(error).splitlines()[0] if str(error) else "no reason given"
    return UniAVGenError(
        f"{type(error).__name__}: {reason}", "this is a defect of uniavgen; UNIAVGEN_DEBUG=1 shows where"
    )
