"""What the trials say: one file an analysis.

``compute(trials) -> table`` is a pure function of the tidy table. ``verdict(table) -> str`` says in one
to three plain sentences what the table shows, no more than its intervals hold, and what is missing
where it is empty. ``draw(table) -> Figure`` sees the table alone and is called once for each value of
the column ``PICTURE_PER``, if the module has one. The docstring's first line is the question that
the analysis answers; the rest says how, from which source, and what it cannot say.
"""
