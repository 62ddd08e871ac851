"""Private prediction: the owner shares a plan's weights, three parties compute, users ask.

Modules: :mod:`owner` and :mod:`client` are the two ends outside; :mod:`prediction` is a party's
routes, :mod:`loop` what its compute thread does, :mod:`agreement` and :mod:`ledger` the rules of
who is answered; :mod:`messages` and :mod:`parts` the bytes between them.
"""
