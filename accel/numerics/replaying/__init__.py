"""Each recorded operator again in float64, and how far the recorded result is from it."""
