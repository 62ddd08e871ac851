"""Where parties listen: free ports here, and hosts elsewhere that have to answer."""

from __future__ import annotations

import errno
import socket
import time

from fedsec.errors import PeerLostError, UsageError
from fedsec.transport import Deadline, Endpoint

_LOOK_S = 0.1


def wait_for_port(endpoint: Endpoint, deadline: Deadline) -> None:
    """Wait until somebody accepts TCP connections at a party's address.

    Raises:
        PeerLostError: Nobody did in time; the text names the party.
    """
    reason = "no answer"
    while not deadline.passed:
        try:
            socket.create_connection(
                (endpoint.host, endpoint.port), timeout=deadline.remaining(endpoint.name)
            ).close()
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(_LOOK_S)
        else:
            return
    raise PeerLostError(
        f"expected {endpoint.name} to accept connections at {endpoint.address} in {deadline.seconds:g} s: "
        f"{reason}; start it there with `fedsec party`"
    )


def listen(name: str, host: str, port: int) -> socket.socket:
    """Return a listening socket for a party.

    Raises:
        UsageError: The port is taken, or cannot be listened at.
    """
    try:
        return socket.create_server((host, port), backlog=1024)
    except OSError as error:
        hint = "another process listens there" if error.errno == errno.EADDRINUSE else error.strerror
        raise UsageError(
            f"expected port {port} of {host} to be free for {name}: {hint}; take another"
        ) from error
