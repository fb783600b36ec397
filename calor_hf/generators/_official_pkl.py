"""Weights out of the official StyleGAN2 files, which are pickles, without running anything that is in them.

A pickle is a program. This reader runs it with every name it may call replaced by a class of ours that stores what it
is given and does nothing else; any other name ends the reading. The weights are then taken from these records. It is
the one place of the library that reads a pickle.

Written after the official code (NVlabs/stylegan2-ada-pytorch, `torch_utils/persistence.py`: networks are stored as
their own source text, which is ignored here, and their attributes). Not tried on the official FFHQ file itself.
"""

import io
import math
import pickle
import pickletools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from calor_hf.core.validation import type_error

MAX_BYTES = 2 * 1024**3
"""Size of a file that is read at most; the largest official one has 0.4 GB."""
MAX_MODULES = 10_000
MAX_DEPTH = 8
MAX_ITEMS = 1000
"""Limit for a tuple, with those in it; a network's have a dozen."""
MAX_DIMENSIONS = 8


class Record:
    """A call that the file asks for, with its arguments; it is never made."""

    __slots__ = ("args", "state")
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> "Record":
        self = super().__new__(cls)
        self.args, self.state = args, None
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Table(dict[Any, Any]):
    """A dictionary of the file, whatever class it had."""

    def __setstate__(self, state: Any) -> None:
        """Attributes of a dictionary are not needed."""


class Network(Record):
    """A module: ``args[0]["state"]`` are its attributes."""

    __slots__ = ()


class Values(Record):
    """A tensor: (storage, offset, size, stride, …)."""

    __slots__ = ()


class Weight(Record):
    """A parameter: (tensor, …)."""

    __slots__ = ()


class Storage(Record):
    """Numbers of tensors: (bytes of torch.save,)."""

    __slots__ = ()


class Other(Record):
    """Numbers and sets that the weights do not depend on."""

    __slots__ = ()


KNOWN: dict[tuple[str, str], type] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Network,
    ("torch._utils", "_rebuild_tensor_v2"): Values,
    ("torch._utils", "_rebuild_parameter"): Weight,
    ("torch.storage", "_load_from_bytes"): Storage,
    ("collections", "OrderedDict"): Table,
    ("dnnlib.util", "EasyDict"): Table,
    ("builtins", "set"): Other,
    ("numpy", "dtype"): Other,
    ("numpy", "ndarray"): Other,
    **{(f"{package}.multiarray", name): Other for package in ("numpy.core", "numpy._core")
       for name in ("scalar", "_reconstruct")},
}  # fmt: skip
"""Every name that an official file calls, and what stands in for it."""

OPCODES = re.compile(
    "PROTO|FRAME|STOP|MARK|POP|POP_MARK|NONE|NEWTRUE|NEWFALSE|BININT[12]?|LONG1|BINFLOAT|(SHORT_)?BINUNICODE|BINUNICODE8|"
    "(SHORT_)?BINBYTES|BINBYTES8|EMPTY_(LIST|TUPLE|DICT|SET)|TUPLE[123]?|APPENDS?|SETITEMS?|ADDITEMS|(LONG_)?BINPUT|"
    "MEMOIZE|(LONG_)?BINGET|(STACK_)?GLOBAL|REDUCE|NEWOBJ|BUILD"
)
"""Instructions that the protocols 3 to 5 write for such files."""

DAMAGE = (pickle.UnpicklingError, EOFError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError,
          RuntimeError, MemoryError, AssertionError)  # fmt: skip


