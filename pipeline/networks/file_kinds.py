"""Recognise a file by its first bytes: the two kinds that are read, and other common kinds."""

from __future__ import annotations

import json
import re
import string
import zipfile
from collections.abc import Mapping
from pathlib import Path

from labelstore.command.names import printable

SAFETENSORS, TORCH = "safetensors", "torch"
HEAD = 4096
SHOWN = 120
LARGEST_HEADER = 100_000_000  # of a .safetensors file, in bytes: the library's own limit
_AGAIN = "download it again"
_UNPACK = "unpack it and give the file in it"
_STATE_DICT = "save the state dict from there, as .safetensors"
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a git-LFS pointer, which only names the file", "run `git lfs pull` beside it"),
    (b"\x1f\x8b", "a gzip file", _UNPACK),
    (b"BZh", "a bzip2 file", _UNPACK),
    (b"\xfd7zXZ\x00", "an xz file", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd file", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a rar archive", _UNPACK),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes it", "load it in its library and " + _STATE_DICT),
    (b"GGUF", "a GGUF file", "give the weights of the network that it was made of"),
    (b"\x93NUMPY", "a NumPy array (.npy)", "save tensors: torch.save or .safetensors"),
    (b"\x89PNG", "a PNG image", "give the file of the tensors"),
    (b"\xff\xd8\xff", "a JPEG image", "give the file of the tensors"),
    (b"%PDF", "a PDF document", "give the file of the tensors"),
    (b"\x7fELF", "a program", "give the file of the tensors"),
    (b"PAR1", "a Parquet file", "give the file of the tensors"),
)


def shown(text: object) -> str:
    """Text from a file as part of a one-line message: printable, and not long."""
    plain = printable(str(text)[: SHOWN + 1])
    return plain if len(plain) <= SHOWN else plain[:SHOWN] + "..."


def kind_of(path: Path) -> tuple[str, str]:
    """The kind of a file, and a remedy.

    Returns:
        ``(SAFETENSORS, "")`` and ``(TORCH, "")`` for what can be read, or a description and advice.

    Raises:
        OSError: when the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        return "an empty file", _AGAIN
    for magic, found, advice in _MAGIC:
        if head.startswith(magic):
            return found, advice
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and 2 <= length <= LARGEST_HEADER:
        return (SAFETENSORS, "") if 8 + length <= size else ("a .safetensors file that ends early", _AGAIN)
    if head.startswith(b"PK"):
        return _zip(path)
    if head[257:262] == b"ustar":
        return "a tar archive", f"{_UNPACK}, or load it in the torch that wrote it and save it again"
    if not any(head):
        return "nothing but zeros, as an unfinished download has them", _AGAIN
    if 0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF):  # a map; neither begins a text
        return "what looks like a Flax file (msgpack)", "load it in its library and " + _STATE_DICT
    return _text(head, path) or _graph(head, path) or (TORCH, "")


def is_safetensors(path: Path) -> bool:
    """Whether a file is a whole .safetensors file by its content; False when it cannot be read."""
    try:
        return path.is_file() and kind_of(path)[0] == SAFETENSORS
    except OSError:
        return False


def _zip(path: Path) -> tuple[str, str]:
    """The kind of a zip archive: torch's or another."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, UnicodeDecodeError):
        return "a zip archive that ends early or is damaged", _AGAIN
    leaves = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in leaves and any("/code/" in f"/{name}" for name in names):
        return "a TorchScript archive", "save torch.jit.load(FILE).state_dict() by torch.save"
    if "data.pkl" in leaves:
        return TORCH, ""
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz)", "save tensors: torch.save or .safetensors"
    if "model.weights.h5" in leaves:
        return "a Keras archive", "load it in its library and " + _STATE_DICT
    held = ", ".join(shown(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
    return f"a zip archive of {held or 'nothing'}", _UNPACK


def _text(head: bytes, path: Path) -> tuple[str, str] | None:
    """The kind of a text file by its content; None for binary ones."""
    try:
        text = head.decode("utf-8-sig" if len(head) < HEAD else "latin-1").strip()
    except UnicodeDecodeError:
        text = head.decode("latin-1").strip()
    start = text[:200].lower()
    if start.startswith(("<!doctype html", "<html", "<head", "<?xml", "<!--")):
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
        heading = f" ({shown(' '.join(title[1].split()))})" if title and title[1].strip() else ""
        kind = "an XML page" if start.startswith("<?xml") else "an HTML page"
        return f"{kind}{heading} instead of the file", f"{_AGAIN}, past the page for login or consent"
    if any(byte < 32 and chr(byte) not in string.whitespace for byte in head):
        return None
    if text.startswith(("{", "[")):
        return _json(path)
    return f"a text file ({shown(text.splitlines()[0]) if text else 'blank'})", "give the file of the tensors"


def _json(path: Path) -> tuple[str, str]:
    """A JSON file: the index of weights in several files, or something else."""
    try:
        content = json.loads(path.read_bytes()) if path.stat().st_size <= LARGEST_HEADER else None
    except (ValueError, RecursionError):
        content = None
    names = content.get("weight_map") if isinstance(content, Mapping) else None
    if isinstance(names, Mapping):
        files = sorted({str(name) for name in names.values()})
        return (
            f"the index of weights in {len(files)} files ({', '.join(map(shown, files[:2]))}, ...)",
            "put their tensors into one .safetensors file and give that",
        )
    return "a JSON file", "give the file of the tensors"


def _graph(head: bytes, path: Path) -> tuple[str, str] | None:
    """Binary formats of other libraries that have no fixed first bytes."""
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite file", "load it in its library and " + _STATE_DICT
    named = path.suffix.lower() in {".onnx", ".pb"} or any(word in head[:256] for word in (b"pytorch", b"onnx"))
    if head[0] in (0x08, 0x0A) and named:
        return "an ONNX or TensorFlow graph", "give the weights of the network that it was made of"
    return None
