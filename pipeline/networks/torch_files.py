"""Files of torch.save, read as data: tensors, plain values, and numbers of numpy. Nothing in them is executed.

The classes that people save beside tensors (arguments, paths, dates, configurations) are never imported or made:
inert values take their places. Every other class is refused by name.
"""

from __future__ import annotations

import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from labelstore.errors import InputError
from pipeline.networks.file_kinds import SAFETENSORS, TORCH, kind_of, shown
from pipeline.quiet import quiet

_OF_TORCH = 3  # it starts with a magic number, a version, and information about the writer
WANTED = "nothing but tensors, written by torch.save or safetensors"
_PICKLES = 5  # a legacy file is a row of as many
_HELPERS = ("builtins.", "copyreg.", "functools.")
_DTYPES = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})
_BITS = (8, 16, 32, 64)
_UNBACKED_BYTES = 64 << 20  # of numbers that are more than their file holds: repeated, or compressed


class Inert:
    """In place of an object of a class that is not made: takes its arguments and its state, and keeps nothing."""

    def __new__(cls, *_args: object) -> Inert:
        """Take anything."""
        return super().__new__(cls)

    def __init__(self, *_args: object) -> None:
        """Take anything."""

    def __setstate__(self, _state: object) -> None:
        """Take anything."""

    def __repr__(self) -> str:
        """No more than that it is one."""
        return "<not read>"


class OddTensor(Inert):
    """In place of a tensor that has no dense numbers: sparse, quantised, nested, or only a shape.

    Attributes:
        kind: which of them.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        """What it is."""
        return f"a {self.kind} tensor"


class _NotReadError(ValueError):
    """A file is not read; its text is what was found in it."""


class _NumpyType:
    """A dtype of numpy: its code, such as ``f8``, and its byte order."""

    def __init__(self, code: object = "", *_flags: object) -> None:
        self.code, self.order = str(code), "<"

    def __setstate__(self, state: Any) -> None:
        """The second of the state is the byte order."""
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.order = state[1]

    def array(self, content: object) -> np.ndarray[Any, Any] | None:
        """The numbers in these bytes, one-dimensional; None when they are no numbers."""
        raw = content.encode("latin-1") if isinstance(content, str) else content
        if self.code not in _DTYPES or not isinstance(raw, bytes):
            return None
        return np.frombuffer(raw, np.dtype(self.order + self.code))


class _NumpyArray:
    """An array of numpy that becomes a tensor once all is read."""

    def __init__(self, *_args: object) -> None:
        self.value: torch.Tensor | None = None

    def __setstate__(self, state: Any) -> None:
        """The state is (version, shape, dtype, Fortran order, bytes)."""
        _, shape, dtype, fortran, content = state
        flat = dtype.array(content) if isinstance(dtype, _NumpyType) else None
        if flat is not None:
            array = flat.reshape(shape, order="F" if fortran else "C")
            self.value = torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("=")).copy())


def _scalar(dtype: Any = None, content: object = b"") -> object:
    """A number of numpy as one of Python."""
    numbers = dtype.array(content) if isinstance(dtype, _NumpyType) else None
    return numbers[0].item() if numbers is not None and len(numbers) == 1 else Inert()


def _mapping(*_factory: object) -> OrderedDict[Any, Any]:
    """A dict of another class, empty before it is filled."""
    return OrderedDict()


_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_INERT: Mapping[str, tuple[str, ...]] = {
    "argparse": ("Namespace",),
    "types": ("SimpleNamespace",),
    "typing": ("Any",),
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
    "datetime": ("datetime", "date", "time", "timedelta", "timezone"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "uuid": ("UUID",),
    "builtins": ("list", "dict", "tuple", "int", "float", "str", "bool", "bytes", "frozenset", "slice", "range"),
    "numpy": ("ndarray", "bool_", "bool", *(f"{kind}{bits}" for kind in ("int", "uint", "float") for bits in _BITS)),
    "omegaconf.base": ("ContainerMetadata", "Metadata"),
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "omegaconf.nodes": ("AnyNode", "BooleanNode", "FloatNode", "IntegerNode", "StringNode"),
}
_MAPPINGS: Mapping[str, tuple[str, ...]] = {
    "collections": ("defaultdict",),
    "easydict": ("EasyDict",),
    "yacs.config": ("CfgNode",),
    "addict.addict": ("Dict",),
    "munch": ("Munch",),
    "lightning_fabric.utilities.data": ("AttributeDict",),
    "lightning.fabric.utilities.data": ("AttributeDict",),
    "pytorch_lightning.utilities.parsing": ("AttributeDict",),
}


Allowed: TypeAlias = "list[Callable[..., Any] | tuple[Callable[..., Any], str]]"


def of_numpy() -> Allowed:
    """Names that a file with numbers and arrays of numpy may use besides tensors, and their replacements."""
    arrays = [f"numpy.{core}.multiarray" for core in ("core", "_core")]
    return [
        (Inert, "numpy.ndarray"),
        (_NumpyType, "numpy.dtype"),
        *((_scalar, f"{module}.scalar") for module in arrays),
        *((_NumpyArray, f"{module}._reconstruct") for module in arrays),
    ]


def _allowed() -> Allowed:
    """Names that a file may use besides torch's tensors, and their replacements."""
    return [
        *((Inert, f"{module}.{name}") for module, names in _INERT.items() for name in names),
        *((_mapping, f"{module}.{name}") for module, names in _MAPPINGS.items() for name in names),
        *of_numpy(),
    ]


