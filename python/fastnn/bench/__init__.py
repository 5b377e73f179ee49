"""Named benchmark cases, checked against the reference and then timed.

`cases` says what is computed and how much work it is, `timing` how it is checked, timed and judged, `own` how fastnn computes
it, `report` how the figures are shown. `fastnn bench` runs fastnn alone; bench/run.py of the source tree adds other libraries,
each in a process of its own, and the machine's ceilings.
"""
