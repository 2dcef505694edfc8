"""JAX primitives from plain functions that are linear in some arguments, with transposes that we choose.

`jax.custom_vjp` says how to pull back; JAX can then neither push forward, nor differentiate as we would a second time.
A primitive that is linear in an argument is its own derivative there, and where its transpose is such a primitive too,
gradients of every order and in both modes are as fast as the first.
"""

import functools

import jax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def linear_in(transposes, static=()):
    """Makes a primitive of a function of arrays with one array as its result.

    Args:
        transposes: position of each argument in which the function is linear → `transpose(gradient, *arguments)`, the
            gradient to that argument, which itself is given as its shape and dtype only. In other arguments JAX
            differentiates the plain function.
        static: names of the function's keyword arguments, which are no arrays; transposes take them too.

    Returns:
        A decorator. The new function takes what the plain one does, its static arguments by name.
    """
    return functools.partial(_primitive, transposes, static)


def _primitive(transposes, static, function):
    primitive = Primitive(f"fcdm.{function.__name__.strip('_')}")
    primitive.def_impl(jax.jit(function, static_argnames=static))

    @primitive.def_abstract_eval
    def shaped(*arguments, **options):
        result = jax.eval_shape(functools.partial(function, **options), *arguments)
        return ShapedArray(result.shape, result.dtype)

    def vectorized(arguments, axes, **options):
        return jax.vmap(functools.partial(function, **options), in_axes=axes)(*arguments), 0

    def pushed(primals, tangents, **options):
        terms = []
        for position, tangent in enumerate(tangents):
            call = functools.partial(_with, primals, position, primitive.bind, options)
            if position in transposes and not isinstance(tangent, ad.Zero):
                terms.append(call(tangent))
            elif not isinstance(tangent, ad.Zero):
                plain = functools.partial(_with, primals, position, function, options)
                terms.append(jax.jvp(plain, (primals[position],), (tangent,))[1])
        return primitive.bind(*primals, **options), functools.reduce(ad.add_jaxvals, terms)

    def pulled(gradient, *arguments, **options):
        unknown = [ad.is_undefined_primal(a) for a in arguments]
        given = [a.aval if u else a for a, u in zip(arguments, unknown, strict=True)]
        return [
            transposes[position](gradient, *given, **options).astype(given[position].dtype)
            if unknown[position] and not isinstance(gradient, ad.Zero)
            else None
            for position in range(len(arguments))
        ]

    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    batching.primitive_batchers[primitive] = vectorized
    ad.primitive_jvps[primitive] = pushed
    ad.primitive_transposes[primitive] = pulled
    return functools.wraps(function)(lambda *arguments, **options: primitive.bind(*arguments, **options))


def _with(arguments, position, function, options, value):
    """`function` of `arguments`, with `value` at `position`."""
    return function(*arguments[:position], value, *arguments[position + 1 :], **options)
