"""What is trained: one file a family of tasks; shared networks and data sets in sub-folders."""
