"""Networks of PyTorch and ours, of the same weights, on the same images."""

import sys
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from metajax.forward import forward
from metajax.models.conv import conv4
from metajax.models.mlp import MLP
from metajax.models.resnet import resnet12
from metajax.models.torch_weights import from_torch, read_torch

DRAW = np.random.default_rng(0)


def _norm(state, name, channels):
  state[f"{name}.weight"] = DRAW.uniform(0.5, 2, channels)
  state[f"{name}.bias"] = DRAW.normal(size=channels)
  state[f"{name}.running_mean"] = DRAW.normal(size=channels)
  state[f"{name}.running_var"] = DRAW.uniform(0.5, 2, channels)
  state[f"{name}.num_batches_tracked"] = np.array(7)


def _conv4_state(filters, features, outputs, bias=True):
  """As the common `nn.Sequential` of blocks names it."""
  state, before = {}, 3
  for i, channels in enumerate(filters):
    shape = (channels, before, 3, 3)
    state[f"encoder.{i}.0.weight"] = DRAW.normal(size=shape)
    if bias:
      state[f"encoder.{i}.0.bias"] = DRAW.normal(size=channels)
    _norm(state, f"encoder.{i}.1", channels)
    before = channels
  if outputs:
    state["fc.weight"] = DRAW.normal(size=(outputs, features))
    state["fc.bias"] = DRAW.normal(size=outputs)
  return state


def _resnet_state(filters, features, outputs):
  """As MetaOptNet's code names it."""
  state, before = {}, 3
  for i, channels in enumerate(filters):
    layer = f"layer{i + 1}.0"
    for name, norm, size, width in (
      ("conv1", "bn1", 3, before),
      ("conv2", "bn2", 3, channels),
      ("conv3", "bn3", 3, channels),
      ("downsample.0", "downsample.1", 1, before),
    ):
      shape = (channels, width, size, size)
      state[f"{layer}.{name}.weight"] = DRAW.normal(size=shape)
      _norm(state, f"{layer}.{norm}", channels)
    before = channels
  state["classifier.weight"] = DRAW.normal(size=(outputs, features))
  state["classifier.bias"] = DRAW.normal(size=outputs)
  return state


def _numpy_functions():
  """Of PyTorch's functional interface, what is needed, in its layout."""

  def conv2d(x, weight, bias=None, padding=0):
    p, k = padding, weight.shape[2]
    x = np.pad(x, [(0, 0), (0, 0), (p, p), (p, p)])
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), (2, 3))
    y = np.einsum("nchwab,ocab->nohw", windows, weight)
    return y if bias is None else y + bias[:, None, None]

  def batch_norm(x, mean, var, weight, bias, training):
    if training:
      mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
    mean, var, weight, bias = (
      z[:, None, None] for z in (mean, var, weight, bias)
    )
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias

  def max_pool2d(x, size):
    n, c, h, w = x.shape
    h, w = h // size, w // size
    x = x[:, :, : h * size, : w * size].reshape(n, c, h, size, w, size)
    return x.max((3, 5))

  return types.SimpleNamespace(
    conv2d=conv2d,
    batch_norm=batch_norm,
    max_pool2d=max_pool2d,
    leaky_relu=lambda x, slope: np.where(x > 0, x, slope * x),
    linear=lambda x, weight, bias: x @ weight.T + bias,
    cat=lambda xs: np.concatenate(xs, 1),
  )


def _torch_functions():
  torch = pytest.importorskip("torch")
  functional = torch.nn.functional
  return types.SimpleNamespace(
    **{
      name: getattr(functional, name)
      for name in (
        "conv2d",
        "batch_norm",
        "max_pool2d",
        "leaky_relu",
        "linear",
      )
    },
    cat=lambda xs: torch.cat(xs, 1),
  )


def _block(f, state, conv, norm, x, padding, training):
  y = f.conv2d(
    x, state[f"{conv}.weight"], state.get(f"{conv}.bias"), padding=padding
  )
  mean, var, weight, bias = (
    state[f"{norm}.{k}"]
    for k in ("running_mean", "running_var", "weight", "bias")
  )
  if hasattr(mean, "clone"):  # PyTorch's are moved in training.
    mean, var = mean.clone(), var.clone()
  return f.batch_norm(y, mean, var, weight, bias, training=training)


