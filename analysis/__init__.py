"""What the trials say: one file an analysis, ``compute(trials) -> table`` and ``draw(table) -> Figure``.

``compute`` is a pure function of the tidy table. ``draw`` sees the table alone and is called once
for each value of the column ``PICTURE_PER``, if the module has one. The docstring's first line is
the question that the analysis answers; the rest says how, and what it cannot say.
"""
