"""Data sets that tasks share."""
