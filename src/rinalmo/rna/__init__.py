"""RNA on paper: sequence and structure files, base pairs, decoding. Imports neither torch nor anything above it.

Structures are in `rinalmo.rna.structure`, `formats` and `folding`, which import numpy; this page does not.
"""
