"""Errors that users can act upon, told from faults of the program."""

import dis
import errno
import os
import re
import sysconfig
from pathlib import Path
from types import TracebackType

TRACEBACK = "--traceback"
TRACEBACK_HELP = f"With {TRACEBACK}, any command shows where an error was raised."
PACKAGE = __name__.partition(".")[0]
_FOLDER = str(Path(__file__).parents[1]) + os.sep
_LIBRARIES = tuple({os.path.realpath(path) + os.sep for path in sysconfig.get_paths().values()})
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


def is_own(error: BaseException) -> bool:
    """Whether a ``raise`` statement of this package raised the error, so that its text was written for the user.

    A ``ValueError`` out of torch is not, nor one that Python itself raised at a line of this package, as ``int("x")``.
    """
    return _raised_in(error)[0].partition(".")[0] == PACKAGE


def _raised_in(error: BaseException) -> tuple[str, str]:
    """Module and file of the ``raise`` statement behind an error; empty for a fault, or an error of Python itself."""
    if isinstance(error, AssertionError | AttributeError) or error.__traceback__ is None:
        return "", ""
    last: TracebackType = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    code = last.tb_frame.f_code
    if code.co_code[last.tb_lasti] != dis.opmap["RAISE_VARARGS"]:
        return "", ""
    return str(last.tb_frame.f_globals.get("__name__")), code.co_filename


def message_of(error: BaseException) -> str | None:
    """Message of an error for the user; None for a fault of the program.

    For the user are errors of this package (:func:`is_own`), of the disk, the Hub and the memory, damaged weights, and
    missing libraries; and what the user's own code raised, such as a registered method.
    """
    text, kind = str(error), type(error)
    line = text.strip().partition("\n")[0]
    if is_own(error):
        return str(error.args[0]) if isinstance(error, KeyError) else text
    if isinstance(error, MemoryError) or kind.__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in text:
        return f"not enough memory ({line or kind.__name__}); pass a smaller batch, or use a machine with more"
    if kind.__name__ == "SafetensorError":
        return f"a file of weights is damaged or cut off ({line}); copy or download it again"
    if isinstance(error, ImportError):  # with a name, the fault is here unless a whole library is missing
        missing = isinstance(error, ModuleNotFoundError) and not str(error.name).startswith(PACKAGE)
        return text if missing or error.name is None else None
    if isinstance(error, OSError) and error.errno in _DISK:
        return f"{text}; make room, or allow reading and writing there"
    if isinstance(error, OSError) or kind.__module__.startswith("huggingface_hub"):
        return text or kind.__name__
    if "Original Traceback" in text:  # of a data loader's process
        files = re.findall(r'File "(.+?)", line', text)
        if files[-1:] and files[-1].startswith(_FOLDER):
            return text.rpartition(f"\n{kind.__name__}: ")[2].strip()
    file = _raised_in(error)[1]
    return text if os.path.isabs(file) and not os.path.realpath(file).startswith(_LIBRARIES) else None
