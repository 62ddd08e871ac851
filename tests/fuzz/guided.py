"""Coverage-guided fuzzing of a group of readers: Atheris (libFuzzer) steers what Hypothesis draws.

::

    python tests/fuzz/guided.py rounds found/ -max_total_time=600

Inputs that reach new code are kept in the folder, and a later run goes on from them; options are libFuzzer's.
The slow test beside this file runs every group for a short time.
"""

import os
import sys
from pathlib import Path

import atheris
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

# Not fedsec.ring, mpc and sharing, which numba compiles: it cannot read instrumented code.
READERS = [f"fedsec.{one}" for one in ("aggregation", "cluster", "nn", "scenario", "serving", "transport")]

with atheris.instrument_imports(include=READERS):
    from fuzz_targets import GROUPS
    from fuzzing import Target, read, spoilt

MOST_INPUT = 8192
FIRST_INPUTS = 100
"""Random bytes to begin with: Hypothesis draws nothing from input that is too short for it."""


def main() -> None:
    """Fuzz the group that the first argument names; ends with 0 after ``-max_total_time`` seconds."""
    group, corpus, *options = sys.argv[1:]
    folder = Path(corpus)
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        for number in range(FIRST_INPUTS):
            (folder / f"first-{number}").write_bytes(os.urandom(MOST_INPUT))
    targets = GROUPS[group]()

    @settings(deadline=None, database=None)
    @given(st.sampled_from(targets).flatmap(lambda target: st.tuples(st.just(target), spoilt(target))))
    def one(drawn: tuple[Target, bytes]) -> None:
        read(*drawn)

    settled = ["-len_control=0", f"-max_len={MOST_INPUT}", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *settled, *options, str(folder)], one.hypothesis.fuzz_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
