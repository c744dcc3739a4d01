"""Data sets of event cameras, and what they share."""
