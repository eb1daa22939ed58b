"""Settings of all tests."""

import gc

# What JAX keeps of its programs is much, and looking through all of it for
# garbage took a sixth of the time.
gc.set_threshold(20_000, 10, 10)
