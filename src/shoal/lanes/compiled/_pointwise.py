"""Element-wise operators of ATen as C++ expressions.

An entry is a template over its operands, ``{0}``, ``{1}``, ..., which are already of type ``T``, the C++ type to compute in.
What is not here has no compiled form, and a graph that needs it runs on torch's kernels.
"""

from __future__ import annotations

from typing import Any

import torch

_aten = torch.ops.aten

# Operator -> expression over its tensor and number operands, in their order.
EXPRESSIONS: dict[Any, str] = {
    _aten.mul.Tensor: "({0} * {1})",
    _aten.mul.Scalar: "({0} * {1})",
    _aten.neg.default: "(-{0})",
    _aten.reciprocal.default: "(T(1) / {0})",
    _aten.sqrt.default: "std::sqrt({0})",
    _aten.rsqrt.default: "(T(1) / std::sqrt({0}))",
    _aten.square.default: "({0} * {0})",
    _aten.exp.default: "exp_of({0})",
    _aten.expm1.default: "std::expm1({0})",
    _aten.log.default: "log_of({0})",
    _aten.log1p.default: "std::log1p({0})",
    _aten.abs.default: "std::abs({0})",
    _aten.sin.default: "std::sin({0})",
    _aten.cos.default: "std::cos({0})",
    _aten.erf.default: "std::erf({0})",
    _aten.erfinv.default: "T(shoal::erfinv_of({0}))",
    _aten.sigmoid.default: "(T(1) / (T(1) + exp_of(-{0})))",
    _aten.tanh.default: "tanh_of({0})",
    _aten.relu.default: "({0} < T(0) ? T(0) : {0})",  # NaN stays NaN
    _aten.sign.default: "T((T(0) < {0}) - ({0} < T(0)))",
    _aten.sgn.default: "T((T(0) < {0}) - ({0} < T(0)))",
    _aten.threshold_backward.default: "({1} <= T({2}) ? T(0) : {0})",
    _aten.tanh_backward.default: "({0} * (T(1) - {1} * {1}))",
    _aten.sigmoid_backward.default: "({0} * ({1} * (T(1) - {1})))",
    _aten.maximum.default: "({0} != {0} ? {0} : ({1} != {1} ? {1} : ({0} < {1} ? {1} : {0})))",
    _aten.minimum.default: "({0} != {0} ? {0} : ({1} != {1} ? {1} : ({1} < {0} ? {1} : {0})))",
    _aten.clamp_min.default: "({0} < {1} ? {1} : {0})",
    _aten.clamp_max.default: "({0} > {1} ? {1} : {0})",
    _aten.bitwise_xor.Tensor: "({0} ^ {1})",
    _aten.bitwise_xor.Scalar: "({0} ^ {1})",
    _aten.bitwise_and.Tensor: "({0} & {1})",
    _aten.bitwise_or.Tensor: "({0} | {1})",
    _aten.logical_and.default: "({0} && {1})",
    _aten.logical_or.default: "({0} || {1})",
    _aten.logical_not.default: "(!{0})",
    _aten.bitwise_not.default: "(!{0})",  # of booleans only
    _aten.__rshift__.Scalar: "({0} >> {1})",
    _aten.bitwise_right_shift.Tensor_Scalar: "({0} >> {1})",
    _aten._to_copy.default: "{0}",
    _aten.clone.default: "{0}",
}

# Operators that compare: their operands are of one common type, what they give is a boolean.
COMPARISONS: dict[Any, str] = {
    getattr(getattr(_aten, name), kind): f"({{0}} {sign} {{1}})"
    for name, sign in {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}.items()
    for kind in ("Tensor", "Scalar")
}

# add and sub have a factor for their second operand, as the keyword alpha.
SUMS: dict[Any, str] = {
    _aten.add.Tensor: "({0} + {1})",
    _aten.add.Scalar: "({0} + {1})",
    _aten.sub.Tensor: "({0} - {1})",
    _aten.sub.Scalar: "({0} - {1})",
    _aten.rsub.Tensor: "({1} - {0})",
    _aten.rsub.Scalar: "({1} - {0})",
}

# True division gives real numbers, whatever it is given.
QUOTIENTS: dict[Any, str] = {_aten.div.Tensor: "({0} / {1})", _aten.div.Scalar: "({0} / {1})"}


def power(exponent: float) -> str | None:
    """An expression for ``x ** exponent`` where multiplication does it; None otherwise."""
    return {
        1.0: "{0}",
        2.0: "({0} * {0})",
        3.0: "({0} * {0} * {0})",
        0.5: "std::sqrt({0})",
        -0.5: "(T(1) / std::sqrt({0}))",
        -1.0: "(T(1) / {0})",
        -2.0: "(T(1) / ({0} * {0}))",
    }.get(float(exponent))
