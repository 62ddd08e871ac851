"""Measuring: what a private prediction costs on this machine, beside Keras in the clear.

===========  ======================================================================
``predict``  the measurement as a whole: which figures, in which order
``service``  parties, a served model, and where they are asked
``workers``  processes beside the parties that do one thing when they are told
``asker``    such a process: the client
``clear``    such a process: Keras on the same model
``links``    one communication round
``engine``   the parties' computation alone
``end``      such a process: one end of a link, or one party's engine
``compute``  what such a party does
``counting`` rounds and bytes, counted at the channels of a simulation
``wan``      a party behind a relay that holds every byte back
``timing``   medians and percentiles
``report``   the table, with what is asked of each figure
===========  ======================================================================

Times are measured here and asserted nowhere.
"""
