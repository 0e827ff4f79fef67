"""Opens a file of data: decompressed, and as text in the encoding that it says or as UTF-8."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, TextIO, cast

from search_spaces import InputError
from search_spaces.errors import short_error

CHUNK = 2**20
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""First bytes of a file -> its encoding; the first that fits counts."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def file_kind(path: Path) -> str:
    """The suffix that says how a file is read, in small letters and without that of a compression; "" if none does."""
    name = _zipped_name(path) if path.suffix.lower() == ".zip" and path.is_file() else path.name
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    if suffixes and suffixes[-1] in DECOMPRESSORS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_compressed(path: Path) -> bool:
    """Whether the name of a file is that of a compressed one."""
    return path.suffix.lower() in DECOMPRESSORS


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file, decompressed.

    Raises:
        InputError: If it is no file, cannot be decompressed, or is a pointer of Git LFS.
    """
    if not path.is_file():
        raise InputError(
            f"the data file `{path}` does not exist; check `task.train`, `task.test` and `task.validation`."
        )
    require_no_pointer(path)
    try:
        with path.open("rb") as file:
            decompress = DECOMPRESSORS.get(path.suffix.lower())
            with decompress(file) if decompress else file as opened:
                yield opened
    except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, gzip.BadGzipFile, OSError) as error:
        raise InputError(f"`{path}` cannot be read: {short_error(error)}; check that it is whole.") from error


def require_no_pointer(path: Path) -> None:
    """Raises InputError if a file is a pointer of Git LFS, as a clone without `git lfs` has."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise InputError(
                f"`{path}` must be the file itself, but is a pointer of Git LFS; get it with `git lfs pull`."
            )


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Opens a file as text; line breaks are kept as they are."""
    encoding = text_encoding(path)
    with open_bytes(path) as file, io.TextIOWrapper(cast("BinaryIO", file), encoding=encoding, newline="") as text:
        yield text


def text_encoding(path: Path) -> str:
    """The encoding that the first bytes of a file tell, else UTF-8."""
    with open_bytes(path) as file:
        start = file.read(4)
    return next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), "utf-8")


def check_text(path: Path) -> None:
    """Raises InputError if a file is not text in its encoding, with the first byte that is not."""
    encoding = text_encoding(path)
    decoder, before, line = codecs.getincrementaldecoder(encoding)(), b"", 1
    with open_bytes(path) as file:
        for chunk in iter(lambda: file.read(CHUNK), b""):
            try:
                text = decoder.decode(chunk)
            except UnicodeDecodeError as error:
                raise InputError(_not_text(path, encoding, error, before, line)) from None
            if "\0" in text:
                zero = line + text[: text.index("\0")].count("\n")
                raise InputError(f"`{path}` must be text, but line {zero} holds a zero byte; save the file as UTF-8.")
            line += text.count("\n")
            before = (before + chunk).rpartition(b"\n")[2][-CHUNK:]


def _not_text(path: Path, encoding: str, error: UnicodeDecodeError, before: bytes, line: int) -> str:
    """What to say of a byte that cannot be decoded: its line, its position there, the way out."""
    head = error.object[: error.start]
    line += head.count(b"\n")
    position = len(head.rpartition(b"\n")[2]) + (0 if b"\n" in head else len(before))
    name = encoding.upper().removesuffix("-SIG")
    return (
        f"`{path}` must be {name} text, but in line {line} byte 0x{error.object[error.start]:02x} at position "
        f"{position} is "
        f"not {name}; save the file as UTF-8."
    )


def _open_zstd(file: BinaryIO) -> IO[bytes]:
    try:
        import zstandard
    except ImportError:
        raise InputError(f"`{file.name}` needs the package `zstandard`: pip install zstandard.") from None
    return cast("IO[bytes]", zstandard.ZstdDecompressor().stream_reader(file))


def _zipped_name(path: Path) -> str:
    """The name of the only file in a zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX")]
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"`{path}` cannot be read: {short_error(error)}; check that it is whole.") from None
    if len(names) != 1:
        raise InputError(
            f"`{path}` must hold one file, but holds {len(names)}; unpack it and name the file or folder."
        )
    return names[0]


def _open_zip(file: BinaryIO) -> IO[bytes]:
    return zipfile.ZipFile(file).open(_zipped_name(Path(file.name)))


DECOMPRESSORS: dict[str, Callable[[BinaryIO], IO[bytes]]] = {
    ".gz": lambda file: cast("IO[bytes]", gzip.GzipFile(fileobj=file)),
    ".bz2": lambda file: cast("IO[bytes]", bz2.BZ2File(file)),
    ".xz": lambda file: cast("IO[bytes]", lzma.LZMAFile(file)),  # noqa: SIM115
    ".zst": _open_zstd,
    ".zip": _open_zip,
}
"""Suffix -> function that opens a compressed file."""
