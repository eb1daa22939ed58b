"""Networks: pure functions `init(rng, inputs)` and `apply(params, inputs)`."""
