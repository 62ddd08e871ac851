"""A hospital as a process of its own: the aggregation's client and numpy, nothing else.

::

    python hospital_process.py TRUST_FILE

It says ``{"did": "start"}``. Then standard input brings one step a line, as JSON, and every step is answered
by a line of JSON:

==========================================================================  ===============================
``{"do": "accept", "round": FOLDER}``                                       ``{"did": "accept"}``
``{"do": "submit", "update": NPY, "examples": N, "loss": L, "sleep": S}``   ``{"did": "submit", "id": HEX}``
``{"do": "submit", ..., "stop": PLACE}``                                    ``{"did": "stop"}``, then silence
``{"do": "receipt"}``                                                       ``{"did": "receipt", "of": N}``
==========================================================================  ===============================

PLACE is a number of parts that go out first, or ``"half"``: inside the first long body. An error of fedsec
ends the process with the error's exit code and its text on standard error; with ``"go_on": true`` it is the
answer instead: ``{"error": CODE, "text": TEXT}``.
"""

from __future__ import annotations

import json
import struct
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np

from fedsec.aggregation.client import HospitalClient
from fedsec.aggregation.links import TlsLinks
from fedsec.aggregation.messages import Upload
from fedsec.aggregation.trust import TrustFile
from fedsec.errors import FedsecError
from fedsec.transport import Identity, connect

FRAME = 256 * 1024


def say(**words: Any) -> None:
    print(json.dumps(words), flush=True)


def stop_here() -> NoReturn:
    say(did="stop")
    time.sleep(60)
    raise SystemExit("nobody has killed this process")


class StoppingLinks:
    """The client's own connections, which stop for good at a given place of an upload."""

    def __init__(self, trust: TrustFile) -> None:
        self._identity = Identity.load(trust.identity)
        self._endpoints = {endpoint.name: endpoint for endpoint in trust.aggregators}
        self._links = TlsLinks(trust.aggregators, self._identity)
        self.place: int | str | None = None
        self._sent = 0

    def call(self, aggregator: str, message: Any, reply: Any, *, body: Any = b"", **rest: Any) -> Any:
        if isinstance(message, Upload) and self.place is not None:
            if self.place == self._sent:
                stop_here()
            if self.place == "half" and len(body) > FRAME:
                self._send_half(aggregator, message, body, rest["deadline"])
            self._sent += 1
        return self._links.call(aggregator, message, reply, body=body, **rest)

    def call_each(self, message: Any, bodies: Any, reply: Any, *, deadline: Any) -> Any:
        if self.place is None:
            return self._links.call_each(message, bodies, reply, deadline=deadline)
        # One after the other, so that the place of the stop is certain.
        return {
            name: self.call(name, message, reply, body=body, deadline=deadline)[0]
            for name, body in bodies.items()
        }

    def close(self) -> None:
        self._links.close()

    def _send_half(self, aggregator: str, message: Upload, body: bytes, deadline: Any) -> NoReturn:
        channel = connect(self._endpoints[aggregator], self._identity, deadline=deadline)
        request = struct.pack(">Q", len(body)) + msgspec.msgpack.encode(message)
        channel.send("upload/request", request, deadline)
        channel.receive("upload/go", max_bytes=0, deadline=deadline)
        for start in range(0, len(body) // 2, FRAME):
            channel.send("upload/body", body[start : start + FRAME], deadline)
        stop_here()


class Steps:
    """The steps by name; each returns what is to be said."""

    def __init__(self, client: HospitalClient, links: StoppingLinks) -> None:
        self._client, self._links = client, links
        self._announcement: Any = None

    def accept(self, step: dict[str, Any]) -> dict[str, Any]:
        folder = Path(step["round"])
        model = np.load(folder / "model.npy", allow_pickle=False)
        config = json.loads((folder / "config.json").read_text())
        payload, signature = (folder / "announcement").read_bytes(), (folder / "signature").read_bytes()
        self._announcement = self._client.accept(payload, signature, [model], config)
        return {}

    def submit(self, step: dict[str, Any]) -> dict[str, Any]:
        time.sleep(step.get("sleep", 0))
        self._links.place = step.get("stop")
        update = np.load(step["update"], allow_pickle=False)
        metrics = {"loss": step["loss"]}
        return {"id": self._client.submit(self._announcement, [update], step["examples"], metrics).hex()}

    def receipt(self, _step: dict[str, Any]) -> dict[str, Any]:
        return {"of": self._client.receipt(self._announcement).included}


def main(trust: Path) -> int:
    step: dict[str, Any] = {}
    try:
        file = TrustFile.load(trust)
        links = StoppingLinks(file)
        with HospitalClient(file, identity=Identity.load(file.identity), links=links) as client:
            steps = Steps(client, links)
            say(did="start")
            for line in sys.stdin:
                step = json.loads(line)
                try:
                    say(did=step["do"], **getattr(steps, step["do"])(step))
                except FedsecError as error:
                    if not step.get("go_on"):
                        raise
                    say(error=error.code, text=str(error))
    except FedsecError as error:
        print(f"hospital: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
