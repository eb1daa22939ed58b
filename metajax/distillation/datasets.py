"""Objectives of data distillation, which train a small synthetic data set.

An objective is a function `(synthetic, real, rng) -> scalar`. It is minimised
with respect to the synthetic set. `learners.distill_data` builds a meta-learner
from it, which is trained and evaluated like any other. Real batches hold the
same number of examples of every class, in the order of
`tasks.class_batches`: example i is of class `i % classes`. `unrolled` and
`kernel_inducing` take any order and masks, too.
"""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from metajax import inner_loop
from metajax.distillation.kernels import Kernel, kernel_ridge
from metajax.distillation.synthetic import (
  Objective,
  SyntheticSet,
  fit_synthetic,
)
from metajax.forward import stateless
from metajax.losses import (
  check_labels,
  cross_entropy,
  masked_mean,
  over_examples,
)
from metajax.numerics import check_number, wide
from metajax.types import Array, Batch, Model, Params, PRNGKey


def unrolled(
  model: Model, num_steps: int, *, memory: inner_loop.Memory = "nested"
) -> Objective:
  """Builds the objective of dataset distillation: a loss through training.

  It is the real loss of a network that was trained on the synthetic set S::

    CE(model(theta_K(S), real inputs), real labels)
    theta_0 random,  theta_K = K steps of SGD on S

  The gradient passes through all K steps.

  Args:
    model: predicts logits.
    num_steps: K.
    memory: see `inner_loop.minimize`.

  Raises:
    ValueError: for a negative number of steps. In use, if the model has running
      statistics.

  References:
    Wang et al., `Dataset Distillation <https://arxiv.org/abs/1811.10959>`_,
    2018, section 3.
  """
  inner_loop.check_steps(num_steps=num_steps)
  model = stateless(model, "unrolled")

  def objective(synthetic: SyntheticSet, real: Batch, rng: PRNGKey) -> Array:
    start = model.init(rng, real.inputs)
    params = fit_synthetic(model, start, synthetic, num_steps, memory=memory)
    logits = model.apply(params, real.inputs, mask=real.mask)
    return over_examples(cross_entropy, logits, real.targets, real.mask)

  return objective


def gradient_matching(model: Model, max_steps: int) -> Objective:
  """Builds the objective of dataset condensation (DC): gradient matching.

  ::

    sum_c D(grad CE(theta_k; S_c), grad CE(theta_k; real_c))
    D = sum over layers and output units of  1 - cos

  where theta_k is a random network after k steps of training on S. k is drawn
  uniformly from 0 to `max_steps`. (The paper uses all k in order.) Arrays with
  one axis (biases, normalisation) are left out, as in the authors' code.

  Args:
    model: predicts logits.
    max_steps: the largest k.

  Raises:
    ValueError: for a negative number of steps. In use, if the model has running
      statistics, if there is a mask, or if the i-th real example is not of
      class `i % classes`. If the labels are traced, the objective is then NaN.

  References:
    Zhao et al., `Dataset Condensation with Gradient Matching
    <https://arxiv.org/abs/2006.05929>`_, 2021, equations 9 and 10.
  """
  inner_loop.check_steps(max_steps=max_steps)
  model = stateless(model, "gradient_matching")

  def objective(synthetic: SyntheticSet, real: Batch, rng: PRNGKey) -> Array:
    init_key, step_key = jax.random.split(rng)
    num_classes = synthetic.targets.shape[-1]
    in_order = _in_order(real, num_classes)
    stop = jax.random.randint(step_key, (), 0, max_steps + 1)
    fixed = jax.lax.stop_gradient(synthetic)

    def loss(params: Params, step: Array) -> Array:
      logits = model.apply(params, fixed.inputs)
      losses = optax.softmax_cross_entropy(logits, fixed.targets)
      # From step `stop` on, the gradient is 0 and SGD changes nothing.
      return (step < stop) * losses.mean()

    params = inner_loop.minimize(
      loss,
      model.init(init_key, real.inputs),
      optax.sgd(jnp.exp(fixed.log_step_size)),
      max_steps,
    ).params

    def gradients(inputs: Array, targets: Array) -> Params:
      def loss(params: Params) -> Array:
        logits = model.apply(params, inputs)
        return optax.softmax_cross_entropy(logits, targets).mean()

      return jax.grad(loss)(params)

    own = jax.vmap(gradients)(
      _by_class(synthetic.inputs, num_classes),
      _by_class(synthetic.targets, num_classes),
    )
    goal = jax.vmap(gradients)(
      _by_class(real.inputs, num_classes),
      _by_class(jax.nn.one_hot(real.targets, num_classes), num_classes),
    )
    distances = jax.vmap(gradient_distance)(own, jax.lax.stop_gradient(goal))
    return distances.sum() * in_order

  return objective


