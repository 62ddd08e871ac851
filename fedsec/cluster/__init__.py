"""Certificates, key files, and a cluster of parties started, watched and stopped.

Parties are started by their command line: nothing here imports what it starts.
"""
