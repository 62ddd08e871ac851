"""The party process: aggregation and prediction behind one port, started by ``fedsec party``."""
