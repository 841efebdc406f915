"""What a JAX expert would write by hand: vmap over lanes, jit, scan over steps; the work of steady_state.py.

usage: jax_lanes.py H LANES. Needs jax and optax, which Shoal does not. Prints microseconds per lane-step, best of nine epochs, and
seconds of compiling.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

BATCH, STEPS, N_TRAIN, FEATURES, CLASSES = 32, 128, 4096, 64, 10

H, LANES = int(sys.argv[1]), int(sys.argv[2])
X = jax.random.normal(jax.random.PRNGKey(1), (N_TRAIN, FEATURES))
Y = (X @ jax.random.normal(jax.random.PRNGKey(2), (FEATURES, CLASSES))).argmax(1)
ADAM = optax.scale_by_adam()


def init(key: Any) -> Any:
    """Weights and biases of the MLP 64-h-h-10."""
    sizes = [(FEATURES, H), (H, H), (H, CLASSES)]
    keys = jax.random.split(key, 3)
    return [(jax.random.normal(k, s) * (1 / s[0]) ** 0.5, jnp.zeros(s[1])) for k, s in zip(keys, sizes, strict=True)]


def loss(params: Any, index: Any) -> Any:
    """Mean cross-entropy of one batch."""
    x = X[index]
    for w, b in params[:-1]:
        x = jax.nn.relu(x @ w + b)
    w, b = params[-1]
    return optax.softmax_cross_entropy_with_integer_labels(x @ w + b, Y[index]).mean()


def step(params: Any, state: Any, lr: Any, index: Any) -> Any:
    """One step of one lane."""
    value, grads = jax.value_and_grad(loss)(params, index)
    updates, state = ADAM.update(grads, state)
    return jax.tree.map(lambda p, u: p - lr * u, params, updates), state, value


def epoch(params: Any, state: Any, lr: Any, index: Any) -> Any:
    """All steps of all lanes; index (steps, lanes, batch)."""

    def body(carry: Any, batch: Any) -> Any:
        params, state, values = jax.vmap(step)(*carry, lr, batch)
        return (params, state), values

    return jax.lax.scan(body, (params, state), index)


def main() -> None:
    """Measure and print."""
    params = jax.vmap(init)(jax.random.split(jax.random.PRNGKey(0), LANES))
    state, lr = jax.vmap(ADAM.init)(params), jnp.full((LANES,), 1e-3)
    index = jax.random.randint(jax.random.PRNGKey(3), (STEPS, LANES, BATCH), 0, N_TRAIN)
    fast = jax.jit(epoch)
    start = time.perf_counter()
    (params, state), _ = jax.block_until_ready(fast(params, state, lr, index))
    compile_s = time.perf_counter() - start
    best_s = float("inf")
    for _ in range(9):
        start = time.perf_counter()
        (params, state), _ = jax.block_until_ready(fast(params, state, lr, index))
        best_s = min(best_s, time.perf_counter() - start)
    print(f"{1e6 * best_s / STEPS / LANES:.2f} {compile_s:.2f}")


if __name__ == "__main__":
    main()
