"""Keep a service going: whenever a party is lost, bring it back or wait for it, share anew, serve on.

The parties hold shares of the model in memory only, so none of them can go on alone: the owner's process
does this. Nothing of an interrupted session is used again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fedsec.cluster.cluster import Cluster
from fedsec.errors import PeerLostError, ServiceEndedError
from fedsec.lab.share import SharedModel

Say = Callable[[str], None]

FIRST_REST_S = 0.5
LONGEST_REST_S = 30.0
"""Between two attempts; a party of another host may take hours to come back."""
MOST_STARTS = 5
"""Attempts with parties of this machine before giving up: then there is something to repair."""


def keep(shared: SharedModel, say: Say, cluster: Cluster | None = None) -> int:
    """Wait for a service's end, and resume it whenever a party is lost before.

    Args:
        shared: A model that is being served.
        say: Hears what happens.
        cluster: Where lost parties are started again; parties elsewhere are waited for.

    Returns:
        How many images were answered in all.

    Raises:
        FedsecError: What cannot be repaired by sharing anew: a party that breaks the protocol, a disk that is
            full, or parties of this machine that end again and again.
    """
    while True:
        why = _interruption(shared)
        if isinstance(why, int):
            return why
        say(f"{_clock()} the service was interrupted: {why}")
        answered = _resume(shared, say, cluster)
        if answered is None:
            return shared.offer.num_requests or 0
        say(f"{_clock()} the service goes on, with {answered} image(s) answered before")


def _interruption(shared: SharedModel) -> int | str:
    """Wait; return the number of images if the service has ended, or why it was interrupted."""
    try:
        last = shared.last_status()
    except PeerLostError as lost:
        return str(lost)
    # A party that was told to end, for example for an update, takes the service along.
    meant = last.state == "ended" or last.by_owner
    return last.answered if meant else last.text


def _resume(shared: SharedModel, say: Say, cluster: Cluster | None) -> int | None:
    """Try until the service goes on; as ``SharedModel.resume``."""
    rest, attempts, said = FIRST_REST_S, 0, ""
    while True:
        try:
            _revive(cluster, say)
            return shared.resume()
        except (PeerLostError, ServiceEndedError) as error:
            attempts += 1
            if cluster is not None and attempts == MOST_STARTS:
                raise
            text = str(error)
        if text != said:
            say(f"{_clock()} waiting: {text}")
            said = text
        time.sleep(rest)
        rest = min(2 * rest, LONGEST_REST_S)


def _revive(cluster: Cluster | None, say: Say) -> None:
    """Start lost parties of this machine again."""
    names = [] if cluster is None else cluster.revive()
    if names:
        say(f"{_clock()} started again: {', '.join(names)}")


def _clock() -> str:
    return time.strftime("%H:%M:%S")
