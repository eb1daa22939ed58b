"""The convolutional network, and its convolution as a matrix product."""

import functools

import chex
import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from metajax.models import blocks, winograd
from metajax.models.conv import conv4
from metajax.models.patches import NHWC, patch_conv
from tests.slow import slow_but

FEW_EXAMPLES = hypothesis.settings(
  max_examples=8, deadline=None, derandomize=True
)


def _normal(seed, shape, dtype=jnp.float32):
  # By numpy: jax compiles its sampler again for every shape.
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


blocked_conv = functools.partial(patch_conv, blocks=True)


@pytest.fixture
def small_blocks(monkeypatch):
  """Blocks of one to three images, for the images of these tests."""
  monkeypatch.setattr(blocks, "BLOCK_BYTES", 12_000)


def _assert_both_agree(fn, *args, tolerance, convolution=patch_conv):
  """`fn(convolution, *args)` is the same for patches and for XLA."""
  ours, reference = (
    jax.jit(functools.partial(fn, convolution))(*args)
    for convolution in (convolution, lax.conv_general_dilated)
  )
  jax.tree.map(
    functools.partial(
      np.testing.assert_allclose, rtol=tolerance, atol=tolerance
    ),
    ours,
    reference,
  )


@FEW_EXAMPLES
@hypothesis.given(
  size=st.tuples(st.integers(4, 7), st.integers(4, 7)),
  kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
  strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
  padding=st.sampled_from(["SAME", "VALID", ((1, 0), (0, 2)), ((-1, 1),) * 2]),
  channels=st.sampled_from([1, 3, 8]),
)
def test_values_and_first_and_second_derivatives_equal_xlas(
  size, kernel, strides, padding, channels
):
  hypothesis.assume(padding != ((-1, 1),) * 2 or max(kernel) <= 3)
  with jax.enable_x64(True):
    x = _normal(0, (2, *size, channels), jnp.float64)
    w = _normal(1, (*kernel, channels, 3), jnp.float64)

    def derivatives(convolution, x, w):
      def fn(x, w):
        y = convolution(x, w, strides, padding, dimension_numbers=NHWC)
        return jnp.sum(jnp.sin(y)), y

      def squared_gradient(x, w):
        grads, y = jax.grad(fn, (0, 1), has_aux=True)(x, w)
        return sum(jnp.sum(g**2) for g in grads), (grads, y)

      return jax.grad(squared_gradient, (0, 1), has_aux=True)(x, w)

    _assert_both_agree(derivatives, x, w, tolerance=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
  "n, wanted, expected",
  [
    (75, 0.9, 1),
    (75, 28.6, 25),  # No padding, though 28 would be nearer.
    (5, 1.9, 1),
    (5, 4.0, 5),
    (79, 3.0, 3),  # A prime has no other way than padding.
    (4, 100.0, 4),
    (0, 0.0, 1),
  ],
)
def test_blocks_are_of_one_size_where_possible(n, wanted, expected):
  assert blocks._count(n, wanted) == expected


@pytest.mark.parametrize(
  "channels, mode", [(1, "reverse"), (8, "reverse"), (8, "forward")]
)
def test_second_derivatives_equal_xlas_under_vmap_over_kernels(channels, mode):
  """The gradient of a squared gradient, as in MAML, and its jvp, per task."""
  with jax.enable_x64(True):
    x = _normal(0, (3, 2, 5, 5, channels), jnp.float64)
    w = _normal(1, (3, 3, 3, channels, 4), jnp.float64)

    def second_order(convolution, x, w):
      def loss(x, w):
        y = convolution(x, w, (2, 2), "SAME", dimension_numbers=NHWC)
        return jnp.sum(jnp.tanh(y))

      def squared_gradient(x, w):
        grads = jax.grad(loss, (0, 1))(x, w)
        return sum(jnp.sum(g**2) for g in grads)

      def per_task(x, w):
        if mode == "reverse":
          return jax.grad(squared_gradient, (0, 1))(x, w)
        return jax.jvp(jax.grad(loss, (0, 1)), (x, w), (x, w))

      return jax.vmap(per_task)(x, w)

    _assert_both_agree(second_order, x, w, tolerance=1e-10)


