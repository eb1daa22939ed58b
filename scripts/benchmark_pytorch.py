"""The MAML meta-step of `benchmark.py` in eager PyTorch, for comparison.

  python scripts/benchmark_pytorch.py --query_shots=15 --tasks=32 --json

What learn2learn and higher do, which no longer install: a Python loop over
tasks and inner steps, `torch.autograd.grad(create_graph=True)`, one backward
pass per task, Adam. It is given its tasks as tensors and samples nothing.
Needs torch alone; it uses all cores, or the GPU if there is one.
"""

import argparse
import json
import statistics
import time

import torch
from torch import nn
from torch.func import functional_call


class Conv4(nn.Module):
  """The network of `metajax.models.conv.conv4`."""

  def __init__(self, num_outputs: int, filters: int = 64):
    super().__init__()
    layers: list[nn.Module] = []
    for channels in (1, filters, filters, filters):
      layers += [
        nn.Conv2d(channels, filters, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(filters, track_running_stats=False),
        nn.ReLU(),
      ]
    self.blocks = nn.Sequential(*layers)
    self.head = nn.Linear(filters, num_outputs)

  def forward(self, x):
    return self.head(self.blocks(x).mean((2, 3)))


def meta_step(model, optimizer, tasks, inner_steps, inner_rate=0.4):
  loss_fn = nn.functional.cross_entropy
  optimizer.zero_grad()
  for (x, y), (query_x, query_y) in tasks:
    params = dict(model.named_parameters())
    for _ in range(inner_steps):
      loss = loss_fn(functional_call(model, params, (x,)), y)
      grads = torch.autograd.grad(
        loss, list(params.values()), create_graph=True
      )
      params = {
        name: value - inner_rate * grad
        for (name, value), grad in zip(params.items(), grads, strict=True)
      }
    loss_fn(functional_call(model, params, (query_x,)), query_y).backward()
  for param in model.parameters():
    param.grad.div_(len(tasks))
  optimizer.step()


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--ways", type=int, default=5)
  parser.add_argument("--shots", type=int, default=1)
  parser.add_argument("--query_shots", type=int, default=15)
  parser.add_argument("--tasks", type=int, default=32)
  parser.add_argument("--inner_steps", type=int, default=1)
  parser.add_argument("--repeats", type=int, default=15)
  parser.add_argument("--json", action="store_true")
  args = parser.parse_args()

  device = "cuda" if torch.cuda.is_available() else "cpu"
  model = Conv4(args.ways).to(device)
  optimizer = torch.optim.Adam(model.parameters(), 1e-3)

  def batch(shots):
    labels = torch.arange(args.ways).repeat_interleave(shots)
    images = torch.rand(len(labels), 1, 28, 28)
    return images.to(device), labels.to(device)

  tasks = [
    (batch(args.shots), batch(args.query_shots)) for _ in range(args.tasks)
  ]

  seconds = []
  for repeat in range(args.repeats + 2):  # The first two warm up.
    start = time.perf_counter()
    meta_step(model, optimizer, tasks, args.inner_steps)
    if device == "cuda":
      torch.cuda.synchronize()
    if repeat >= 2:
      seconds.append(time.perf_counter() - start)
  median = statistics.median(seconds)
  result = {
    **{k: v for k, v in vars(args).items() if k not in ("json", "repeats")},
    "seconds_per_meta_step": median,
    "seconds_min": min(seconds),
    "seconds_max": max(seconds),
    "tasks_per_second": args.tasks / median,
    "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    "threads": torch.get_num_threads(),
    "torch": torch.__version__,
  }
  for name, value in result.items():
    print(f"{name:24} {value}")
  if args.json:
    print(json.dumps(result))


if __name__ == "__main__":
  main()
