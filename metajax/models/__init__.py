"""Networks: pure `init(rng, inputs)` and `apply(params, inputs)`."""