def _third_derivatives(convolution, x, w, stride):
  """Values, gradients and all further derivatives along (x, w), to the third.

  In reverse mode, forward over reverse, and forward over that.
  """

  def loss(x, w):
    y = convolution(x, w, (stride, stride), "SAME", dimension_numbers=NHWC)
    return jnp.sum(jnp.sin(y)), y

  gradient = jax.grad(loss, (0, 1), has_aux=True)

  def along(x, w):
    return jax.jvp(lambda *a: gradient(*a)[0], (x, w), (x, w))

  grads, y = gradient(x, w)
  return y, grads, jax.jvp(along, (x, w), (w.sum() * x, w))


@pytest.mark.slow
@pytest.mark.parametrize(
  "mapped", slow_but(["both"], ["kernels", "inputs", "both"])
)
@pytest.mark.parametrize(
  "shape, kernel, stride",
  [
    ((5, 6, 9, 8), (3, 3), 1),
    ((4, 4, 4, 8), (2, 3), 1),
    ((7, 5, 3, 8), (3, 3), 1),
    ((5, 6, 7, 8), (3, 3), 2),
    ((5, 6, 7, 3), (3, 3), 1),
  ],
  ids=str,
)
def test_blocks_have_xlas_derivatives_to_third_order(
  shape, kernel, stride, mapped, small_blocks
):
  """Five images in blocks of whole ones, seven with a rest of zeros."""
  with jax.enable_x64(True):
    x = _normal(0, (2, *shape), jnp.float64)
    w = _normal(1, (2, *kernel, shape[-1], 4), jnp.float64)
    axes = (
      None if mapped == "kernels" else 0,
      None if mapped == "inputs" else 0,
    )
    x, w = (
      a if axis == 0 else a[0] for a, axis in zip((x, w), axes, strict=True)
    )

    def derivatives(convolution, x, w):
      one = functools.partial(_third_derivatives, convolution, stride=stride)
      return jax.vmap(one, axes)(x, w)

    _assert_both_agree(
      derivatives, x, w, tolerance=1e-9, convolution=blocked_conv
    )


@pytest.mark.slow
@FEW_EXAMPLES
@hypothesis.given(
  size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
  rows=st.integers(1, 3),
  padding=st.sampled_from(
    ["SAME", "VALID", ((1, 0), (0, 2)), ((0, 1), (-1, 1))]
  ),
  num_images=st.sampled_from([0, 1, 3]),
)
def test_filters_equal_xlas_convolution(size, rows, padding, num_images):
  with jax.enable_x64(True):
    x = _normal(0, (num_images, *size, 8), jnp.float64)
    w = _normal(1, (rows, 3, 8, 2), jnp.float64)
    np.testing.assert_allclose(
      blocked_conv(x, w, (1, 1), padding),
      lax.conv_general_dilated(x, w, (1, 1), padding, dimension_numbers=NHWC),
      atol=1e-12,
    )


def test_filters_round_as_a_direct_convolution_does():
  x, w = _normal(0, (8, 16, 16, 32)), _normal(1, (3, 3, 32, 32))
  with jax.enable_x64(True):
    wide = (jnp.asarray(a, jnp.float64) for a in (x, w))
    exact = lax.conv_general_dilated(
      *wide, (1, 1), "SAME", dimension_numbers=NHWC
    )
    exact = np.asarray(exact)
  errors = [
    np.abs(np.asarray(convolution(x, w, (1, 1), "SAME")) - exact).max()
    for convolution in (blocked_conv, patch_conv)
  ]
  assert errors[0] < 1.5 * errors[1]
  assert errors[0] < 5e-6 * np.abs(exact).max()