def gradient_distance(grads: Params, other: Params) -> Array:
  """Returns `sum over layers and output units of 1 - cos`, 0 at equality.

  Args:
    grads: a tree of arrays. Their last axis counts the output units. Arrays
      with fewer than two axes are left out.
    other: a tree like `grads`.
  """

  def distance(a: Array, b: Array) -> Array:
    if a.ndim < 2:
      return jnp.zeros(())
    a, b = (wide(x.reshape(-1, x.shape[-1])) for x in (a, b))
    squares = [jnp.square(x).sum(0) for x in (a, b)]
    # A gradient of zero has no direction, so the distance of its unit is 0.
    known = (squares[0] > 0) & (squares[1] > 0)
    norms = [jnp.sqrt(jnp.where(known, x, 1.0)) for x in squares]
    cosines = ((a / norms[0]) * (b / norms[1])).sum(0)
    return jnp.where(known, 1 - cosines, 0.0).sum()

  distances = jax.tree.leaves(jax.tree.map(distance, grads, other))
  return jnp.stack(distances).sum()


def distribution_matching(embedding: Model) -> Objective:
  """Builds the objective of distribution matching (DM).

  It matches the mean features of both data sets in random networks::

    sum_c |mean psi(S_c) - mean psi(real_c)|^2,  psi a random network

  No network is trained. The gradients of targets and step size are therefore 0.

  Args:
    embedding: returns features `[n, d]`.

  Raises:
    ValueError: in use, if the model has running statistics, if there is a mask,
      or if the i-th real example is not of class `i % classes`. If the labels
      are traced, the objective is then NaN.

  References:
    Zhao and Bilen, `Dataset Condensation with Distribution Matching
    <https://arxiv.org/abs/2110.04181>`_, 2023, equation 4.
  """
  embedding = stateless(embedding, "distribution_matching")

  def objective(synthetic: SyntheticSet, real: Batch, rng: PRNGKey) -> Array:
    num_classes = synthetic.targets.shape[-1]
    in_order = _in_order(real, num_classes)
    params = embedding.init(rng, real.inputs)

    def means(inputs: Array) -> Array:
      features = embedding.apply(params, inputs)
      return wide(_by_class(features, num_classes)).mean(1)

    distances = jnp.square(means(synthetic.inputs) - means(real.inputs))
    return distances.sum() * in_order

  return objective


def kernel_inducing(kernel: Kernel, ridge: ArrayLike = 1e-3) -> Objective:
  """Builds the objective of kernel inducing points (KIP).

  It is the error on real labels of kernel ridge regression on S::

    1/2 mean over real examples of  |y - K(x, S) (K(S, S) + r I)^-1 y_S|^2
    r = ridge mean(diag K(S, S))

  where the mean over classes is subtracted from all targets. It is NaN if a
  real label is no class.

  Args:
    kernel: `(inputs [n, ...], inputs [m, ...]) -> [n, m]`.
    ridge: strength of the ridge, in units of the kernel's mean diagonal;
      positive. If the synthetic set starts at noise, use a large one (0.1) at
      first.

  Raises:
    ValueError: if `ridge` is not positive. A traced value is not checked. In
      use, for labels that are not `[n]` integers.

  References:
    Nguyen et al., `Dataset Meta-Learning from Kernel Ridge-Regression
    <https://arxiv.org/abs/2011.00050>`_, 2021, equation 7.
  """
  check_number("ridge", ridge, above=0)

  def objective(synthetic: SyntheticSet, real: Batch, rng: PRNGKey) -> Array:
    del rng
    num_classes = synthetic.targets.shape[-1]
    centre = 1 / num_classes
    predict = kernel_ridge(
      kernel, synthetic.inputs, synthetic.targets - centre, ridge
    )
    found = predict(real.inputs)
    check_labels(found, real.targets)
    goal = jax.nn.one_hot(real.targets, num_classes)
    is_class = (real.targets >= 0) & (real.targets < num_classes)
    if real.mask is not None:
      is_class |= ~real.mask
    goal = jnp.where(is_class[:, None], goal - centre, jnp.nan)
    return masked_mean(jnp.square(found - goal).sum(-1), real.mask) / 2

  return objective


def _in_order(real: Batch, num_classes: int) -> Array:
  """Returns 1, or NaN if example i is not of class `i % num_classes`."""
  if real.mask is not None:
    raise ValueError(
      "real.mask: all examples must be real, as many of each class; "
      "tasks.class_batches draws such batches."
    )
  count = len(real.targets)
  if not count or count % num_classes:
    raise ValueError(
      f"real.targets: {count} given, must be a multiple of {num_classes} "
      "classes."
    )
  labels = jnp.arange(count) % num_classes
  in_order = (real.targets == labels).all()
  if not isinstance(in_order, jax.core.Tracer) and not in_order:
    raise ValueError(
      f"real.targets: must be 0 to {num_classes - 1} in turn, as those of "
      "tasks.class_batches are."
    )
  return jnp.where(in_order, 1, jnp.nan)


def _by_class(x: Array, num_classes: int) -> Array:
  """Splits examples by class i % classes: `[classes, n / classes, ...]`."""
  return x.reshape(-1, num_classes, *x.shape[1:]).swapaxes(0, 1)
