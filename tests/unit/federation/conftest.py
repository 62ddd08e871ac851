"""Import Flower once, with a warning of its command-line library left aside."""

import warnings

with warnings.catch_warnings():
    # typer reads a deprecated name of click; neither is ours, and Flower pins both.
    warnings.simplefilter("ignore", DeprecationWarning)
    import flwr  # noqa: F401 - imported for the side effect
