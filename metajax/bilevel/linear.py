"""Solvers of symmetric linear systems that are known by their products."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import cg

from metajax.inner_loop import check_steps
from metajax.numerics import check_counts, check_number
from metajax.types import Array, Params

Product = Callable[[Params], Params]
# `(product, b) -> x` with `product(x) = b`, for trees x and b.
LinearSolver = Callable[[Product, Params], Params]


def conjugate_gradients(
  num_steps: int = 100, *, tolerance: float = 1e-6
) -> LinearSolver:
  """Builds the method of conjugate gradients, for positive definite systems.

  Args:
    num_steps: largest number of steps. Each costs one Hessian-vector product.
    tolerance: it stops earlier at this residual, relative to `|b|`.

  Raises:
    ValueError: for a negative number of steps or tolerance.

  References:
    Pedregosa, `Hyperparameter optimization with approximate gradient
    <https://arxiv.org/abs/1602.02355>`_, 2016, algorithm 1.
  """
  check_steps(num_steps=num_steps)
  check_number("tolerance", tolerance, at_least=0)
  return _checked(lambda a, b: cg(a, b, tol=tolerance, maxiter=num_steps)[0])


def neumann(num_terms: int, step_size: float) -> LinearSolver:
  """Builds the truncated Neumann series.

  ::

    x = a sum_{i < num_terms} (I - a H)^i b,    a = step_size

  The series converges if `0 < a < 2 / (largest eigenvalue of H)`. It is the
  derivative through `num_terms` steps of SGD at the solution.

  Args:
    num_terms: number of terms. Each costs one Hessian-vector product.
    step_size: a, positive.

  Raises:
    ValueError: for a negative number of terms, or a step size that is not
      positive.

  References:
    Lorraine et al., `Optimizing Millions of Hyperparameters by Implicit
    Differentiation <https://arxiv.org/abs/1911.02590>`_, 2020, algorithm 3.
  """
  check_steps(num_terms=num_terms)
  check_number("step_size", step_size, above=0)

  def solve(product: Product, b: Params) -> Params:
    def add(_: Array, carry: tuple[Params, Params]) -> tuple[Params, Params]:
      term, total = carry
      total = jax.tree.map(jnp.add, total, term)
      return (
        jax.tree.map(lambda v, hv: v - step_size * hv, term, product(term)),
        total,
      )

    first = b, jax.tree.map(jnp.zeros_like, b)
    _, total = jax.lax.fori_loop(0, num_terms, add, first)
    return jax.tree.map(lambda x: step_size * x, total)

  return _checked(solve)


def direct(*, max_size: int = 4096) -> LinearSolver:
  """Builds the solution by the eigenvalues of the whole matrix.

  Eigenvalues of zero, up to rounding, are left out. The result is then the
  least-squares solution of least norm.

  Args:
    max_size: largest number of unknowns n. The matrix has n^2 numbers.

  Raises:
    ValueError: if `max_size` is not positive; in use, if there are more
      unknowns.
  """
  check_counts(max_size=max_size)

  def solve(product: Product, b: Params) -> Params:
    flat, unravel = ravel_pytree(b)
    if flat.size > max_size:
      raise ValueError(
        f"max_size={max_size}: the matrix has {flat.size} unknowns; take "
        "conjugate_gradients, or raise it."
      )

    def row(x: Array) -> Array:
      return ravel_pytree(product(unravel(x)))[0]

    matrix = jax.vmap(row)(jnp.eye(flat.size, dtype=flat.dtype))
    values, vectors = jnp.linalg.eigh(matrix, symmetrize_input=True)
    sizes = jnp.abs(values)
    least = flat.size * jnp.finfo(flat.dtype).eps * sizes.max()
    known = sizes > least
    inverse = jnp.where(known, 1 / jnp.where(known, values, 1), 0)
    return unravel(vectors @ (inverse * (vectors.T @ flat)))

  return _checked(solve)


def _checked(solve: LinearSolver) -> LinearSolver:
  """Makes a solver differentiable, and its result finite.

  A result that is not finite becomes 0, whose relative residual is 1.
  """

  def finite(product: Product, b: Params) -> Params:
    x = solve(product, b)
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(x)]
    good = jnp.stack(leaves).all()
    return jax.tree.map(lambda v: jnp.where(good, v, 0), x)

  return lambda product, b: jax.lax.custom_linear_solve(
    product, b, finite, symmetric=True
  )
