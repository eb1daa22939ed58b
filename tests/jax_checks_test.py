"""Inner loops under each of JAX's own checks; jax_modes_test is of learners."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax import inner_loop

pytestmark = pytest.mark.usefixtures("quick_collections")

CHECKS = {
  "tracer_leaks": jax.checking_leaks,
  "key_reuse": lambda: jax.debug_key_reuse(True),
  "x64": lambda: jax.enable_x64(True),
  "strict_promotion": lambda: jax.numpy_dtype_promotion("strict"),
}
OPTIMIZERS = {
  "sgd": lambda: optax.sgd(0.1),
  "adam": lambda: optax.adam(0.1, eps_root=1e-8),
  "noisy_sgd": lambda: optax.noisy_sgd(0.1, key=jax.random.key(3)),
}
MORE = [
  # optax itself takes a float to the power of an int32.
  *[("auto", "adam", c) for c in CHECKS if c != "strict_promotion"],
  ("auto", "sgd", "tracer_leaks"),
  ("auto", "noisy_sgd", "key_reuse"),
  ("auto", "noisy_sgd", "tracer_leaks"),
  ("nested", "sgd", "tracer_leaks"),
  ("nested", "sgd", "strict_promotion"),
]


def _adapted(memory, optimizer):
  """Two tasks, a captured weight, noise from the key of each step."""
  keys = jax.random.split(jax.random.key(0), 2)

  def outer(params, weight):
    def one(key):
      def loss_fn(params, k):
        noise = jax.random.normal(jax.random.fold_in(key, k), (3,))
        return jnp.sum(jnp.tanh(weight * params + noise) ** 2)

      loop = inner_loop.minimize(loss_fn, params, optimizer, 3, memory=memory)
      return loop.params.sum() + loop.losses.sum()

    return jax.vmap(one)(keys).sum()

  return jax.jit(jax.grad(outer, (0, 1)))(jnp.ones(3), jnp.arange(1.0, 4.0))


@pytest.mark.parametrize(
  "memory, optimizer, check",
  [
    *[("auto", "sgd", check) for check in CHECKS if check != "tracer_leaks"],
    *[pytest.param(*case, marks=pytest.mark.slow) for case in MORE],
  ],
)
def test_inner_loop_passes(memory, optimizer, check):
  expected = _adapted(memory, OPTIMIZERS[optimizer]())
  with CHECKS[check]():
    found = _adapted(memory, OPTIMIZERS[optimizer]())
  for a, b in zip(found, expected, strict=True):
    assert np.abs(b).max() > 0.1
    if check != "x64":  # Which draws other noise.
      np.testing.assert_array_equal(a, b)
