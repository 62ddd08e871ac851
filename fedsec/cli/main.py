"""The ``fedsec`` command: find the sub-command, run it, turn what happens into an exit code.

Exit codes: 0 done; 2 to 9 an error of ours, as drawn in ``fedsec.errors``; 130 interrupted with Ctrl-C;
143 terminated. An error is one line on standard error, never a traceback.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from fedsec import __version__
from fedsec.cli.stopping import Stopped, stop_on_signals
from fedsec.errors import FedsecError

COMMANDS = {
    "demo": "train over ten hospitals, average in shares, predict in shares: the whole path on MNIST",
    "run": "run a scenario from a folder or TOML file",
    "compare": "run a scenario plain and secured from one seed, and show what security costs and changes",
    "serve": "serve a run's model, or a Keras model, in shares",
    "predict": "ask for private predictions",
    "status": "show how a service is, and who has asked it for how much",
    "bench": "measure predictions, rounds and private training beside Keras and Flower",
    "audit": "attack a finished run's model, and show for whom it works less well",
    "verify-receipt": "check offline that an upload was counted once, in which round, over which model",
    "party": "run one party, as on a host of its own",
    "keys": "make authorities, identities, cluster files and trust files",
}
INTERRUPTED = 128 + signal.SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: Arguments without the program's name; those of the process by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except FedsecError as error:
        print(f"fedsec: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except (Stopped, KeyboardInterrupt) as stop:
        print("fedsec: stopped by a signal; whatever it had started is stopped too", file=sys.stderr)
        return stop.exit_code if isinstance(stop, Stopped) else INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone; Python must not try to flush it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _dispatch(arguments: Sequence[str]) -> int:
    parser = _parser(arguments)
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        code = 0
    else:
        with stop_on_signals():
            code = int(options.run(options))
    sys.stdout.flush()
    return code


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Build the parser; only the module of the command that is asked for is loaded."""
    parser = argparse.ArgumentParser(
        prog="fedsec", description="Federated learning with secure aggregation, and private prediction."
    )
    parser.add_argument("--version", action="version", version=f"fedsec {__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name in arguments[:1]:
            module = importlib.import_module(f"fedsec.cli.{name.replace('-', '_')}")
            module.configure(command)
            command.set_defaults(command=name, run=module.run)
    return parser
