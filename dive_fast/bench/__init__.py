"""How fast an engine is, against whom, and what that means for a million pairs: `dive-fast bench` and `capacity`.

Loads nothing heavy. `capacity` and `simulate` predict; everything else measures.
"""
