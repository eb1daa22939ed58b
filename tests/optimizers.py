"""Every optimizer and transformation that optax exports, ready to descend."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

RATE = 0.05

# What they descend.
PARAMS = {
  "w": np.array([[0.5, -0.3], [0.2, 0.8]]),
  "b": np.array([0.1, -0.2]),
}
INPUTS = np.array([[1.0, 0.5], [-0.3, 0.7], [0.2, -1.0]])
TARGETS = np.array([[1.0, -1.0], [0.5, 0.3], [-0.2, 0.1]])


def _descending(transformation):
  return optax.chain(transformation, optax.scale(-RATE))


def _sam(**options):
  ascent = optax.chain(contrib.normalize(), optax.sgd(0.01))
  return contrib.sam(optax.sgd(RATE), ascent, **options)


def _by_name(names, make):
  found = {}
  for name in names.split():
    factory = getattr(optax, name, None) or getattr(contrib, name)
    found[name] = lambda factory=factory: make(factory)
  return found


def _adam():
  return optax.adam(RATE)


# Name -> a function that makes the optimizer.
OPTIMIZERS = {
  **_by_name(
    "adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan "
    "amsgrad fromage lamb lars lion nadam nadamw noisy_sgd novograd radam "
    "rmsprop rprop sgd sign_sgd signum sm3 yogi acprop ademamix adopt "
    "dadapt_adamw dog dowg madgrad momo momo_adam muon polyak_sgd prodigy "
    "schedule_free_adamw schedule_free_sgd simplified_ademamix sophia galore "
    "optimistic_adam optimistic_adam_v2 optimistic_gradient_descent",
    lambda factory: factory(RATE),
  ),
  **_by_name(
    "centralize identity scale_by_adadelta scale_by_adam scale_by_adamax "
    "scale_by_adan scale_by_amsgrad scale_by_belief scale_by_factored_rms "
    "scale_by_lbfgs scale_by_lion scale_by_novograd scale_by_param_block_norm "
    "scale_by_param_block_rms scale_by_polyak scale_by_radam scale_by_rms "
    "scale_by_rss scale_by_sign scale_by_sm3 scale_by_stddev "
    "scale_by_trust_ratio scale_by_yogi zero_nans add_decayed_weights "
    "normalize reduce_on_plateau scale_by_acprop scale_by_ademamix "
    "scale_by_adopt scale_by_galore scale_by_optimistic_gradient "
    "normalize_by_update_norm scale_by_distance_over_gradients "
    "scale_by_simplified_ademamix",
    lambda factory: _descending(factory()),
  ),
  **_by_name(
    "cocob scale_by_cocob lbfgs set_to_zero", lambda factory: factory()
  ),
  **_by_name(
    "adaptive_grad_clip clip clip_by_block_rms clip_by_global_norm ema "
    "scale scale_by_rprop scale_by_madgrad trace",
    lambda factory: _descending(factory(0.5)),
  ),
  "add_noise": lambda: _descending(optax.add_noise(0.1, 0.5, key=0)),
  "apply_every": lambda: optax.chain(optax.apply_every(2), optax.scale(-RATE)),
  "apply_if_finite": lambda: optax.apply_if_finite(_adam(), 3),
  "chain": lambda: optax.chain(optax.clip(0.5), _adam()),
  "conditionally_mask": lambda: optax.conditionally_mask(
    _adam(), lambda step: step < 2
  ),
  "conditionally_transform": lambda: optax.conditionally_transform(
    _adam(), lambda step: step < 2
  ),
  "flatten": lambda: optax.flatten(_adam()),
  "freeze": lambda: optax.chain(
    _adam(), optax.transforms.freeze({"w": False, "b": True})
  ),
  "hutchinson_estimator_diag_hessian": lambda: _descending(
    contrib.hutchinson_estimator_diag_hessian()
  ),
  "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(
    lambda count: RATE / 2**count
  ),
  "keep_params_nonnegative": lambda: optax.chain(
    _adam(), optax.keep_params_nonnegative()
  ),
  "masked": lambda: optax.masked(_adam(), {"w": True, "b": False}),
  "lookahead": lambda: optax.lookahead(_adam(), 2, 0.5),
  "snapshot": lambda: optax.chain(
    optax.snapshot("norm", optax.tree.norm), _adam()
  ),
  "scale_by_learning_rate": lambda: optax.scale_by_learning_rate(RATE),
  "scale_by_muon": lambda: optax.chain(
    optax.masked(
      contrib.scale_by_muon(
        weight_dimension_numbers=lambda params: jax.tree.map(
          lambda _: contrib.MuonDimensionNumbers(), params
        )
      ),
      {"w": True, "b": False},
    ),
    optax.scale(-RATE),
  ),
  "inject_stateful_hyperparams": lambda: optax.inject_stateful_hyperparams(
    optax.adam
  )(lambda count: RATE / 2**count),
  "mechanize": lambda: contrib.mechanize(_adam()),
  "MultiSteps": lambda: optax.MultiSteps(_adam(), 2).gradient_transformation(),
  "multi_transform": lambda: optax.multi_transform(
    {"a": _adam(), "b": optax.sgd(RATE)}, {"w": "a", "b": "b"}
  ),
  "named_chain": lambda: optax.named_chain(("adam", _adam())),
  "partition": lambda: optax.partition(
    {"a": contrib.schedule_free_sgd(RATE), "b": optax.sgd(RATE)},
    {"w": "a", "b": "b"},
  ),
  "sam": _sam,
  "sam in a chain": lambda: optax.chain(optax.clip(0.5), _sam()),
  "sam opaque": lambda: _sam(opaque_mode=True),
  "scale_by_backtracking_linesearch": lambda: optax.chain(
    optax.sgd(RATE), optax.scale_by_backtracking_linesearch(5, store_grad=True)
  ),
  "scale_by_schedule": lambda: optax.scale_by_schedule(
    lambda count: -RATE / 2**count
  ),
  "scale_by_zoom_linesearch": lambda: optax.chain(
    optax.sgd(RATE), optax.scale_by_zoom_linesearch(5)
  ),
  "schedule_free": lambda: contrib.schedule_free(_adam(), RATE),
  "selective_transform": lambda: optax.transforms.selective_transform(
    _adam(), freeze_mask={"w": False, "b": True}
  ),
  "split_real_and_imaginary": lambda: contrib.split_real_and_imaginary(_adam()),
  "stateless": lambda: optax.stateless(
    lambda updates, params: jax.tree.map(lambda g: -RATE * g, updates)
  ),
  "stateless_with_tree_map": lambda: optax.stateless_with_tree_map(
    lambda g, p: -RATE * g
  ),
}

# Name -> why it is no trainer's optimizer.
NO_OPTIMIZERS = {
  "dpsgd": "it takes the gradient of each example",
  "differentially_private_aggregate": "it takes the gradient of each example",
  "measure_with_ema": "it measures, in `monitor`",
  "monitor": "its state has another structure after the first step",
}


def exported():
  """Returns the names of what makes a transformation, in all three modules."""
  names = set()
  for module in (optax, contrib, optax.transforms):
    for name, value in vars(module).items():
      if inspect.isfunction(value) and not name.startswith("_"):
        made = inspect.signature(value).return_annotation
        if "GradientTransformation" in str(made):
          names.add(name)
  return names - {"with_extra_args_support"}


def tanh_loss(params, shift=0.0):
  outputs = jnp.tanh(INPUTS @ params["w"] + params["b"])
  return jnp.mean((outputs - TARGETS - shift) ** 2)


# What each takes beside the gradient, by optax's documentation.
VALUE, SEARCH = {"value"}, {"value", "grad", "value_fn"}
TAKES = {
  "lbfgs": SEARCH,
  "momo": VALUE,
  "momo_adam": VALUE,
  "polyak_sgd": VALUE,
  "reduce_on_plateau": VALUE,
  "scale_by_polyak": VALUE,
  "scale_by_backtracking_linesearch": SEARCH,
  "scale_by_zoom_linesearch": SEARCH,
  "sophia": {"obj_fn"},
  "hutchinson_estimator_diag_hessian": {"obj_fn"},
  "sam opaque": {"grad_fn"},
}


def plain_loop(name, losses):
  """A loop with optax alone; returns what it trains and what to evaluate."""
  optimizer = OPTIMIZERS[name]()
  params = jax.tree.map(jnp.asarray, PARAMS)
  pair = optax.LookaheadParams.init_synced(params)
  trained = pair if name == "lookahead" else params
  state = optimizer.init(trained)

  @jax.jit
  def step(trained, state, shift):
    def loss(params):
      return tanh_loss(params, shift)

    params = trained.fast if name == "lookahead" else trained
    value, grads = jax.value_and_grad(loss)(params)
    all_there_is = {
      "value": value,
      "grad": grads,
      "value_fn": loss,
      "obj_fn": loss,
      "grad_fn": lambda params, _: jax.grad(loss)(params),
    }
    extra = {k: all_there_is[k] for k in TAKES.get(name, ())}
    updates, state = optimizer.update(grads, state, trained, **extra)
    return optax.apply_updates(trained, updates), state

  for shift in losses:
    trained, state = step(trained, state, shift)
  return trained, state
