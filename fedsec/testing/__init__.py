"""A pytest plugin that checks a protocol four ways: value, cost, view and teeth.

Load it in a test file or in the topmost ``conftest.py`` with ``pytest_plugins = ["fedsec.testing"]``, then
decorate one example a protocol with ``check_protocol``. A failed check prints the seed that repeats it.

PYTEST_DONT_REWRITE: nothing here is an ``assert``, and a test file imports this package before pytest loads
it.
"""

from fedsec.testing.checks import ViewReport, check_view, leaks, view_report
from fedsec.testing.example import CheckError, Example
from fedsec.testing.inputs import Additive, Bits, Secret
from fedsec.testing.mutants import Mutant
from fedsec.testing.plugin import check_protocol, protocol_seed

__all__ = [
    "Additive",
    "Bits",
    "CheckError",
    "Example",
    "Mutant",
    "Secret",
    "ViewReport",
    "check_protocol",
    "check_view",
    "leaks",
    "protocol_seed",
    "view_report",
]