def read_content(
    path: Path, place: str, advice: str, *, mapped: bool = False, allowed: Allowed | None = None
) -> object:
    """The content of a file of ``torch.save`` or safetensors, on the CPU.

    Args:
        path: the file; its content decides how it is read, never its name.
        place: what it is, for messages.
        advice: what to do when it holds an object of a class that is not allowed.
        mapped: map the tensors of torch's zip format instead of reading them.
        allowed: what it may name besides tensors; None allows all that is read as data.

    Raises:
        InputError: names in one line what was found instead of tensors.
    """
    if not path.exists():
        raise InputError(f"{place}: no such file")
    if not path.is_file():  # a pipe would be waited for
        found = "a folder; give the file in it" if path.is_dir() else "a pipe or a device"
        raise InputError(f"{place}: expected a file, found {found}")
    try:
        kind, remedy = kind_of(path)
        if kind == TORCH:
            return load_torch(path, mapped=mapped, allowed=allowed)
    except OSError as error:
        raise InputError(f"{place}: cannot be read ({error.strerror or type(error).__name__})") from error
    except _NotReadError as error:
        raise InputError(f"{place}: expected {WANTED}, found {error}; {advice}") from error
    except Exception as error:  # torch raises whatever the bytes lead to
        found, remedy = _diagnosis(path, advice, _allowed() if allowed is None else allowed)
        raise InputError(f"{place}: expected {WANTED}, found {found}; {remedy}") from error
    if kind == SAFETENSORS:
        return read_safetensors(path, place)[0]
    raise InputError(f"{place}: expected {WANTED}, found {kind}; {remedy}")


def load_torch(path: Path, *, mapped: bool = False, allowed: Allowed | None = None) -> object:
    """The content of a file of ``torch.save``, with replacements resolved. Raises any error of torch on other bytes."""
    _require_backed_archive(path)
    with torch.serialization.safe_globals(_allowed() if allowed is None else allowed), quiet():
        if mapped and zipfile.is_zipfile(path) and path.suffix != ".safetensors":  # torch goes by that suffix
            return settled(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
        with path.open("rb") as file:
            return settled(torch.load(file, map_location="cpu", weights_only=True))


def _require_backed_archive(path: Path) -> None:
    """Refuse a compressed archive that unpacks to much more than its file: torch.save never compresses."""
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError):  # of an older format, or damaged: torch decides
        return
    if claimed > 4 * path.stat().st_size + _UNBACKED_BYTES:
        raise _NotReadError(f"a compressed archive that unpacks to {claimed:,} bytes")


