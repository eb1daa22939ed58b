"""Weights of PyTorch's networks as parameters of conv4 and ResNet-12."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.forward import forward
from metajax.models.conv import Conv4
from metajax.models.resnet import ResNet
from metajax.types import Params

# What a layer is, by the rank of its weight.
KINDS = {4: "Conv", 2: "Dense", 1: "BatchNorm"}
# What flax calls an array of it, and PyTorch.
NAMES = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}


class Layer(NamedTuple):
  """A layer of PyTorch: how its keys begin, and its arrays by the rest."""

  name: str
  arrays: dict[str, np.ndarray]


def from_torch(
  model: Any, state_dict: Mapping[str, Any], inputs: Any
) -> Params:
  """Makes parameters of a model of the `state_dict` of the same one in PyTorch.

  ::

    model = conv4(None, strided=False, normalization="running")
    params = from_torch(model, read_torch("protonet.pt"), images)
    features = forward(model).apply(params, images)

  Layers are matched by kind (convolution, batch normalisation, linear layer)
  and order, whatever they are called. Kernels OIHW become HWIO. The rows of a
  head on flattened maps, whose channels come first there, are sorted anew. A
  bias of a convolution is taken off the running mean after it. Images are the
  same as there, but with the channels last.

  Args:
    model: of `conv4` with `strided=False`, or of `resnet12`, with the
      normalisation "batch" or "running".
    state_dict: arrays by name, in the order of the layers. Tensors in the
      host's memory will do.
    inputs: images `[n, height, width, channels]`, or their shape and dtype.

  Returns:
    Parameters as a learner's `init` makes them of the model.

  Raises:
    ValueError: for another model, or if an array is missing, left over or of
      another shape, naming it.
  """
  _check_model(model)
  like = jax.eval_shape(forward(model).init, jax.random.key(0), inputs)
  layers = _layers(state_dict)
  pairs = zip(layers["Conv"], layers["BatchNorm"], strict=False)
  for convolution, norm in pairs:
    _move_bias(convolution, norm)
    if model.normalization == "batch":
      norm.arrays.pop("running_mean", None)
      norm.arrays.pop("running_var", None)
  paths, tree = jax.tree_util.tree_flatten_with_path(like)
  wanted = {_place(path): leaf.shape for path, leaf in paths}
  found = {}
  used: dict[str, Layer] = {}
  for place in sorted(wanted, key=_natural):
    of, name = place.rsplit("/", 1)
    kind = of.rsplit("/", 1)[-1].split("_")[0]
    if of not in used and layers[kind]:
      used[of] = layers[kind].pop(0)
    array = used[of].arrays.pop(NAMES[name], None) if of in used else None
    expected = _order(wanted[place])
    if array is None or array.shape != expected:
      key = f"{used[of].name}.{NAMES[name]}" if of in used else f"for {of}"
      has = "missing" if array is None else array.shape
      raise ValueError(
        f"state_dict: {key} is {has}, must be {expected} for {place} of the "
        "model; give it the filters, blocks and outputs of the trained one."
      )
    if name == "kernel" and array.ndim == 2:
      found[place] = _rows(array, model, inputs.shape)
    else:
      found[place] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
  for layer in [*used.values(), *(x for xs in layers.values() for x in xs)]:
    for name, array in layer.arrays.items():
      raise ValueError(
        f"state_dict: {layer.name}.{name} {array.shape} has no place in the "
        "model; leave it out, or give the model the blocks and outputs of the "
        "trained one."
      )
  return jax.tree.unflatten(
    tree, [jnp.asarray(found[_place(path)]) for path, _ in paths]
  )


def read_torch(
  path: str | os.PathLike, entry: str | None = None
) -> dict[str, np.ndarray]:
  """Reads the arrays of a PyTorch network from a file.

  Neither format runs code when it is read. The names lose the "module." of
  `DataParallel`.

  Args:
    path: `.safetensors`, or what `torch.save` has written, for which PyTorch
      must be installed.
    entry: of a file of several things, which of them.

  Raises:
    ValueError: if it cannot be read, or has other things than arrays.
  """
  sorts_by_name = Path(path).suffix == ".safetensors"
  read = _load_safe if sorts_by_name else _load_pickled
  try:
    found = read(path)
  except ImportError as error:
    raise ValueError(
      f"{path}: needs PyTorch; install torch, or write the file by "
      "safetensors.torch.save_file(state_dict, path)."
    ) from error
  except Exception as error:  # Whatever the readers of damaged files raise.
    reason = str(error).splitlines()[0] if str(error) else repr(error)
    raise ValueError(f"{path}: cannot be read ({reason}).") from error
  if entry is not None:
    if not isinstance(found, Mapping) or entry not in found:
      raise ValueError(f"entry={entry!r}: {path} has {_entries(found)}.")
    found = found[entry]
  if not isinstance(found, Mapping) or not all(
    hasattr(x, "shape") for x in found.values()
  ):
    raise ValueError(
      f"{path}: has {_entries(found)}, must be arrays by name; say which of "
      "these by `entry`."
    )
  arrays = {k.removeprefix("module."): _array(x) for k, x in found.items()}
  # "10" before "2".
  names = sorted(arrays, key=_natural) if sorts_by_name else arrays
  return {name: arrays[name] for name in names}


def _load_safe(path: str | os.PathLike) -> Any:
  from safetensors.numpy import load_file

  return load_file(path)


def _load_pickled(path: str | os.PathLike) -> Any:
  import torch

  return torch.load(path, map_location="cpu", weights_only=True)


def _array(x: Any) -> np.ndarray:
  """Converts a tensor. Numpy has no bfloat16, and takes none with gradients."""
  if hasattr(x, "detach"):
    x = x.detach()
    x = x.float() if str(x.dtype) == "torch.bfloat16" else x
  return np.asarray(x)


def _entries(found: Any) -> str:
  if not isinstance(found, Mapping):
    return f"a {type(found).__name__}"
  return ", ".join(map(repr, list(found)[:5]))


def _check_model(model: Any) -> None:
  if not isinstance(model, Conv4 | ResNet):
    raise ValueError(
      f"model: a {type(model).__name__} given, must be of conv4 or resnet12."
    )
  if model.normalization not in ("batch", "running"):
    raise ValueError(
      f"normalization={model.normalization!r}: must be 'batch' or 'running', "
      "as BatchNorm2d normalises."
    )
  if isinstance(model, Conv4) and (model.strided or model.num_context):
    raise ValueError(
      "model: must be a conv4 with strided=False, since PyTorch's strided "
      "convolutions begin at another pixel, and with num_context=0."
    )


def _layers(state_dict: Mapping[str, Any]) -> dict[str, list[Layer]]:
  """Takes the arrays apart into layers, by kind."""
  layers: dict[str, Layer] = {}
  for key, value in state_dict.items():
    name, _, last = key.rpartition(".")
    if last != "num_batches_tracked":
      layer = layers.setdefault(name, Layer(name, {}))
      array = _array(value)
      # Networks are often stored in half precision.
      layer.arrays[last] = array.astype(np.result_type(array, np.float32))
  kinds: dict[str, list[Layer]] = {kind: [] for kind in KINDS.values()}
  for layer in layers.values():
    weight = layer.arrays.get("weight", np.zeros(()))
    if weight.ndim not in KINDS:
      name, array = next(iter(layer.arrays.items()))
      raise ValueError(
        f"state_dict: {f'{layer.name}.{name}'.lstrip('.')} {array.shape} is of "
        "no convolution, batch normalisation or linear layer; leave it out."
      )
    kinds[KINDS[weight.ndim]].append(layer)
  return kinds


def _move_bias(convolution: Layer, norm: Layer) -> None:
  """Subtracts from a mean what is no longer added before it."""
  bias, mean = convolution.arrays.get("bias"), norm.arrays.get("running_mean")
  if bias is None or bias.shape != norm.arrays["weight"].shape:
    return
  del convolution.arrays["bias"]
  if mean is not None and mean.shape == bias.shape:
    norm.arrays["running_mean"] = mean - bias


def _rows(weight: np.ndarray, model: Any, shape: tuple[int, ...]) -> np.ndarray:
  """Returns the kernel of a head, its rows in the order of channels last."""
  joined = model.joined_blocks if isinstance(model, Conv4) else 1
  if isinstance(model, ResNet) and model.pooled:
    return weight.T
  parts, start = [], 0
  for i in range(len(model.filters) - joined, len(model.filters)):
    height, width = (size >> (i + 1) for size in shape[1:3])
    channels = model.filters[i]
    end = start + channels * height * width
    part = weight[:, start:end].reshape(-1, channels, height, width)
    parts.append(part.transpose(2, 3, 1, 0).reshape(-1, len(weight)))
    start = end
  return np.concatenate(parts)


def _order(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns a shape as PyTorch orders it."""
  orders = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
  return tuple(shape[i] for i in orders[len(shape)])


def _place(path: tuple) -> str:
  """Names a leaf by layer and name: Block_0/Conv_1/kernel."""
  keys = [str(key.key) for key in path if hasattr(key, "key")]
  return "/".join(keys[1:])


def _natural(name: str) -> list:
  """Sorts numbers in names as numbers."""
  return [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", name)]
