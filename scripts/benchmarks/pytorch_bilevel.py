"""Hypergradients in PyTorch and TorchOpt, in the style of their examples.

The module needs torch and torchopt. Each function returns programs that compute
the gradient of the mean cross-entropy of the validation examples.
"""

import warnings
from collections.abc import Callable

import torch
import torchopt
from torch.nn.functional import binary_cross_entropy_with_logits as logistic

# TorchOpt 0.7.3 uses deprecated names of torch.
warnings.filterwarnings("ignore", "We've integrated functorch", FutureWarning)

Tensor = torch.Tensor
Programs = dict[str, Callable[[Tensor], Tensor]]


def penalties(
  train: tuple[Tensor, Tensor],
  valid: tuple[Tensor, Tensor],
  rate: float,
  steps: int,
) -> Programs:
  """Gradients by a penalty of each feature, as in Betty's and TorchOpt's.

  The inner loss is the cross-entropy plus `penalty @ w**2 / 2`. The weights
  start at 0 and take steps of SGD.

  Args:
    train: inputs `[n, features]` and labels `[n]`, 0 or 1.
    valid: as `train`.
    rate: the step size.
    steps: the number of steps.
  """
  x, y = train

  def inner_loss(w: Tensor, penalty: Tensor) -> Tensor:
    return logistic(x @ w, y) + penalty @ w**2 / 2

  def outer_gradient(w: Tensor, penalty: Tensor) -> Tensor:
    loss = logistic(valid[0] @ w, valid[1])
    return torch.autograd.grad(loss, penalty)[0]

  def start(penalty: Tensor) -> Tensor:
    return torch.zeros_like(penalty, requires_grad=True)

  def plain(penalty: Tensor) -> Tensor:
    w = start(penalty)
    for _ in range(steps):
      loss = inner_loss(w, penalty)
      w = w - rate * torch.autograd.grad(loss, w, create_graph=True)[0]
    return outer_gradient(w, penalty)

  def explicit(penalty: Tensor) -> Tensor:
    w = (start(penalty),)
    optimizer = torchopt.sgd(rate)
    state = optimizer.init(w)
    for _ in range(steps):
      loss = inner_loss(w[0], penalty)
      grads = torch.autograd.grad(loss, w, create_graph=True)
      updates, state = optimizer.update(grads, state, inplace=False)
      w = torchopt.apply_updates(w, updates, inplace=False)
    return outer_gradient(w[0], penalty)

  def implicit(penalty: Tensor) -> Tensor:
    @torchopt.diff.implicit.custom_root(
      torch.func.grad(inner_loss),
      argnums=1,
      solve=torchopt.linear_solve.solve_cg(rtol=1e-6, atol=0.0, maxiter=100),
    )
    def solve(w: Tensor, penalty: Tensor) -> Tensor:
      fixed = penalty.detach()
      w = w.detach().requires_grad_()
      with torch.enable_grad():
        for _ in range(steps):
          grads = torch.autograd.grad(inner_loss(w, fixed), w)[0]
          w = (w - rate * grads).detach().requires_grad_()
      return w

    return outer_gradient(solve(start(penalty), penalty), penalty)

  return {
    "unrolled, torch": plain,
    "unrolled, TorchOpt": explicit,
    "implicit, TorchOpt": implicit,
  }


def reweighting(
  train: tuple[Tensor, Tensor],
  valid: tuple[Tensor, Tensor],
  start: Tensor,
  rate: float,
) -> Programs:
  """Gradients by weights of examples through one step (Ren et al. 2018).

  Args:
    train: inputs `[n, features]` and labels `[n]`, 0 or 1.
    valid: as `train`.
    start: `[features]`, the weights of the model before the step.
    rate: the step size.
  """
  x, y = train

  def loss_of(w: Tensor, weights: Tensor) -> Tensor:
    return weights @ logistic(x @ w, y, reduction="none")

  def outer_gradient(w: Tensor, weights: Tensor) -> Tensor:
    loss = logistic(valid[0] @ w, valid[1])
    return torch.autograd.grad(loss, weights)[0]

  def plain(weights: Tensor) -> Tensor:
    w = start.clone().requires_grad_()
    loss = loss_of(w, weights)
    w = w - rate * torch.autograd.grad(loss, w, create_graph=True)[0]
    return outer_gradient(w, weights)

  def meta_optimizer(weights: Tensor) -> Tensor:
    model = torch.nn.Linear(len(start), 1, bias=False, dtype=start.dtype)
    with torch.no_grad():
      model.weight.copy_(start[None])
    optimizer = torchopt.MetaSGD(model, lr=rate)
    optimizer.step(loss_of(model.weight[0], weights))
    return outer_gradient(model.weight[0], weights)

  return {
    "reweighting, torch": plain,
    "reweighting, TorchOpt": meta_optimizer,
  }
