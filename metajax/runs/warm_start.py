"""Starts a training from the network of an earlier run, by --init_from."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from absl import flags

from metajax import saved
from metajax.types import MetaLearner, Params, PRNGKey

flags.DEFINE_string(
  "init_from",
  None,
  "Folder of a run that has ended, such as one of experiments.pretrain. The "
  "training starts with the weights of its network in place of random ones.",
)
# What may differ, since it changes no array.
FREE = ("conv_lowering", "drop_rate", "drop_rates", "block_size")


def warm_started(
  learner: MetaLearner, network: Mapping[str, Any], folder: str | None
) -> MetaLearner:
  """Returns the learner with the weights of an earlier run as initial ones.

  Arrays of the same name and shape are taken from the earlier run. All others,
  such as a head for other classes, are new.

  Args:
    learner: the learner.
    network: the description of its network, see `Recipe.model`.
    folder: the value of --init_from; None: the learner is returned as it is.

  Raises:
    ValueError: if the folder has no learner, or one of another network.
  """
  if not folder:
    return learner
  try:
    loaded = saved.load(folder)
  except ValueError as error:  # It begins with the folder.
    raise ValueError(f"--init_from={error}") from error
  theirs = loaded.recipe.model or {}
  ours = {**network}
  for name in sorted({*ours} & {*theirs} - {*FREE}):
    if ours[name] != theirs[name]:
      raise ValueError(
        f"--init_from={folder}: a network of {name}={theirs[name]}, "
        f"not {ours[name]}: give the flags of the network as in that run."
      )
  start = functools.partial(_started, learner.init, folder)
  weights = _network(loaded.meta_params)
  return learner._replace(init=jax.tree_util.Partial(start, weights))


def _started(
  init: Any, folder: str, weights: Params, rng: PRNGKey, inputs: Any
) -> Params:
  params = init(rng, inputs)
  network, known = _network(params), dict(_named(weights))

  def fits(name: str, x: Any) -> bool:
    return name in known and known[name].shape == x.shape

  named = _named(network)
  if not any(fits(name, x) for name, x in named):
    raise ValueError(
      f"--init_from={folder}: none of its arrays fits this learner: "
      "give the run of another learner."
    )
  taken = [known[name] if fits(name, x) else x for name, x in named]
  new = jax.tree.unflatten(jax.tree.structure(network), taken)
  return new if network is params else {**params, "embedding": new}


def _network(params: Params) -> Params:
  """Returns the parameters of the network among meta-parameters."""
  is_part = isinstance(params, dict) and "embedding" in params
  return params["embedding"] if is_part else params


def _named(tree: Params) -> list[tuple[str, Any]]:
  paths, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [(jax.tree_util.keystr(path), leaf) for path, leaf in paths]
