"""Noise nobody holds: each aggregator adds integer noise to its share of a sum before anything is opened.

What is opened is then private for a whole hospital, also against the server together with the coalition of
aggregators that a round is planned for: what they know of the noise is their own part.

==============  ======================================================================
``terms``       what an announcement says about the noise, and when that is consistent
``planning``    chooses words and variance from what a server asks for
``clipping``    a hospital's update within the L2 norm that the noise is made for
``adding``      an aggregator's part of the noise, on its share of the sum
``account``     a hospital's own account: what it pins, what it has spent
==============  ======================================================================
"""
