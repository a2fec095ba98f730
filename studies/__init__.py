"""Study files that ship with robustlr."""