def test_filters_take_half_of_the_products_and_blocks_no_memory():
  """Multiplications and the temporaries of the compiled gradient."""
  x, w = jnp.zeros((60, 16, 16, 32)), jnp.zeros((3, 3, 32, 32))
  direct = 2 * 3 * 3 * 32 * 32 * 16 * 16

  def compiled(convolution, x):
    def loss(x, w):
      return jnp.sum(convolution(x, w, (1, 1), "SAME") ** 2)

    return jax.jit(jax.grad(loss, (0, 1))).lower(x, w).compile()

  flops = compiled(blocked_conv, x[:1]).cost_analysis()["flops"]
  assert flops < 0.75 * 3 * direct  # A half, and the additions.
  temporaries, of_patches = (
    compiled(convolution, x).memory_analysis().temp_size_in_bytes
    for convolution in (blocked_conv, patch_conv)
  )
  assert temporaries < x.nbytes + 3 * blocks.BLOCK_BYTES
  assert of_patches > 9 * x.nbytes


@pytest.mark.parametrize(
  "dtype, stride, columns, filtered",
  [
    (jnp.float32, 1, 3, True),
    (jnp.bfloat16, 1, 3, False),
    (jnp.float32, 2, 3, False),
    (jnp.float32, 1, 4, False),
  ],
)
def test_what_filters_take(dtype, stride, columns, filtered):
  """In 16 bits the sums before the products would round too much."""
  x, w = jnp.zeros((1, 8, 8, 8), dtype), jnp.zeros((3, columns, 8, 2), dtype)
  jaxpr = jax.make_jaxpr(lambda x, w: blocked_conv(x, w, (stride,) * 2, "SAME"))
  products = [e for e in jaxpr(x, w).eqns if e.primitive.name == "dot_general"]
  assert len(products) == (6 if filtered else 1)
  assert winograd.takes(x, w, (stride, stride), ((1, 1), (1, 1))) == filtered


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize(
  "dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)]
)
def test_dtypes(channels, dtype, tolerance):
  x, w = _normal(0, (2, 6, 6, channels)), _normal(1, (3, 3, channels, 4))
  ours = patch_conv(x.astype(dtype), w.astype(dtype), (2, 2), "SAME")
  reference = lax.conv_general_dilated(
    x, w, (2, 2), "SAME", dimension_numbers=NHWC
  )
  assert ours.dtype == dtype
  scale = jnp.abs(reference).max()
  assert jnp.abs(ours.astype(jnp.float32) - reference).max() < tolerance * scale
  wide = patch_conv(
    x.astype(dtype),
    w.astype(dtype),
    (2, 2),
    "SAME",
    preferred_element_type=jnp.float32,
  )
  assert wide.dtype == jnp.float32

  def loss(convolution, x, w):
    y = convolution(x, w, (2, 2), "SAME", dimension_numbers=NHWC)
    return jnp.sum(jnp.square(y.astype(jnp.float32)))

  grads = jax.grad(functools.partial(loss, patch_conv), (0, 1))(
    x.astype(dtype), w.astype(dtype)
  )
  expected = jax.grad(
    functools.partial(loss, lax.conv_general_dilated), (0, 1)
  )(x, w)
  for found, wanted in zip(grads, expected, strict=True):
    assert found.dtype == dtype
    error = jnp.abs(found.astype(jnp.float32) - wanted).max()
    assert error < tolerance * jnp.abs(wanted).max()


@pytest.mark.parametrize(
  "argument",
  [
    {"lhs_dilation": (2, 1)},
    {"rhs_dilation": (1, 2)},
    {"feature_group_count": 2},
    {"batch_group_count": 2},
    {"dimension_numbers": ("NCHW", "HWIO", "NHWC")},
    {"dimension_numbers": None},
  ],
)
def test_what_patches_cannot_do_is_an_error(argument):
  x, w = jnp.zeros((2, 4, 4, 2)), jnp.zeros((3, 3, 2, 2))
  with pytest.raises(ValueError, match=next(iter(argument))):
    patch_conv(x, w, (1, 1), "SAME", **argument)


