"""Triton's interpreter at two to three times its speed, with the same numbers: most of the suite's time goes through it."""

import functools
import inspect


@functools.cache
def hasten() -> None:
    """Remember what Triton's interpreter looks up anew in every operation, and let int32 wrap unseen.

    The interpreter computes each sum and product of integers a second time in int64 to see an overflow, which tensors of a test are
    too small for; it looks through the modules of Triton's language at every call of a function; and it makes a table of dtypes
    whenever it needs one entry. What a version of Triton lacks is left as it is.
    """
    from triton.language import core
    from triton.runtime import interpreter

    # frozen, and one for all kernels
    object.__setattr__(interpreter.interpreter_builder.options, "sanitize_overflow", False)
    np_dtype_of, np_dtypes = interpreter._get_np_dtype, {}

    def np_dtype(dtype):
        # pointers and blocks have no hash, but names
        name = dtype.scalar.name
        if name not in np_dtypes:
            np_dtypes[name] = np_dtype_of(dtype.scalar)
        return np_dtypes[name]

    interpreter._get_np_dtype = np_dtype

    @functools.cache
    def builtins(package) -> list[str]:
        return [name for name, member in inspect.getmembers(package) if core.is_builtin(member)]

    def patch_builtin(package, builder, *scope) -> None:
        for name in builtins(package):
            member = getattr(package, name)
            # what is patched already is no builtin
            if core.is_builtin(member):
                interpreter._patch_attr(package, name, member, builder, *scope)

    interpreter._patch_builtin = patch_builtin
