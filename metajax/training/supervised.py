"""Supervised training on a data set, with the interface of meta-training."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from metajax import variables
from metajax.forward import forward
from metajax.losses import over_examples
from metajax.numerics import check_counts, check_key
from metajax.training.mesh import TASKS, mean_over_devices, task_mesh
from metajax.training.processes import place
from metajax.training.state import (
  Trainer,
  TrainState,
  first_state,
  mean_over_steps,
  next_state,
  trainer_on,
)
from metajax.types import (
  Array,
  Batch,
  LossFn,
  Metrics,
  Model,
  Params,
  PRNGKey,
  as_partial,
)

# (params, examples, rng) -> (loss, metrics) or
# (loss, metrics, params with new state)
SupervisedLoss = Callable[[Params, Any, PRNGKey], tuple[Any, ...]]


def supervised_trainer(
  init_params: Callable[[PRNGKey], Params],
  loss_fn: SupervisedLoss,
  optimizer: optax.GradientTransformation,
  data: Any,
  *,
  batch_size: int,
  rng: PRNGKey,
  mesh: Mesh | None = None,
) -> Trainer:
  """Builds a trainer that minimises a mean loss on minibatches.

  The data are on the devices. A step draws its examples there, uniformly and
  with replacement::

    g = d/d params  mean over the batch of  loss
    params <- params + optimizer(g)

  To train several models at once, let `init_params` return a stack of models,
  and let `loss_fn` vmap over the stack and return the sum of losses.

  Args:
    init_params: `(rng) -> params`.
    loss_fn: `(params, examples, rng) -> (scalar, metrics)`. The loss and the
      metrics, scalars by name, are means over the examples. It sees the
      examples of one device, with a key of this device's own. Arrays that it
      needs, such as a teacher's, should be those of a `jax.tree_util.Partial`.
      Other captured arrays are constants of the program. It may return a third
      result, the parameters with new `State` nodes. The new state is the mean
      over the devices.
    optimizer: any optax optimizer.
    data: a tree of arrays `[examples, ...]` that the loss reads: inputs,
      labels, predictions of a teacher, ...
    batch_size: examples of a step.
    rng: the key from which all batches are drawn.
    mesh: a mesh with the axis "tasks", over which a batch is split. If None, it
      is `task_mesh(batch_size)`.

  Returns:
    A `Trainer`, which reports "loss" and the metrics.

  Raises:
    ValueError: if the first axes of the arrays differ, if `batch_size` is not a
      multiple of the number of devices, or if `init_params` is a model; in use,
      if the loss returns no tuple.
  """
  if hasattr(init_params, "apply"):
    raise ValueError(
      f"init_params: a {type(init_params).__name__} given, must be a function, "
      "lambda rng: model.init(rng, inputs)."
    )
  _check_loss(loss_fn)
  sizes = {leaf.shape[0] for leaf in jax.tree.leaves(data)}
  if len(sizes) != 1:
    raise ValueError(
      f"data: first axes of {sorted(sizes)}, must be equal: the examples."
    )
  (num_examples,) = sizes
  check_key(rng)
  check_counts(batch_size=batch_size)
  if mesh is None:
    mesh = task_mesh(batch_size, name="batch_size")
  per_device, rest = divmod(batch_size, mesh.size)
  if rest:
    raise ValueError(
      f"batch_size={batch_size}: must be a multiple of {mesh.size} devices."
    )

  def device_grad(params, loss_fn, data, step_key):
    device = jax.lax.axis_index(TASKS)
    place = device * per_device + jnp.arange(per_device)
    # The key of an example depends on its place in the batch only. The batch
    # therefore does not depend on the number of devices.
    chosen = jax.vmap(
      lambda i: jax.random.randint(
        jax.random.fold_in(step_key, i), (), 0, num_examples
      )
    )(place)
    batch = jax.tree.map(lambda x: x[chosen], data)

    def loss_of(weights):
      found = loss_fn(
        variables.combine(weights, params),
        batch,
        jax.random.fold_in(step_key, batch_size + device),
      )
      if not isinstance(found, tuple):
        raise ValueError(
          "loss_fn: returned no tuple, must be (loss, metrics); "
          "training.loss_of(model, loss) returns such a function."
        )
      loss, metrics, *new = found
      return loss, ({"loss": loss, **metrics}, new[0] if new else params)

    grads, (metrics, new) = jax.grad(loss_of, has_aux=True)(
      variables.weights(params)
    )
    grads = variables.combine(grads, variables.states(new), params)
    return mean_over_devices((grads, metrics), like=grads)

  sharded_grad = jax.shard_map(
    device_grad, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False
  )

  def step(state, loss_fn, data, rng):
    step_key = jax.random.fold_in(rng, state.step)

    def at(params):
      return sharded_grad(params, loss_fn, data, step_key)

    grads, metrics = at(state.meta_params)
    return next_state(optimizer, state, grads, metrics["loss"], at=at), metrics

  replicated = NamedSharding(mesh, P())

  @functools.partial(jax.jit, out_shardings=replicated)
  def init(rng: PRNGKey) -> TrainState:
    params = init_params(rng)
    return first_state(optimizer, params)

  given = place((as_partial(loss_fn), data, rng), replicated)
  return trainer_on(
    mesh,
    lambda key: init(place(key, replicated)),
    mean_over_steps(step, *given),
  )


def _check_loss(loss_fn: SupervisedLoss) -> None:
  """Raises a `ValueError` if a loss does not take three arguments."""
  try:
    arguments = inspect.signature(loss_fn)
  except (TypeError, ValueError):  # Some callables have no signature.
    return
  try:
    arguments.bind(None, None, None)
  except TypeError as error:
    raise ValueError(
      f"loss_fn: must take (params, examples, rng) ({error}). training.loss_of("
      "model, loss) makes such a function of a loss of predictions."
    ) from error


def on_changed(
  loss_fn: SupervisedLoss, change: Callable[[PRNGKey, Array], Array]
) -> SupervisedLoss:
  """Changes the inputs at random before the loss, to augment a data set.

  A teacher inside `loss_fn` reads the changed inputs, too.

  Args:
    loss_fn: of examples in a `Batch`, or in a dictionary with "inputs".
    change: `(rng, inputs) -> inputs`, such as those of
      `metajax.tasks.augmentation`.

  Returns:
    A loss for `supervised_trainer`.
  """

  def changed(loss_fn, params, examples, rng):
    change_key, loss_key = jax.random.split(rng)
    if isinstance(examples, Batch):
      inputs = change(change_key, examples.inputs)
      examples = examples._replace(inputs=inputs)
    else:
      inputs = change(change_key, examples["inputs"])
      examples = {**examples, "inputs": inputs}
    return loss_fn(params, examples, loss_key)

  return jax.tree_util.Partial(changed, as_partial(loss_fn))


def loss_of(
  model: Model,
  loss_fn: LossFn,
  metrics: Mapping[str, LossFn] | None = None,
) -> SupervisedLoss:
  """Builds a loss for `supervised_trainer` from a model and a loss function.

  The model runs in training mode: dropout uses the key of the step, and running
  statistics are updated by the batch. The trainer's data must be a `Batch`.

  Args:
    model: any model.
    loss_fn: `(predictions, targets) -> scalar`, a mean over examples.
    metrics: more such functions, reported beside "loss".
  """
  model = forward(model)
  report = dict(metrics or {})

  def supervised_loss(
    params: Params, batch: Batch, rng: PRNGKey
  ) -> tuple[Array, Metrics, Params]:
    if not isinstance(batch, Batch):
      raise ValueError(
        f"data: a {type(batch).__name__} given, must be metajax.Batch(inputs, "
        "targets) for this loss."
      )
    inputs, targets, mask = batch
    predictions, new = model.train(params, inputs, rng, mask=mask)
    loss, *values = (
      over_examples(f, predictions, targets, mask)
      for f in (loss_fn, *report.values())
    )
    return loss, dict(zip(report, values, strict=True)), new

  return supervised_loss