def _conv4(f, state, x, training, joined=1, slope=0.0):
  maps, i = [], 0
  while f"encoder.{i}.0.weight" in state:
    x = _block(f, state, f"encoder.{i}.0", f"encoder.{i}.1", x, 1, training)
    x = f.max_pool2d(f.leaky_relu(x, slope), 2)
    maps.append(x.reshape(len(x), -1))
    i += 1
  x = f.cat(maps[-joined:])
  if "fc.weight" not in state:
    return x
  return f.linear(x, state["fc.weight"], state["fc.bias"])


def _resnet(f, state, x, training, pooled):
  i = 1
  while f"layer{i}.0.conv1.weight" in state:
    layer, y = f"layer{i}.0", x
    for j in (1, 2, 3):
      y = _block(f, state, f"{layer}.conv{j}", f"{layer}.bn{j}", y, 1, training)
      if j < 3:
        y = f.leaky_relu(y, 0.1)
    down = f"{layer}.downsample"
    y = y + _block(f, state, f"{down}.0", f"{down}.1", x, 0, training)
    x = f.max_pool2d(f.leaky_relu(y, 0.1), 2)
    i += 1
  x = x.mean((2, 3)) if pooled else x.reshape(len(x), -1)
  return f.linear(x, state["classifier.weight"], state["classifier.bias"])


def _in_numpy(network, state, images):
  return network(_numpy_functions(), state, images.transpose(0, 3, 1, 2))


def _in_torch(network, state, images):
  f = _torch_functions()
  import torch

  state = {k: torch.from_numpy(np.asarray(v)) for k, v in state.items()}
  x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  return network(f, state, x).numpy()


