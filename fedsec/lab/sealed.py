"""What a run keeps of a model that nobody has: where its state lies and how it is served, all of it public.

Before training, :func:`plan_run` plans the model from its initial parameters and the rounds' public
constants; the digest of that plan is announced. After training, :func:`finish_run` notes which state the
parties keep closed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fedsec.aggregation.announcement import SESSION_BYTES
from fedsec.aggregation.sealed.terms import SEALED_FRACTION_BITS
from fedsec.errors import StateError, UsageError
from fedsec.lab.plan import round_plan
from fedsec.lab.rundir import RunFolder
from fedsec.nn import Plan
from fedsec.nn.sealed import Source, serving_digest
from fedsec.scenario import Scenario
from fedsec.serving.sealed import SealedModel

if TYPE_CHECKING:
    import keras


class _Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file ``sealed.json``; without a session while the training has not ended."""

    words: int
    fraction_bits: int
    sources: tuple[Source, ...]
    session: str = ""
    number: int = 0


def plan_run(folder: RunFolder, scenario: Scenario, model: keras.Model) -> bytes:
    """Plan a model that nobody will have, before it is trained, and keep the plan in the run's folder.

    Args:
        folder: The run's folder.
        scenario: Its rounds and its clip bound every parameter.
        model: The network with its initial parameters.

    Returns:
        The digest under which parties will serve it, for the announcements.

    Raises:
        UnsupportedModelError: The model cannot be served so; the text names the layer and what to do.
    """
    # TensorFlow takes seconds to load; whoever has a model has it loaded.
    from fedsec.learning.export.sealed import Reach, plan_sealed  # noqa: PLC0415 - as said above

    clip, arrays = round_plan(scenario).clip, model.get_weights()
    if not isinstance(clip, float):
        raise UsageError("expected one clip for all arrays of a scenario's model")
    reach = Reach(
        clips=[clip] * len(arrays), rounds=scenario.training.rounds, fraction_bits=SEALED_FRACTION_BITS
    )
    serving = scenario.serving
    planned = plan_sealed(model, reach, serving.fraction_bits, largest_activation=serving.largest_activation)
    planned.plan.save(folder.plan)
    words = sum(array.size for array in arrays)
    _write(folder.sealed, _Sealed(words=words, fraction_bits=SEALED_FRACTION_BITS, sources=planned.sources))
    return serving_digest(planned.plan, planned.sources)


def digest_of_run(folder: RunFolder) -> bytes:
    """Return the digest that :func:`plan_run` has made for a run.

    Raises:
        UsageError: The run has no such plan.
    """
    return serving_digest(Plan.load(folder.plan), _read(folder.sealed).sources)


def finish_run(folder: RunFolder, session: bytes, number: int) -> None:
    """Note which state the three parties keep closed.

    Args:
        folder: The run's folder, planned by :func:`plan_run`.
        session: The training's session.
        number: The round whose state is the last.
    """
    _write(folder.sealed, msgspec.structs.replace(_read(folder.sealed), session=session.hex(), number=number))


def load_sealed(folder: RunFolder) -> SealedModel:
    """Return what a run knows of a model that nobody has.

    Raises:
        UsageError: Its training did not finish, or a file of the run is none of ours.
    """
    kept = _read(folder.sealed)
    if len(kept.session) != 2 * SESSION_BYTES:
        raise UsageError(f"the training of {folder.path} did not finish: there is no sealed model to serve")
    return SealedModel(
        plan=Plan.load(folder.plan),
        sources=kept.sources,
        session=bytes.fromhex(kept.session),
        number=kept.number,
        words=kept.words,
        fraction_bits=kept.fraction_bits,
    )


_DECODER = msgspec.json.Decoder(_Sealed)
"""Made at import, when there is one thread: see ``fedsec.transport.decoding``."""


def _read(path: Path) -> _Sealed:
    try:
        return _DECODER.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(f"cannot read {path}, which says where a sealed model lies: {error}") from error


def _write(path: Path, kept: _Sealed) -> None:
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=1))
    except OSError as error:
        raise StateError(f"cannot write {path}: {error.strerror}") from error
