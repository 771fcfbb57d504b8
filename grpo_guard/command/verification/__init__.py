"""Computes the numbers of an iteration again, in float64 and without the code that trains.

Nothing here imports the package's maths. The equations are written anew with numpy, so that a
mistake in one of the two is seen.
"""
