"""Hypergradients of many problems: in chunks, and spread over devices."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from metajax import bilevel

FEATURES, STEPS, DEVICES = 3, 60, 4


def _gradients():
  """Prints the largest differences from one problem after the other."""
  draw = np.random.default_rng(0).normal
  x, y = draw(size=(8, FEATURES)), draw(size=8)

  def inner_loss(params, outer, step):
    del step
    error = x @ params - y
    return error @ error / 16 + jnp.exp(outer) @ params**2 / 2

  def outer_loss(params, outer):
    del outer
    return jnp.square(params - 1).sum()

  many = draw(size=(2 * DEVICES, FEATURES))
  mesh = Mesh(np.array(jax.devices()), "problems")
  assert mesh.size == DEVICES
  spread = jax.device_put(many, NamedSharding(mesh, P("problems")))
  sgd = optax.sgd(0.3)
  for solver in (
    bilevel.unrolled(inner_loss, sgd, STEPS),
    bilevel.implicit(inner_loss, sgd, STEPS),
    bilevel.implicit(inner_loss, sgd, STEPS, bilevel.direct()),
  ):
    gradient = bilevel.hypergradient(solver, outer_loss)

    def one(outer, solver=solver, gradient=gradient):
      return gradient(solver.init(np.zeros(FEATURES), outer), outer).grads

    alone = np.stack([jax.jit(one)(outer) for outer in many])
    chunked = jax.jit(lambda x, f=one: jax.lax.map(f, x, batch_size=2))(many)
    sharded = jax.jit(jax.vmap(one))(spread)
    assert len(sharded.sharding.device_set) == DEVICES
    for found in (chunked, sharded):
      print(np.abs(found - alone).max() / np.abs(alone).max())


@pytest.mark.slow
def test_chunks_and_devices_change_nothing():
  done = subprocess.run(
    [sys.executable, __file__],
    env={
      **os.environ,
      "JAX_ENABLE_X64": "1",
      "JAX_PLATFORMS": "cpu",
      # Direct solvers factorise matrices, which needs spare threads.
      "NPROC": str(2 * DEVICES),
      "PYTHONPATH": os.pathsep.join(sys.path),
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}",
    },
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  errors = [float(line) for line in done.stdout.split()]
  assert len(errors) == 6 and max(errors) < 1e-9


if __name__ == "__main__":
  _gradients()
