"""The scanner finds a model wherever it is and however it is written: else finding none would say nothing."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))

from scanner import RUN, Scanner, encodings, texts

MODEL = np.random.default_rng(1).normal(scale=0.3, size=4_000).astype(np.float32).astype(np.float64)
OTHER = np.random.default_rng(2).normal(scale=0.3, size=4_000).astype(np.float32).astype(np.float64)
BINARY = encodings(MODEL, (24,))
WRITTEN = texts(MODEL)

HOLDER = """
import sys
held = open(sys.argv[1], "rb").read()
held = memoryview(bytearray(3) + held)[3:]
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def scanner() -> Scanner:
    return Scanner({"model": MODEL})


@pytest.mark.parametrize("name", sorted(BINARY))
@pytest.mark.parametrize("offset", [0, 1, 2, 3, 5])
def test_every_encoding_is_found_at_every_offset(scanner: Scanner, name: str, offset: int) -> None:
    # A part of the model that begins anywhere, between other bytes.
    part = BINARY[name][37 : 37 + 64 + RUN].tobytes()
    assert scanner.names_in([bytes(offset) + part + b"end"]) == {f"model: {name}"}


@pytest.mark.parametrize("name", sorted(WRITTEN))
@pytest.mark.parametrize("between", [b", ", b"\n", b" "])
def test_every_text_is_found(scanner: Scanner, name: str, between: bytes) -> None:
    assert f"model: {name}" in scanner.names_in([between.join(WRITTEN[name])])


def test_another_model_and_noise_are_not_found(scanner: Scanner) -> None:
    noise = np.random.default_rng(3).bytes(1 << 24)
    other = [array.tobytes() for array in encodings(OTHER, (24,)).values()]
    written = [b", ".join(one) for one in texts(OTHER).values()]
    assert scanner.names_in([noise, *other, *written, bytes(1 << 20)]) == set()


def test_a_process_that_holds_the_model_is_found_in_each_encoding(scanner: Scanner, tmp_path: Path) -> None:
    held = {name: array.tobytes() for name, array in BINARY.items()}
    held |= {name: b", ".join(written) for name, written in WRITTEN.items()}
    files = {
        "all": (b"  ".join(held.values()), {f"model: {name}" for name in held}),
        "other": (OTHER.tobytes(), set()),
    }
    for name, (data, expected) in files.items():
        file = tmp_path / name
        file.write_bytes(data)
        command = [sys.executable, "-c", HOLDER, str(file)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.readline() == b"ready\n"
            file.unlink()
            assert scanner.in_process(process.pid) == expected
            process.stdin.close()


def test_files_are_found_by_path_and_across_the_borders_of_what_is_read_at_once(
    scanner: Scanner, tmp_path: Path
) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(bytes((1 << 25) - 100) + BINARY["floats <f4"].tobytes())
    (folder / "harmless.txt").write_bytes(b"0.5, 0.25\n" * 1000)
    np.savez(folder / "stored.npz", MODEL.astype(np.float32))
    with zipfile.ZipFile(folder / "stored.npz") as archive:
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    found = scanner.in_files(tmp_path)
    assert found == {
        folder / "model.bin": {"model: floats <f4"},
        folder / "stored.npz": {"model: floats <f4"},
    }


def test_a_process_of_which_nothing_can_be_read_is_no_clean_process(scanner: Scanner) -> None:
    with pytest.raises(OSError, match=r"No such (file|process)"):
        scanner.in_process(2**22 - 3)