@pytest.mark.parametrize(
  "x_shape, w_shape, message",
  [
    ((4, 4, 2), (3, 3, 2, 2), "NHWC"),
    ((2, 4, 4, 2), (3, 3, 3, 2), "channels"),
    ((2, 2, 4, 2), (3, 3, 2, 2), "smaller than the kernel"),
  ],
)
@pytest.mark.parametrize("convolution", [patch_conv, blocked_conv])
def test_shapes_that_do_not_fit_are_an_error(
  x_shape, w_shape, message, convolution
):
  with pytest.raises(ValueError, match=message):
    convolution(jnp.zeros(x_shape), jnp.zeros(w_shape), (1, 1), "VALID")


@pytest.mark.parametrize("channels", [1, 16])
def test_flax_layer_keeps_its_parameters(channels):
  x = _normal(0, (2, 7, 7, channels))
  arguments = dict(features=4, kernel_size=(3, 3), strides=2)
  flax_conv = nn.Conv(**arguments)
  ours = nn.Conv(**arguments, conv_general_dilated_cls=lambda: patch_conv)
  params = flax_conv.init(jax.random.key(1), x)
  jax.tree.map(
    np.testing.assert_array_equal, params, ours.init(jax.random.key(1), x)
  )
  np.testing.assert_allclose(
    ours.apply(params, x), flax_conv.apply(params, x), rtol=1e-5, atol=1e-5
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  "lowering, convolves",
  [("patches", False), ("blocks", False), ("auto", False), ("xla", True)],
)
def test_second_order_gradient_of_many_tasks_has_no_convolution(
  lowering, convolves
):
  model = conv4(3, filters=8, num_blocks=2, conv_lowering=lowering)
  x = jnp.zeros((4, 3, 8, 8, 1))  # 4 tasks of 3 images.
  params = jax.eval_shape(model.init, jax.random.key(0), x[0])

  def meta_loss(params, x):
    def loss(params):
      return jnp.sum(model.apply(params, x) ** 2)

    adapted = jax.tree.map(lambda p, g: p - g, params, jax.grad(loss)(params))
    return loss(adapted)

  def mean_loss(params):
    return jax.vmap(meta_loss, (None, 0))(params, x).mean()

  jaxpr = str(jax.make_jaxpr(jax.grad(mean_loss))(params))
  assert "dot_general" in jaxpr
  for word in ("conv_general_dilated", "feature_group_count"):
    assert (word in jaxpr) == convolves


@pytest.mark.parametrize("channels", [1, 8])
def test_tasks_with_one_kernel_share_one_matrix_product(channels):
  """vmap over inputs alone never copies the kernel for every task."""
  x, w = jnp.zeros((5, 2, 4, 4, channels)), jnp.zeros((3, 3, channels, 2))

  def convolve(x, w):
    return patch_conv(x, w, (2, 2), "SAME")

  jaxpr = jax.make_jaxpr(jax.vmap(convolve, (0, None)))(x, w)
  products = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
  assert len(products) == 1
  # Few channels: one kernel per image position in the task, none per task.
  copies = 2 if channels == 1 else 1
  assert products[0].invars[1].aval.size == copies * w.size


