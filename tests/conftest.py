"""How many processes run the tests, and what those that tests start may keep."""

import os
import sys

import pytest

# Hundreds of processes are started: to compile fedsec anew takes each of them as long as all the rest of its
# start. CI's setting is for its own processes.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Run the tests of one file in this process: starting workers takes longer than most files do."""
    files = {config.invocation_params.dir / argument.partition("::")[0] for argument in config.args}
    if len(files) == 1 and files.pop().is_file():
        return 0
    return None
