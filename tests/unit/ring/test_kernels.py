import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.errors import InputError
from fedsec.ring import RING32, RING64, KeyedStream, Ring
from fedsec.ring.kernels import matmul, matmul_plain

SHAPES = [
    (0, 3, 4),
    (4, 0, 2),
    (3, 2, 0),
    (1, 1, 1),
    (1, 64, 10),
    (4, 2, 1),
    (5, 7, 3),
    (8, 6, 10),
    (121, 90, 32),
]


def _python(code, **environment):
    """Run code in a new interpreter and return what it prints; a failure shows its stderr."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("ring", [Ring(8), Ring(16), RING32, RING64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_equals_its_plain_twin(ring, shape, stream):
    rows, terms, columns = shape
    a, b = stream.words((rows, terms), ring), stream.words((terms, columns), ring)

    product = matmul(a, b)

    assert product.dtype == ring.dtype
    np.testing.assert_array_equal(product, matmul_plain(a, b))


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)),
    ring=st.sampled_from([RING32, RING64]),
    key=st.binary(min_size=32, max_size=32),
)
def test_the_plain_twin_equals_python_integers(shape, ring, key):
    rows, terms, columns = shape
    stream = KeyedStream(key)
    a, b = stream.words((rows, terms), ring), stream.words((terms, columns), ring)

    expected = (a.astype(object) @ b.astype(object)) % ring.modulus if terms else np.zeros((rows, columns))
    np.testing.assert_array_equal(matmul_plain(a, b), expected)
    np.testing.assert_array_equal(matmul(a, b), expected)


@pytest.mark.parametrize("ring", [RING32, RING64], ids=str)
def test_the_largest_words_wrap(ring):
    """(2^k - 1)^2 = 1 mod 2^k: a kernel that widened 32-bit words and never cast back would differ."""
    ones = np.full((6, 5), ring.modulus - 1, dtype=ring.dtype)

    np.testing.assert_array_equal(matmul(ones, ones.T.copy()), np.full((6, 6), 5))


def test_strided_factors_are_taken(stream):
    a, b = stream.words((12, 10)), stream.words((10, 12))

    np.testing.assert_array_equal(matmul(a[::2, ::-1], b.T[::2].T), matmul_plain(a[::2, ::-1], b.T[::2].T))
    np.testing.assert_array_equal(matmul(b.T, a.T), matmul_plain(b.T, a.T))


@pytest.mark.parametrize("product", [matmul, matmul_plain])
def test_what_does_not_fit_is_refused(product):
    a = np.zeros((2, 3), dtype=np.uint64)
    for b in (np.zeros((2, 3), dtype=np.uint64), np.zeros(3, dtype=np.uint64)):
        with pytest.raises(InputError, match="shapes"):
            product(a, b)
    with pytest.raises(InputError, match="one ring"):
        product(a, np.zeros((3, 2), dtype=np.uint32))
    with pytest.raises(InputError, match="unsigned"):
        product(a.astype(np.int64), a.T)


def test_numba_is_loaded_by_the_first_product_only():
    code = """
import sys
import fedsec.ring, fedsec.ring.kernels, fedsec.sharing
import numpy as np
before = "numba" in sys.modules
fedsec.ring.kernels.matmul(np.ones((2, 2), np.uint64), np.ones((2, 2), np.uint64))
print(before, "numba" in sys.modules)
"""
    assert _python(code) == "False True"


CACHE_CODE = """
import numpy as np, numba
from fedsec.ring import _compiled
from fedsec.ring.kernels import matmul
product = matmul(np.ones((4, 2), np.uint32), np.ones((2, 1), np.uint32))
print(product.tolist(), _compiled._cache_folder(), repr(numba.config.CACHE_DIR))
"""


def test_compiled_code_is_kept_in_a_private_folder(tmp_path):
    printed = _python(CACHE_CODE, XDG_CACHE_HOME=str(tmp_path), NUMBA_CACHE_DIR="")

    folder = tmp_path / "fedsec" / "numba"
    assert printed == f"[[2], [2], [2], [2]] {folder} ''"  # numba's own setting is as it was
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.rglob("*.nbi"))


def test_without_a_writable_folder_the_kernels_still_work(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("a file where the cache folder should be")

    assert _python(CACHE_CODE, XDG_CACHE_HOME=str(blocked), NUMBA_CACHE_DIR="").startswith(
        "[[2], [2], [2], [2]] None"
    )


def test_a_folder_that_others_can_write_is_not_used(tmp_path):
    """The cache holds pickles: whoever writes them runs code in the party's process."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)

    assert _python(CACHE_CODE, NUMBA_CACHE_DIR=str(shared)).startswith("[[2], [2], [2], [2]] None")
    assert not list(shared.iterdir())
