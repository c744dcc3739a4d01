"""Data sets of event cameras, and their shared code."""
