"""Trees of arrays, such as sound beside video: functions of one array, applied leaf by leaf.

Data of several parts are a tree of arrays, `{"video": [batch frames …], "sound": [batch …]}`. Every
other argument (process, target, times, scale, …) is a tree of the same structure or a prefix of
that structure. One value of a prefix serves all leaves below it. A single array is a tree of one
leaf, so both run the same program.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float, Key, PyTree

Tree = PyTree[Float[Array, " batch ..."]]  # an array, or a tree of arrays that share the batch


def leafwise(function: Callable) -> Callable:
    """Make a function of arrays a function of trees, called once for each leaf.

    The argument with the finest structure sets the leaves. The other arguments are trees like it or
    prefixes of it, and None counts as a value. A result of several parts, such as (x̂, ẑ), becomes
    as many trees.
    """

    @functools.wraps(function)
    def function_of_trees(*positional: Any, **named: Any) -> Any:
        arguments = [*positional, *named.values()]
        structures = [jax.tree.structure(argument) for argument in arguments]
        sizes = [(each.num_leaves, each.num_nodes) for each in structures]  # None has no leaves
        finest = arguments[sizes.index(max(sizes))]
        leaves = zip(*(_leaves(argument, finest) for argument in arguments), strict=True)
        count = len(positional)
        results = [function(*a[:count], **dict(zip(named, a[count:], strict=True))) for a in leaves]
        return jax.tree.map(
            lambda *parts: jax.tree.unflatten(jax.tree.structure(finest), parts), *results
        )

    return function_of_trees


def _leaves(prefix: PyTree, tree: PyTree) -> list:
    """Return the value of `prefix` for each leaf of `tree`."""
    full = jax.tree.broadcast(prefix, tree, is_leaf=lambda a: a is None)
    return jax.tree.leaves(full, is_leaf=lambda a: a is None)


def leaf_keys(keys: Key[Array, "*batch"], tree: PyTree) -> PyTree[Key[Array, "*batch"]]:
    """Split each key into one key for each leaf of `tree`. A tree of one leaf keeps the key itself.

    Args:
        keys: one key, or one per sample.
        tree: only its structure matters.
    """
    structure = jax.tree.structure(tree)
    if structure.num_leaves == 1:
        return structure.unflatten([keys])
    split = lambda key: structure.unflatten(list(jax.random.split(key, structure.num_leaves)))
    return (jax.vmap(split) if keys.ndim else split)(keys)
