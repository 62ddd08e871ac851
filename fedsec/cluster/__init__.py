"""Certificates, key files, and a cluster of parties started, watched and stopped."""
