"""Where each of a sketch's 72 numbers is, and the constants of its hash.

The C code (`sketch.c`) and the reference (`reference.py`) follow the same constants.
"""

BUCKETS = 64
LEAST, LARGEST, SQUARES, NANS, POSITIVE, NEGATIVE, PLACES, COUNT = range(BUCKETS, BUCKETS + 8)
NUMBERS = BUCKETS + 8
BYTES = 8 * NUMBERS

# The splitmix64 generator (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators,
# OOPSLA 2014): `mix(i * GAMMA + start)` is its i-th number, with one start for each use.
GAMMA = 0x9E3779B97F4A7C15
MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
SIGNS, ROTATIONS = 0x243F6A8885A308D3, 0x13198A2E03707344
NAN_PLACES, POSITIVE_PLACES, NEGATIVE_PLACES = (
    0xA4093822299F31D0,
    0x082EFA98EC4E6C89,
    0x452821E638D01377,
)
PLACE_BITS = 53  # a place's hash has as many bits as a float64 holds exactly
