"""Timings beside peers, as ratios within one run; `nox -s bench`."""
