import sys
from pathlib import Path

import pytest

# Test modules are no package here, so what several folders share is found by path.
sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))

from aggregation_world import World


@pytest.fixture
def world(tmp_path):
    with World(tmp_path) as made:
        yield made