# Maps of different height and width, which a wrong order would mix up.
SHAPE = (3, 9, 13, 3)
CASES = {
  "conv4 with a head": (
    conv4(3, filters=(4, 5), num_blocks=2, strided=False),
    _conv4_state((4, 5), 5 * 2 * 3, 3),
    lambda f, state, x: _conv4(f, state, x, True),
  ),
  "R2-D2 with a head, running statistics": (
    conv4(
      3,
      filters=(4, 5),
      num_blocks=2,
      strided=False,
      normalization="running",
      slope=0.1,
      joined_blocks=2,
    ),
    _conv4_state((4, 5), 4 * 4 * 6 + 5 * 2 * 3, 3),
    lambda f, state, x: _conv4(f, state, x, False, 2, 0.1),
  ),
  "ResNet, pooled": (
    resnet12(2, filters=(3, 4)),
    _resnet_state((3, 4), 4, 2),
    lambda f, state, x: _resnet(f, state, x, False, True),
  ),
  "ResNet, flattened, by the batch": (
    resnet12(2, filters=(3, 4), pooled=False, normalization="batch"),
    _resnet_state((3, 4), 4 * 2 * 3, 2),
    lambda f, state, x: _resnet(f, state, x, True, False),
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize("other", [_in_numpy, _in_torch])
@pytest.mark.parametrize("name", CASES)
def test_outputs_are_the_same(name, other):
  model, state, network = CASES[name]
  images = np.random.default_rng(1).normal(size=SHAPE)
  expected = other(network, state, images)
  with jax.enable_x64(True):
    params = from_torch(model, state, images)
    found = jax.jit(forward(model).apply)(params, images)
    like = jax.eval_shape(forward(model).init, jax.random.key(0), images)
    assert jax.tree.map(jnp.shape, like) == jax.tree.map(jnp.shape, params)
  np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_files(tmp_path):
  """Twelve layers, whose names the format of safetensors sorts as strings."""
  state = {f"module.{k}.weight": np.full((2, 2), k) for k in range(12)}
  path = tmp_path / "net.safetensors"
  save_file(state, path)
  arrays = read_torch(path)
  assert list(arrays) == [f"{k}.weight" for k in range(12)]
  assert all(np.all(x == k) for k, x in enumerate(arrays.values()))
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(ValueError, match=r"net.safetensors: cannot be read"):
    read_torch(path)


def test_files_of_torch(tmp_path):
  torch = pytest.importorskip("torch")
  _, state, _ = CASES["ResNet, pooled"]
  tensors = {f"module.{k}": torch.from_numpy(v) for k, v in state.items()}
  path = tmp_path / "net.pt"
  torch.save({"epoch": 3, "embedding": tensors}, path)
  found = read_torch(path, "embedding")
  assert list(found) == list(state)
  for name, array in state.items():
    np.testing.assert_array_equal(found[name], array)
  with pytest.raises(ValueError, match=r"'epoch', 'embedding', must be arrays"):
    read_torch(path)
  with pytest.raises(ValueError, match=r"entry='head': .* has 'epoch'"):
    read_torch(path, "head")


class _Tensor:
  """What a tensor of PyTorch in bfloat16 does, which need not be installed."""

  dtype, shape = "torch.bfloat16", (2,)

  def __array__(self, *arguments, **options):
    raise TypeError("Got unsupported ScalarType BFloat16")

  def detach(self):
    return self

  def float(self):
    return np.float32([1.5, -2.0])


def test_files_of_torch_in_bfloat16(tmp_path, monkeypatch):
  torch = types.SimpleNamespace(load=lambda *args, **options: {"a": _Tensor()})
  monkeypatch.setitem(sys.modules, "torch", torch)
  found = read_torch(tmp_path / "net.pt")["a"]
  np.testing.assert_array_equal(found, np.float32([1.5, -2.0]))


def test_files_of_torch_without_torch_say_what_to_do(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(ValueError, match="net.pt: needs PyTorch; install torch"):
    read_torch(tmp_path / "net.pt")


def _without(*keys):
  return lambda state: {k: v for k, v in state.items() if k not in keys}


@pytest.mark.parametrize(
  "change, message",
  [
    (
      _without("encoder.1.1.running_var"),
      r"encoder.1.1.running_var is missing, must be \(5,\) for BatchNorm_1/var",
    ),
    (
      _without("fc.weight", "fc.bias"),
      r"for Dense_0 is missing, must be \(3,\) for Dense_0/bias",
    ),
    (
      lambda state: {**state, "encoder.1.0.weight": np.zeros((5, 6, 3, 3))},
      r"encoder.1.0.weight is \(5, 6, 3, 3\), must be \(5, 4, 3, 3\) for Conv",
    ),
    (
      lambda state: {**state, "more.weight": np.zeros((1, 5))},
      r"more.weight \(1, 5\) has no place in the model",
    ),
    (
      lambda state: {**state, "fc.scale": np.zeros(5)},
      r"fc.scale \(5,\) has no place in the model",
    ),
    (
      lambda state: {**state, "position": np.zeros((1, 5, 5))},
      r"state_dict: position \(1, 5, 5\) is of no convolution",
    ),
  ],
)
def test_arrays_that_do_not_fit_are_named(change, message):
  model, state, _ = CASES["R2-D2 with a head, running statistics"]
  with pytest.raises(ValueError, match=message) as raised:
    from_torch(model, change(state), np.zeros(SHAPE, np.float32))
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_weights_in_half_precision_become_those_of_a_model(dtype):
  model, state, _ = CASES["R2-D2 with a head, running statistics"]
  half = {name: x.astype(dtype) for name, x in state.items()}
  whole = {name: x.astype(np.float32) for name, x in half.items()}
  images = np.zeros(SHAPE, np.float32)
  found, expected = (from_torch(model, x, images) for x in (half, whole))
  chex.assert_trees_all_equal(found, expected)
  like = jax.eval_shape(forward(model).init, jax.random.key(0), images)
  chex.assert_trees_all_equal_shapes_and_dtypes(found, like)


@pytest.mark.parametrize(
  "model, message",
  [
    (MLP(3), "a MLP given, must be of conv4 or resnet12"),
    (conv4(3), "strided=False"),
    (conv4(3, strided=False, num_context=1), "num_context=0"),
    (resnet12(3, normalization="layer"), "normalization='layer': must be"),
  ],
)
def test_other_models_are_refused(model, message):
  with pytest.raises(ValueError, match=message):
    from_torch(model, {}, np.zeros(SHAPE, np.float32))
