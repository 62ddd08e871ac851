"""Dealt mode: party 0 deals one-time material ahead, parties 1 and 2 compute with it.

In a replicated sharing x = x_0 + x_1 + x_2 the component x_2 is known to parties 1 and 2, the *evaluators*,
and x_0 + x_1 to party 0, the *dealer*. So x_2 is a masked value m with the mask r = x_0 + x_1. If the masks
are streams that were fixed before the values existed, the dealer can work out everything about masks ahead,
and online the evaluators exchange masked values only. The dealer receives nothing.

How a gate is added: a file of its own with a subclass of :class:`~fedsec.mpc.dealt.gates.Gate`. Its
constructor fixes ``fields``: the arrays that the dealer shares between the evaluators and the masks of what
the evaluators open, both for one image (the base class adds mask and round of the result unless it is
``final``). ``deal`` is the dealer's side: given the inputs' masks it overwrites evaluator 1's uniform shares
by secret minus share, in place, and returns the result's mask. ``prepare`` is the evaluators' work before
inputs exist. ``run`` is a generator: ``theirs = yield mine`` is one round, in which both evaluators send
arrays of one shape, each masked by its part of a fresh mask; it returns the masked result. Signs with
payloads come from :class:`~fedsec.mpc.dealt.signs.Signs`. A gate of gates hands each of its own the next
fields. Then a function with ``@protocol`` runs the gate alone (``protocols.run_alone``), for the four checks,
and ``fedsec.nn.dealt`` makes it of a plan's step.
"""

from fedsec.mpc.dealt.gates import DEALER, FIRST, SECOND, Fields, Gate, Masks, Material, Rounds
from fedsec.mpc.dealt.linear import InputGate, LinearGate, Product
from fedsec.mpc.dealt.relu import ReluGate
from fedsec.mpc.dealt.rounds import run_together
from fedsec.mpc.dealt.signs import Payload, Signs
from fedsec.mpc.dealt.supply import Part, Supply
from fedsec.mpc.dealt.truncation import TruncateGate

__all__ = [
    "DEALER",
    "FIRST",
    "SECOND",
    "Fields",
    "Gate",
    "InputGate",
    "LinearGate",
    "Masks",
    "Material",
    "Part",
    "Payload",
    "Product",
    "ReluGate",
    "Rounds",
    "Signs",
    "Supply",
    "TruncateGate",
    "run_together",
]
