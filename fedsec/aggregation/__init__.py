"""Secure aggregation: hospitals share one vector a round; only the sum over an agreed set is opened."""
