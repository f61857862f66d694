"""Plain-torch references of vendors' own operators, one package per vendor: the only copy.

They import torch alone, run on any device torch has, and compute in float64 for float64 inputs.
"""