class InertUnpickler(pickle.Unpickler):
    """Reads a pickle into records."""

    def find_class(self, module: str, name: str) -> type:
        """The class that stands in for a known name.

        Raises:
            ValueError: any other name.
        """
        if (module, name) not in KNOWN:
            raise _RefusalError(f"it calls {module}.{name}, which no official network does; nothing of it was run")
        return KNOWN[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Refuse what lies outside of the file."""
        raise _RefusalError("it refers to objects outside of itself, which no official network does")


class _RefusalError(ValueError):
    """Refusal of the file; its message is shown as it is."""


@dataclass
class StoredNetwork:
    """Weights of a network in the file.

    Attributes:
        weights: Parameters and buffers by their official names, float, on the CPU.
        clamp: Bound of the activations; 0: none.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    clamp: float = 0.0


def read_official_pkl(file: Path) -> dict[str, StoredNetwork]:
    """The networks of an official file: ``G_ema`` (what images are made with), ``G`` and ``D``, if they are there.

    Args:
        file: Pickle as the official PyTorch code writes it.

    Raises:
        ValueError: too large, cut off, or not such a file; nothing in it was run.
        OSError: it cannot be read.
    """
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise _RefusalError(f"it has {size} bytes, more than {MAX_BYTES}")
        with file.open("rb") as stream:
            _check_instructions(stream)
            stream.seek(0)
            content = InertUnpickler(stream).load()
        if not isinstance(content, dict):
            raise _RefusalError("it holds no dictionary of networks")
        room = min(MAX_BYTES, 4 * size)  # halves become floats, and some slack
        found = {
            name: _read(content[name], room) for name in ("G_ema", "G", "D") if isinstance(content.get(name), Network)
        }
        if not found:
            raise _RefusalError(f"it holds no network G_ema, only {', '.join(sorted(map(str, content)))[:200]}")
    except _RefusalError as error:
        raise ValueError(f"{file} is no official StyleGAN2 file: {error}") from None
    except DAMAGE as error:
        raise ValueError(
            f"{file} is damaged or no official StyleGAN2 file ({type(error).__name__}: {error}); fetch it again"
        ) from error
    return found


def _check_instructions(stream: BinaryIO) -> None:
    """Read the instructions without following them: to the end, known ones, none that asks for endless memory or time.

    Of the objects only their sizes are followed: what lies on the stack, and what was numbered. A tuple as a key is
    hashed with all that is in it, so one of tuples that are used twice each would take for ever.
    """
    stack: list[int] = []  # sizes; 0 is a mark
    memo: dict[int, int] = {}
    for instruction, argument, _ in pickletools.genops(stream):
        name, before = instruction.name, instruction.stack_before
        if not OPCODES.fullmatch(name):
            raise _RefusalError(f"it has the instruction {name}, which no official network has")
        if name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            number = len(memo) if name == "MEMOIZE" else int(argument or 0)
            if number > len(memo):  # they are numbered as they come
                raise _RefusalError(f"it numbers an object {number}, the one after {len(memo) - 1}")
            memo[number] = stack[-1]
        elif name == "MARK":
            stack.append(0)
        else:
            taken = []
            if pickletools.markobject in before:
                while size := stack.pop():
                    taken.append(size)
                before = before[: before.index(pickletools.markobject)]
            taken += [stack.pop() for _ in before]
            size = memo[int(argument or 0)] if name.endswith("BINGET") else 1
            size += sum(taken) if name.startswith("TUPLE") else 0
            if size > MAX_ITEMS:
                raise _RefusalError(f"it holds a tuple of more than {MAX_ITEMS} items, with those in it")
            stack += [size] * len(instruction.stack_after)


def _read(network: Network, room: int) -> StoredNetwork:
    found, total = StoredNetwork(), 0
    for index, (prefix, attributes) in enumerate(_modules(network, "", 0)):
        if index == MAX_MODULES:
            raise _RefusalError(f"it has more than {MAX_MODULES} modules")
        for kind in ("_parameters", "_buffers"):
            for name, value in attributes.get(kind, {}).items():
                if value is not None:
                    found.weights[f"{prefix}{name}"] = tensor = _tensor(value)
                    total += tensor.nbytes
                    if total > room:  # the same numbers, again and again
                        raise _RefusalError(f"its weights have more than {room} bytes")
        clamp = attributes.get("conv_clamp")
        if isinstance(clamp, int | float):
            found.clamp = max(found.clamp, float(clamp))
    return found


def _modules(network: Any, prefix: str, depth: int) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Path, with a dot at its end, and attributes of a network and all modules in it."""
    attributes = network.args[0]["state"] if isinstance(network, Network) else None
    if not isinstance(attributes, dict) or depth > MAX_DEPTH:
        raise _RefusalError(f"'{prefix}' is no module, or lies too deep")
    yield prefix, attributes
    for name, module in attributes.get("_modules", {}).items():
        yield from _modules(module, f"{prefix}{name}.", depth + 1)


def _tensor(value: Any) -> Tensor:
    values = value.args[0] if isinstance(value, Weight) else value
    if not isinstance(values, Values) or not isinstance(values.args[0], Storage):
        raise _RefusalError(f"a weight is no tensor but {type(values).__name__}")
    storage, offset, size, stride = values.args[:4]
    where = {"offset": int, "shape": tuple[int, ...], "steps": tuple[int, ...]}
    if problem := type_error({"offset": offset, "shape": size, "steps": stride}, where, "a weight"):
        raise ValueError(problem)
    if len(size) > MAX_DIMENSIONS:
        raise ValueError(f"a weight has {len(size)} dimensions")
    numbers = torch.load(io.BytesIO(storage.args[0]), weights_only=True, map_location="cpu")
    if not isinstance(numbers, torch.storage.TypedStorage) or not numbers.dtype.is_floating_point:
        raise _RefusalError("a weight's storage does not hold floating-point numbers")
    untyped = numbers._untyped_storage  # its public name, and its length, warn of the storage's own end
    count = untyped.nbytes() // numbers.dtype.itemsize
    # Tensor.set_ would enlarge a storage that is too small, with whatever lies in memory.
    reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if math.prod(size) else 0
    if min(offset, *size, *stride, 0) < 0 or max(reach + 1, math.prod(size)) > count:
        raise _RefusalError(
            f"a weight of shape {tuple(size)} from number {offset} on in steps of {tuple(stride)} lies outside of its "
            f"{count} numbers"
        )
    return torch.empty(0, dtype=numbers.dtype).set_(untyped, offset, size, stride).contiguous().float()