def _numpy_conv4(params, images, strided):
  """One block of `conv4` with batch norm, slowly, in float64."""
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), params["params"])
  kernel, norm = params["Conv_0"]["kernel"], params["BatchNorm_0"]
  n, size, _, _ = images.shape
  stride = 2 if strided else 1
  # SAME padding of a 3x3 kernel on an even image: stride 2 pads the end only.
  low = 0 if strided else 1
  padded = np.zeros((n, size + 3, size + 3, images.shape[3]))
  padded[:, low : low + size, low : low + size] = images
  out = np.zeros((n, size // stride, size // stride, kernel.shape[3]))
  for i in range(out.shape[1]):
    for j in range(out.shape[2]):
      a, b = stride * i, stride * j
      window = padded[:, a : a + 3, b : b + 3]
      out[:, i, j] = np.einsum("nabc,abco->no", window, kernel)
  mean, variance = out.mean((0, 1, 2)), out.var((0, 1, 2))
  out = (out - mean) / np.sqrt(variance + 1e-5) * norm["scale"] + norm["bias"]
  out = np.maximum(out, 0.0)
  if strided:
    out = out.mean((1, 2))
  else:
    half = size // 2
    out = out.reshape(n, half, 2, half, 2, -1).max((2, 4)).reshape(n, -1)
  return out @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [4, 5])  # An odd one is not taken apart.
def test_a_first_layer_in_blocks_is_the_whole_one(size, monkeypatch):
  """Its convolution, statistics and pooling, of the real images."""
  monkeypatch.setattr(blocks, "BLOCK_BYTES", 3_000)
  with jax.enable_x64(True):
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=(6, size, size, 3)))
    mask = jnp.arange(6) != 2
    models = {
      lowering: conv4(
        2, filters=4, num_blocks=1, strided=False, conv_lowering=lowering
      )
      for lowering in ("blocks", "patches")
    }
    params = {
      k: model.init(jax.random.key(0), x) for k, model in models.items()
    }
    chex.assert_trees_all_close(params["blocks"], params["patches"])
    own = jax.tree.map(
      lambda p: p + draw.normal(size=p.shape), params["blocks"]
    )

    def loss(params, model):
      y = model.apply(params, x, mask)
      return jnp.where(mask[:, None], jnp.sin(y), 0.0).sum()

    def second(params, model):
      gradient = functools.partial(jax.grad(loss), model=model)
      return jax.jvp(gradient, (params,), (params,))

    found, expected = (
      jax.jit(functools.partial(second, model=model))(own)
      for model in models.values()
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_first_layer_in_blocks_never_holds_its_outputs():
  images = jax.ShapeDtypeStruct((64, 64, 64, 3), jnp.float32)

  def temporaries(lowering):
    model = conv4(
      None, filters=32, num_blocks=1, strided=False, conv_lowering=lowering
    )
    params = jax.eval_shape(model.init, jax.random.key(0), images)
    gradient = jax.grad(lambda params, x: model.apply(params, x).sum())
    compiled = jax.jit(gradient).lower(params, images).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporaries("blocks") < temporaries("patches") / 2


@pytest.mark.parametrize(
  "strided, lowering",
  [(True, "patches"), (False, "patches"), (False, "blocks"), (True, "xla")],
)
def test_network_equals_numpy(strided, lowering):
  model = conv4(
    3, filters=4, num_blocks=1, strided=strided, conv_lowering=lowering
  )
  x = _normal(0, (5, 6, 6, 2))
  params = model.init(jax.random.key(1), x)
  # Scales other than 1 and biases other than 0.
  params = jax.tree.map(lambda p: p + 0.3 * _normal(p.size, p.shape), params)
  np.testing.assert_allclose(
    model.apply(params, x),
    _numpy_conv4(params, np.asarray(x, np.float64), strided),
    rtol=1e-4,
    atol=1e-5,
  )


@pytest.mark.parametrize("strided, features", [(True, 8), (False, 8 * 7 * 7)])
def test_parameters_and_embedding(strided, features):
  x = _normal(0, (2, 28, 28, 1))
  model = conv4(None, filters=8, num_blocks=2, strided=strided)
  params = jax.eval_shape(model.init, jax.random.key(1), x)["params"]
  assert jax.tree.map(jnp.shape, params) == {
    "Conv_0": {"kernel": (3, 3, 1, 8)},
    "Conv_1": {"kernel": (3, 3, 8, 8)},
    "BatchNorm_0": {"scale": (8,), "bias": (8,)},
    "BatchNorm_1": {"scale": (8,), "bias": (8,)},
  }
  embedding = jax.eval_shape(model.apply, {"params": params}, x)
  assert embedding.shape == (2, features)


@pytest.mark.slow
@pytest.mark.parametrize(
  "normalization, transductive",
  [("batch", True), ("layer", False), ("group", False), ("none", False)],
)
def test_only_batch_norm_lets_queries_see_each_other(
  normalization, transductive
):
  model = conv4(3, filters=8, num_blocks=2, normalization=normalization)
  x = _normal(0, (4, 8, 8, 1))
  params = model.init(jax.random.key(1), x)
  other_company = x.at[1:].set(_normal(2, (3, 8, 8, 1)))
  difference = jnp.abs(
    model.apply(params, x)[0] - model.apply(params, other_company)[0]
  ).max()
  assert (difference > 1e-2) if transductive else (difference < 1e-5)


@pytest.mark.parametrize(
  "arguments", [{"normalization": "instance"}, {"conv_lowering": "fft"}]
)
def test_unknown_choices_list_the_allowed_ones(arguments):
  with pytest.raises(ValueError, match=r"must be one of .*(batch|patches)"):
    conv4(5, **arguments)


@pytest.mark.slow
def test_context_scales_and_shifts_the_channels_of_the_third_block():
  """Which kernels and biases of that block can do as well."""
  images, context = _normal(0, (3, 28, 28, 1)), jnp.array([0.3, -0.7])
  wide = jnp.concatenate(
    [images, jnp.broadcast_to(context, (3, 28, 28, 2))], axis=-1
  )
  options = {"filters": 4, "normalization": "none"}
  network = conv4(5, num_context=2, **options)
  params = network.init(jax.random.key(1), wide)["params"]
  params["Conv_2"]["bias"] = _normal(2, (4,))
  plain = dict(params)
  scale, shift = jnp.split(context @ plain.pop("modulation")["kernel"], 2)
  plain["Conv_2"] = {
    "kernel": (1 + scale) * params["Conv_2"]["kernel"],
    "bias": (1 + scale) * params["Conv_2"]["bias"] + shift,
  }
  expected = conv4(5, **options).apply({"params": plain}, images)
  given = network.apply({"params": params}, wide)
  np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)
  assert np.abs(given - network.apply({"params": params}, 0 * wide)).max() > 0.1


