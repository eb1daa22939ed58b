# Sourced by scripts that compile much and compute little: machine code is made
# fast, and is slow. Needs the environment of environment.sh.
export JAX_DISABLE_MOST_OPTIMIZATIONS=${JAX_DISABLE_MOST_OPTIMIZATIONS-1}
# The emitters take half the time of all compilation on a CPU. An XLA that does
# not know a flag dies of it.
flags="${XLA_FLAGS:-} --xla_cpu_use_fusion_emitters=false"
if XLA_FLAGS=$flags python -c 'import jax; jax.devices()' > /dev/null 2>&1; then
  export XLA_FLAGS=$flags
fi
