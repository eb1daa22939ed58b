"""Few-shot learners in PyTorch, in the usual style of its users.

The module needs only torch. A task is four tensors: support images `[n,
channels, height, width]` and labels `[n]`, query images and labels. Several
tasks have one more axis in front.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.func import functional_call, grad, grad_and_value, vmap

Tensors = tuple[torch.Tensor, ...]
Params = dict[str, torch.Tensor]
# (params, task) -> scalar
Loss = Callable[[Params, Tensors], torch.Tensor]

cross_entropy = nn.functional.cross_entropy


class BatchNorm(nn.Module):
  """`nn.BatchNorm2d` without running statistics, in plain operations.

  `torch.func` needs this layer. With PyTorch's own layer, its second
  derivatives are wrong (2.13, CPU): meta-gradients were off by 0.2% to 3%, in
  float64, too. Eager PyTorch and this layer agree with finite differences.
  """

  def __init__(self, num_features: int):
    super().__init__()
    self.weight = nn.Parameter(torch.ones(num_features))
    self.bias = nn.Parameter(torch.zeros(num_features))

  def forward(self, x):
    centred = x - x.mean((0, 2, 3), keepdim=True)
    variance = centred.square().mean((0, 2, 3), keepdim=True)
    scale = self.weight[:, None, None] * (variance + 1e-5).rsqrt()
    return centred * scale + self.bias[:, None, None]


class Setting(NamedTuple):
  """The setting of a comparison.

  Attributes:
    learner: a key of `LEARNERS`.
    ways: number of classes.
    inner_steps: steps of the inner loop.
    inner_rate: step size of the inner loop.
    image_size: height and width.
    channels: channels of an image.
    filters: channels of each block.
    pooled: if True, stride 1 and max-pooling; if False, stride 2 and the mean
      over positions.
  """

  learner: str
  ways: int
  inner_steps: int
  inner_rate: float
  image_size: int
  channels: int
  filters: int
  pooled: bool


class Conv4(nn.Module):
  """The network of `metajax.models.conv.conv4`.

  With strides, the windows of the two networks are mirror images. For an even
  side, the windows with stride 2 start one pixel before the image in PyTorch,
  and end one pixel behind it in metajax.
  """

  def __init__(self, setting: Setting, *, plain: bool = False):
    super().__init__()
    filters, size = setting.filters, setting.image_size
    layers: list[nn.Module] = []
    for block in range(4):
      stride = 1 if setting.pooled else 2
      layers += [
        nn.Conv2d(
          filters if block else setting.channels,
          filters,
          3,
          stride=stride,
          padding=1,
          bias=False,
        ),
        BatchNorm(filters)
        if plain
        else nn.BatchNorm2d(filters, track_running_stats=False),
        nn.ReLU(),
      ]
      if setting.pooled:
        layers.append(nn.MaxPool2d(2))
        size //= 2
    self.blocks = nn.Sequential(*layers)
    self.pooled = setting.pooled
    width = filters * size**2 if self.pooled else filters
    self.head = nn.Identity()
    if setting.learner not in ENCODED:
      self.head = nn.Linear(width, setting.ways)
    if setting.learner == "ridge":
      self.log_strength = nn.Parameter(torch.zeros(()))
      self.log_scale = nn.Parameter(torch.zeros(()))

  def forward(self, x):
    x = self.blocks(x)
    return self.head(x.flatten(1) if self.pooled else x.mean((2, 3)))


def adaptation(model, setting: Setting, params, task, inner_grad):
  """Returns MAML's query loss after gradient steps on the support."""
  x, y, query_x, query_y = task
  chosen = "head" if setting.learner == "anil" else ""
  inner = {k: v for k, v in params.items() if k.startswith(chosen)}
  for _ in range(setting.inner_steps):
    grads = inner_grad(
      lambda inner: cross_entropy(
        functional_call(model, params | inner, (x,)), y
      ),
      inner,
      setting.learner != "fomaml",
    )
    inner = {k: v - setting.inner_rate * grads[k] for k, v in inner.items()}
  return cross_entropy(
    functional_call(model, params | inner, (query_x,)), query_y
  )


def prototypes(model, setting: Setting, params, task, inner_grad):
  """Returns the query loss of prototypical networks."""
  x, y, query_x, query_y = task
  support, query = (functional_call(model, params, (i,)) for i in (x, query_x))
  members = nn.functional.one_hot(y, setting.ways).to(support.dtype)
  means = (members.T @ support) / members.sum(0)[:, None]
  return cross_entropy(-(torch.cdist(query, means) ** 2), query_y)