@pytest.mark.slow
def test_context_passes_a_normalisation_by_the_batch():
  """A constant channel would not: but for the edges, it is subtracted."""
  images = _normal(0, (3, 28, 28, 1))
  network = conv4(5, filters=4, num_context=2)

  def predict(context):
    numbers = jnp.broadcast_to(context, (3, 28, 28, 2))
    return network.apply(params, jnp.concatenate([images, numbers], axis=-1))

  zero = jnp.zeros(2)
  params = network.init(
    jax.random.key(1), jnp.concatenate([images, jnp.zeros((3, 28, 28, 2))], -1)
  )
  plain = {k: v for k, v in params["params"].items() if k != "modulation"}
  np.testing.assert_allclose(
    predict(zero), conv4(5, filters=4).apply({"params": plain}, images)
  )
  assert np.abs(predict(zero + 1.0) - predict(zero)).max() > 0.1


def test_images_that_a_mesh_holds_apart_are_convolved_where_they_are(
  small_blocks,
):
  mesh = jax.make_mesh(
    (1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,)
  )
  x, w = _normal(0, (6, 8, 8, 8)), _normal(1, (3, 3, 8, 4))
  expected = blocked_conv(x, w, (1, 1), "SAME")
  with jax.set_mesh(mesh):
    x = jax.device_put(x, jax.sharding.PartitionSpec("x"))
    grads = jax.jit(
      jax.grad(lambda w: blocked_conv(x, w, (1, 1), "SAME").sum())
    )(w)
    found = jax.jit(lambda x: blocked_conv(x, w, (1, 1), "SAME"))(x)
    jaxpr = jax.make_jaxpr(lambda x: blocked_conv(x, w, (1, 1), "SAME"))(x)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
  assert grads.shape == w.shape
  assert "scan" not in str(jaxpr)


@pytest.mark.parametrize("normalization", ["batch", "none"])
def test_no_image_has_no_output(normalization):
  network = conv4(3, filters=2, num_blocks=2, normalization=normalization)
  shape = (8, 8, 1)
  params = network.init(jax.random.key(0), jnp.ones((1, *shape)))
  assert network.apply(params, jnp.ones((0, *shape))).shape == (0, 3)
