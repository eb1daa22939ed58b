from metajax.tasks.sinusoid import sinusoid
