"""How many processes run the tests."""

import pytest


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Run the tests of one file in this process: starting workers takes longer than most files do."""
    files = {config.invocation_params.dir / argument.partition("::")[0] for argument in config.args}
    if len(files) == 1 and files.pop().is_file():
        return 0
    return None
