"""``python -m fedsec`` is the ``fedsec`` command."""

import sys

from fedsec.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
