"""Settings of all tests."""

import gc

import pytest

# What JAX keeps of its programs is much, and looking through all of it for
# garbage took a sixth of the time.
gc.set_threshold(20_000, 10, 10)


@pytest.fixture(scope="module")
def quick_collections():
  """For what other tests have left not to be looked through each time.

  For tests that collect often, such as those of JAX's checks for leaks.
  """
  gc.collect()
  gc.freeze()
  yield
  gc.unfreeze()
