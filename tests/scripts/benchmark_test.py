"""Tests of what benchmarks compute beside seconds, and of their bad flags."""

import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import bilevel
from scripts.benchmarks import everything, exchange, growth

ROOT = Path(__file__).resolve().parents[2]
ALL = ["--suite=all", "--out=OUT"]


def test_settings_are_every_protocol_model_order_and_query_once():
  names = [tuple(s.values()) for s in everything.settings()]
  assert len(names) == len(set(names))
  usual = [n for n in names if n[:3] == ("maml", 32, 1) and len(n) == 8]
  assert len(usual) == 4 * 2 * 2 * 2
  suites = {s["suite"] for s in everything.settings()}
  assert suites == {
    *("maml", "scaling", "inner_loop", "replay", "aggregation", "bilevel")
  }


def test_settings_have_flags_of_their_suite_alone():
  """The script refuses others."""
  suites_of = runpy.run_path(str(ROOT / "scripts/benchmark.py"))["suites_of"]
  for setting in everything.settings():
    for name in setting:
      assert setting["suite"] in suites_of(name), (setting, name)
  assert suites_of("lengths") == ["context"]
  assert suites_of("suite") == suites_of("repeats") and "all" in suites_of(
    "json"
  )


def test_all_reduce_bytes_are_of_what_the_program_exchanges():
  text = """
  %a.1 = f32[] parameter(0)
  %r.1 = f32[64,5]{1,0} all-reduce(f32[64,5]{1,0} %p), to_apply=%add
  %r.2 = (f32[3]{0}, bf16[2,2]{1,0}) all-reduce(%x, %y), to_apply=%add
  %r.3 = (f32[], s32[7]{0}) all-reduce-start(%u, %v), to_apply=%add
  %d.3 = (f32[], s32[7]{0}) all-reduce-done(%r.3)
  """
  program = SimpleNamespace(as_text=lambda: text)
  numbers = 64 * 5 * 4 + 3 * 4 + 4 * 2 + 4 + 7 * 4
  assert exchange.all_reduce_bytes(program) == numbers


def test_operations_of_products_count_loops_as_often_as_they_run():
  def power(x):  # [4, 5, 5]
    def times(y, _):
      return jax.vmap(jnp.matmul)(y, x), None

    y, _ = jax.lax.scan(jax.checkpoint(times), x, length=3)
    return jnp.einsum("bij,kj->bik", y, x[0, :2])

  x = jnp.zeros((4, 5, 5))
  expected = 3 * 4 * 2 * 5**3 + 4 * 2 * 5 * 2 * 5
  assert growth.operations_of_products(jax.make_jaxpr(power)(x).jaxpr) == (
    expected
  )
  # The same, as XLA counts it without a loop.
  flat = jax.jit(lambda x: jnp.matmul(jnp.matmul(jnp.matmul(x, x), x), x))
  counted = flat.lower(x).compile().cost_analysis()["flops"]
  assert counted == growth.operations_of_products(jax.make_jaxpr(flat)(x).jaxpr)

  def forever(x):
    return jax.lax.while_loop(lambda y: y.sum() < 1, lambda y: y @ y, x)

  with pytest.raises(ValueError, match="while loop"):
    growth.operations_of_products(jax.make_jaxpr(forever)(x[0]).jaxpr)


def test_operations_of_a_linear_solve_are_those_that_run():
  """A product for the first residual, and one in each of 7 steps."""
  x, matrix = jnp.ones(5), jnp.eye(5)

  def solve(matrix, x):
    return bilevel.conjugate_gradients(7)(lambda v: matrix @ v, x)

  traced = jax.make_jaxpr(solve)(matrix, x).jaxpr
  found = growth.operations_of_products(traced, iterations=7)
  # The scalar products of vectors: one before, and two in each step, and those
  # of the tolerance.
  vectors = 2 * 5 * (1 + 2 * 7 + 1)
  assert found == 2 * 25 * 8 + vectors
  with pytest.raises(ValueError, match="while loop"):
    growth.operations_of_products(traced)


def test_exponents_are_of_powers():
  x = [5, 10, 20]
  for exponent in (0.0, 1.0, 2.5):
    y = [3.0 * n**exponent for n in x]
    np.testing.assert_allclose(growth.exponent(x, y), exponent, atol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_estimate_is_the_time_of_a_ring_that_is_played(n):
  size, rate, hop = 24_000, 1e6, 1e-3
  # sums[d][c]: whose numbers the part c on device d has in it.
  sums = [[{d} for _ in range(n)] for d in range(n)]
  seconds, everyone = 0.0, set(range(n))
  while any(part != everyone for device in sums for part in device):
    # In each round a device sends one part to the next one.
    round_number = round(seconds / (size / n / rate + hop))
    sent = [
      ((d - round_number) % n, sums[d][(d - round_number) % n])
      for d in range(n)
    ]
    for d, (part, names) in enumerate(sent):
      sums[(d + 1) % n][part] = sums[(d + 1) % n][part] | names
    seconds += size / n / rate + hop
  estimate = exchange.all_reduce_seconds(size, n, rate, hop)
  np.testing.assert_allclose(estimate, seconds)


def test_estimates_are_those_of_the_documentation():
  seconds = [
    exchange.all_reduce_seconds(448_024, *target[1:])
    for target in exchange.TARGETS
  ]
  np.testing.assert_allclose(seconds, [72e-6, 44e-6], rtol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--suite=all"], "error: --out: needed with --suite=all, a folder for "),
    (ALL + ["--match=["], "error: --match=[: no regular expression ("),
    (ALL + ["--match=gpt"], "error: --match=gpt: no setting is called so; the"),
    (
      ["--members=8"],
      "error: --members: goes with --suite=aggregation, not maml: leave it out",
    ),
    (
      ["--suite=replay", "--tasks=8"],
      "error: --tasks: goes with --suite=maml or growth or scaling or "
      "streaming, not replay: leave it out.",
    ),
    (ALL + ["--ways=5"], "error: --ways: goes with --suite=maml or growth or "),
    (["--suite=bilevel", "--seconds=1"], "error: --seconds: goes with --suite"),
    (
      ["--model=mlp", "--filters=8"],
      "error: --filters: goes with --model=conv4, not mlp.",
    ),
    (
      ["--suite=streaming", "--channels=1"],
      "error: --channels=1: images in files have 3; leave it out.",
    ),
    (
      ["--suite=growth", "--model=mlp", "--grow=filters"],
      "error: --grow=filters: must be among ways,",
    ),
    (["--suite=growth", "--inner_steps=0"], "error: --inner_steps=0:"),
  ],
)
def test_bad_flags_are_named(arguments, message, tmp_path):
  arguments = [x.replace("OUT", str(tmp_path / "out")) for x in arguments]
  script = ROOT / "scripts/benchmark.py"
  done = subprocess.run(
    [sys.executable, script, *arguments],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 1
  assert message in done.stderr
  assert list(tmp_path.iterdir()) == []