def read_safetensors(path: Path, place: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata of a .safetensors file; ``place`` is what it is, for messages.

    Raises:
        InputError: when it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{place}: a damaged .safetensors file ({shown(error)}); download it again") from error


def settled(value: Any, known: dict[int, Any] | None = None) -> Any:
    """The content with tensors in the places of numpy's arrays, and what is no dense tensor as `OddTensor`.

    Args:
        value: the content, which stays alive meanwhile.
        known: results so far, by identity, so that a list with many references is checked once.
    """
    known = {} if known is None else known
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, _NumpyArray):
        return Inert() if value.value is None else value.value
    if isinstance(value, torch.Tensor):
        return _dense(value)
    if isinstance(value, dict):
        known[id(value)] = value
        for key, held in value.items():
            value[key] = settled(held, known)
    elif isinstance(value, list):
        known[id(value)] = value
        value[:] = [settled(held, known) for held in value]
    elif type(value) is tuple:
        known[id(value)] = tuple(settled(held, known) for held in value)
        return known[id(value)]
    return value


def _dense(tensor: torch.Tensor) -> torch.Tensor | OddTensor:
    """The numbers of a tensor, without its history; of one that has none, what it is.

    Raises:
        _NotReadError: when it repeats a few numbers to more than memory should be taken for.
    """
    for odd, kind in (
        (tensor.is_nested, "nested"),
        (tensor.layout != torch.strided, "sparse"),
        (tensor.is_quantized, "quantised"),
        (tensor.is_meta, "meta"),
    ):
        if odd:
            return OddTensor(kind)
    if tensor.nbytes > max(tensor.untyped_storage().nbytes(), _UNBACKED_BYTES):
        raise _NotReadError(
            f"a tensor of {tensor.nbytes:,} bytes that repeats {tensor.untyped_storage().nbytes():,} bytes"
        )
    return tensor.detach().resolve_neg()


def _diagnosis(path: Path, advice: str, allowed: Allowed) -> tuple[str, str]:
    """The content of a file that torch could not read as data, and a remedy."""
    try:
        names, protocol, whole = _pickle(path)
        zipped = zipfile.is_zipfile(path)
    except Exception:  # whatever the bytes lead to
        return "something else, or a damaged file", f"download it again, or {advice}"
    own = torch._weights_only_unpickler._get_allowed_globals()
    known = {entry[1] for entry in allowed if isinstance(entry, tuple)} | own.keys()
    foreign = [name for name in names if name not in known]
    if foreign:
        foreign.sort(key=lambda name: name.startswith(_HELPERS))  # the others are the better clue
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        return f"a pickled {shown(foreign[0])}{more}, which only code could make", advice
    if whole and not zipped and whole < _OF_TORCH:
        return "a pickle that torch did not write", "load it where it comes from and save its tensors by torch.save"
    if whole and protocol > 2:
        return f"a pickle of protocol {protocol}, which is not read", "save it by torch.save as it is"
    return "a damaged file, or one that ends early", f"download it again, or {advice}"


def _pickle(path: Path) -> tuple[list[str], int, int]:
    """The names of classes and functions in a file's pickles, in order; the protocol; how many pickles are whole."""
    with path.open("rb") as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                name = next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")
                with archive.open(name) as content:
                    return _names([content])
        file.seek(0)
        return _names([file] * _PICKLES)


def _names(files: list[Any]) -> tuple[list[str], int, int]:
    found: dict[str, None] = {}
    protocol, whole = 0, 0
    for file in files:
        try:
            for name, argument in _globals(file):
                if name == "PROTO":
                    protocol = max(protocol, int(argument))
                elif name == "STOP":
                    whole += 1
                else:
                    found[argument] = None
        except ValueError:  # the tensors' bytes follow the pickles
            if not found and not whole and protocol == 0:
                raise
            break
    return list(found), protocol, whole


def _globals(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    """(PROTO, number), (STOP, None) and (GLOBAL, name) of one pickle."""
    texts: list[str] = []
    memo: dict[int, str] = {}
    last = ""
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in {"PROTO", "STOP"}:
            yield opcode.name, argument
        elif opcode.name in {"GLOBAL", "INST"}:
            yield "GLOBAL", _renamed(*str(argument).split(" ", 1))
        elif opcode.name == "STACK_GLOBAL" and len(texts) > 1:
            yield "GLOBAL", _renamed(*texts[-2:])
        if isinstance(argument, str) and "UNICODE" in opcode.name:
            texts.append(argument)
            last = argument
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = last
        elif opcode.name in {"BINGET", "LONG_BINGET"} and argument in memo:
            texts.append(memo[argument])


def _renamed(module: str, name: str) -> str:
    """The name that a class of Python 2 has today."""
    module, name = NAME_MAPPING.get((module, name), (module, name))
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"
