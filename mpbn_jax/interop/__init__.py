"""Exchanging networks with other programs."""
