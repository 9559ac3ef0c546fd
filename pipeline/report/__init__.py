"""The report of a run: one self-contained HTML page and two CSV tables, made from stored results alone.

``results`` opens a run directory, ``tables`` makes tidy tables of it, ``words`` draws the conclusion, ``plots`` draws
the figures, ``snippets`` and ``explorer`` look up the text in which features fire, ``page`` fills the template, and
``run`` writes the files.
"""
