"""``crashing_aggregator`` with deadlines that a loaded machine keeps, for rounds that may not end early.

Started by a cluster as ``python patient_aggregator.py --config ... --listen-fd ...``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import crashing_aggregator

from fedsec.cli.main import main

if __name__ == "__main__":
    crashing_aggregator.AGREEMENT_S, crashing_aggregator.COLLECT_S = 120.0, 120.0
    config = Path(sys.argv[sys.argv.index("--config") + 1])
    crashing_aggregator.prepare(crashing_aggregator.Crash(config.parent / "crash"))
    sys.exit(main(["party", *sys.argv[1:]]))
