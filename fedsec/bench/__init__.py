"""Measuring: what private predictions and secure aggregation cost on this machine, beside Keras and Flower.

======================  ======================================================================
``predict``             private predictions as a whole: which figures, in which order
``service``             parties, a served model, and where they are asked
``asker``               a process beside them: the client
``clear``               a process beside them: Keras on the same model
``links``               one communication round
``engine``              the parties' computation alone
``end``                 a process: one end of a link, or one party's engine
``compute``             what such a party does
``counting``            rounds and bytes, counted at the channels of a simulation
``wan``                 a party behind a relay that holds every byte back
``aggregate``           rounds of secure aggregation as a whole
``aggregate_ways``      the three ways through a round: Flower, Flower over TLS, secure
``aggregate_averager``  a process: it gets every reply in the clear and averages
``aggregate_planned``   what the planner states before a round
``aggregate_report``    the table of the aggregation, and the line through its growth
``dp``                  DP-SGD beside Keras' own ``fit``
``dp_worker``           such a training, as a process
``workers``             processes that do one thing when they are told
``timing``              medians and percentiles
``report``              the table of predictions; rows with what is asked of each figure
``machine``             where it was measured
======================  ======================================================================

Times are measured here and asserted nowhere.
"""