def ridge(model, setting: Setting, params, task, inner_grad):
  """Returns the query loss after ridge regression on the support's features."""
  x, y, query_x, query_y = task
  support, query = (functional_call(model, params, (i,)) for i in (x, query_x))
  targets = nn.functional.one_hot(y, setting.ways).to(support.dtype)
  offset, centre = targets.mean(0), support.mean(0)
  rows = support - centre
  eye = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
  gram = rows @ rows.T + params["log_strength"].exp() * eye
  weights = rows.T @ torch.linalg.solve(gram, targets - offset)
  scores = (query - centre) @ weights + offset
  return cross_entropy(params["log_scale"].exp() * scores, query_y)


def supervised(model, setting: Setting, params, task, inner_grad):
  """Returns the loss of a batch of images and labels."""
  x, y = task
  return cross_entropy(functional_call(model, params, (x,)), y)


LEARNERS = {
  "maml": adaptation,
  "fomaml": adaptation,
  "anil": adaptation,
  "prototypical": prototypes,
  "ridge": ridge,
  "supervised": supervised,
}
ENCODED = ("prototypical", "ridge")


def by_autograd(loss, params: Params, differentiable: bool) -> Params:
  grads = torch.autograd.grad(
    loss(params), list(params.values()), create_graph=differentiable
  )
  return dict(zip(params, grads, strict=True))


def by_func(loss, params: Params, differentiable: bool) -> Params:
  grads = grad(loss)(params)
  if differentiable:
    return grads
  return {name: g.detach() for name, g in grads.items()}


def eager(model, setting: Setting, tasks: Tensors) -> None:
  """Loops over tasks with a backward pass each, like learn2learn and higher."""
  loss_fn, params = LEARNERS[setting.learner], dict(model.named_parameters())
  model.zero_grad()
  for task in zip(*tasks, strict=True):
    loss = loss_fn(model, setting, params, task, by_autograd)
    (loss / len(tasks[0])).backward()


def functional(model, setting: Setting, tasks: Tensors, compiled=None) -> None:
  """Computes all tasks at once, by the transformations of `torch.func`."""
  params = {k: v.detach() for k, v in model.named_parameters()}
  grads = (compiled or mean_gradient(model, setting))(params, tasks)
  for name, param in model.named_parameters():
    param.grad = grads[name]


def mean_gradient(model, setting: Setting):
  """Returns `(params, tasks) -> grads` of the mean loss."""
  loss_fn = LEARNERS[setting.learner]

  def mean_loss(params, tasks):
    def loss(*task):
      return loss_fn(model, setting, params, task, by_func)

    return vmap(loss)(*tasks).mean()

  return lambda params, tasks: grad_and_value(mean_loss)(params, tasks)[0]


class Peer(NamedTuple):
  """A way to compute a gradient in PyTorch.

  Attributes:
    build: `(model, setting) -> gradient`. `gradient(tasks)` writes the gradient
      to `param.grad`.
    plain: whether the network needs layers of plain operations.
  """

  build: Callable[[nn.Module, Setting], Callable[[Tensors], None]]
  plain: bool = False


def peers(setting: Setting, compiled: bool = False) -> dict[str, Peer]:
  """Returns the ways to compute a learner's gradient, by name.

  Args:
    setting: the setting of the comparison.
    compiled: whether to add `torch.compile`. A compiled function cannot be
      differentiated twice. With an inner loop, `torch.compile` therefore
      compiles the whole gradient of `torch.func`. Otherwise it compiles the
      network.
  """
  has_loop = LEARNERS[setting.learner] is adaptation
  found = {"PyTorch, eager": Peer(_build(eager))}
  if has_loop:
    found["PyTorch, torch.func"] = Peer(_build(functional), plain=True)
  if compiled:
    build = _compiled_gradient if has_loop else _compiled_network
    found["PyTorch, torch.compile"] = Peer(build, plain=has_loop)
  return found


def _build(gradient):
  return lambda model, setting: functools.partial(gradient, model, setting)


def _compiled_network(model, setting):
  return functools.partial(eager, torch.compile(model), setting)


def _compiled_gradient(model, setting):
  compiled = torch.compile(mean_gradient(model, setting))
  return functools.partial(functional, model, setting, compiled=compiled)


def meta_steps(
  gradient: Callable[[Tensors], None], model: nn.Module, tasks: Tensors
) -> Callable[[int], None]:
  """Returns `(steps)`, which takes steps of Adam and waits for the result."""
  optimizer = torch.optim.Adam(model.parameters(), 1e-3)

  def take(steps: int) -> None:
    for _ in range(steps):
      gradient(tasks)
      optimizer.step()
    if torch.cuda.is_available():
      torch.cuda.synchronize()

  return take
