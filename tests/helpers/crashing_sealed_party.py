"""A party process that kills itself with SIGKILL at a numbered step of a sealed round, once told to.

As ``crashing_party``: the file ``crash`` beside its configuration holds the number of the step. The steps, in
the order in which a sealed round passes them:

1. the sum is agreed  2. its parts are sent  3. all parts are here  4. the new state is computed  5. stored
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from crashing_party import Crash

from fedsec.aggregation.sealed import making
from fedsec.cli.main import main

STEPS = range(1, 6)


def prepare(crash: Crash) -> None:
    """Put the steps into the code."""
    crash.around(making.StateMaker, "_send", before=1, after=2)
    crash.around(making.StateMaker, "_all", after=3)
    crash.around(making.StateMaker, "_store", before=4, after=5)


if __name__ == "__main__":
    config = Path(sys.argv[sys.argv.index("--config") + 1])
    prepare(Crash(config.parent / "crash"))
    sys.exit(main(["party", *sys.argv[1:]]))
