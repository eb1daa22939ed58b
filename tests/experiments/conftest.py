"""Processes of the same script compile it once."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory, request):
  """For the processes alone: this one has read its configuration before."""
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    yield
    return
  folder = tmp_path_factory.getbasetemp()
  if hasattr(request.config, "workerinput"):
    folder = folder.parent  # That of all workers.
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    yield
