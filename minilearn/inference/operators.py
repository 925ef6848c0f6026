"""The operators that a program may have: pure functions of tensors, without files or foreign memory."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import Any

import torch

_NAMES = """
    abs acos acosh adaptive_avg_pool1d _adaptive_avg_pool2d adaptive_avg_pool2d adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d add addcdiv addcmul addmm addmv alias all
    amax amin angle any arange argmax argmin argsort asin asinh atan atan2 atanh avg_pool1d avg_pool2d
    avg_pool3d baddbmm batch_norm bitwise_and bitwise_not bitwise_or bitwise_xor bmm broadcast_to
    bucketize cat cdist ceil celu channel_shuffle chunk clamp clamp_max clamp_min clone concat
    constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
    convolution copysign cos cosh cosine_similarity cross cummax cummin cumprod cumsum deg2rad detach diag
    diag_embed diagonal diff div dot dropout einsum elu embedding embedding_bag empty_like eq erf erfc
    erfinv exp exp2 expand expand_as expm1 eye feature_dropout fill flatten flip floor floor_divide fmod
    frac full full_like gather ge gelu glu group_norm gru gt hardshrink hardsigmoid hardswish hardtanh
    heaviside hypot im2col index index_select instance_norm isfinite isinf isnan isneginf isposinf kron
    layer_norm le leaky_relu lerp lift_fresh_copy linalg_vector_norm linear log log10 log1p log2
    log_sigmoid _log_softmax log_softmax logaddexp logical_and logical_not logical_or logical_xor logit
    logsumexp lstm lt masked_fill matmul max max_pool1d max_pool2d max_pool3d maximum mean median meshgrid
    min minimum mish mm movedim mul mv nan_to_num narrow _native_batch_norm_legit_no_training
    native_group_norm native_layer_norm ne neg new_empty new_full new_ones new_zeros nonzero norm one_hot
    ones ones_like outer pad permute pixel_shuffle pixel_unshuffle pow prelu prod rad2deg reciprocal relu
    relu6 remainder repeat repeat_interleave reshape rms_norm rnn_relu rnn_tanh roll rot90 round rsqrt
    rsub scalar_tensor scaled_dot_product_attention scatter scatter_add select selu sigmoid sign silu sin
    sinc sinh slice slice_scatter _softmax softmax softmin softplus softshrink sort split split_with_sizes
    sqrt square squeeze stack std std_mean sub sum swapaxes sym_numel sym_size sym_stride t take_along_dim
    tan tanh tensor_split threshold tile to _to_copy topk transpose tril triu trunc type_as unbind
    unflatten unfold _unsafe_view unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_linear1d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d var var_mean view
    view_as vstack where xlogy zero zeros zeros_like
"""
_ATEN = frozenset(_NAMES.split())
_CHECKS = (
    "_assert_async _assert_scalar _assert_tensor_metadata sym_constrain_range sym_constrain_range_for_size"
)
_SKIPPED = frozenset(_CHECKS.split())
_NUMBERS: dict[str, Callable[..., Any]] = {  # of sizes
    **{f"_operator.{name}": getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "truediv")},
    **{f"_operator.{name}": getattr(operator, name) for name in ("mod", "neg", "pow", "getitem")},
    **{f"_operator.{name}": getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc", "sqrt")},
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_int": int,
    "torch.sym_float": float,
    "torch.sym_not": operator.not_,
    "torch.sym_sum": sum,
}
_TARGET = re.compile(r"torch\.ops\.aten\.([a-zA-Z_]\w*)\.([a-zA-Z_]\w*)")


def operator_of(target: str) -> Callable[..., Any] | None:
    """Return the operator of a node's target, None for one that only checks.

    Raises: ValueError for what is not in the lists of this file.
    """
    if target in _NUMBERS:
        return _NUMBERS[target]
    if found := _TARGET.fullmatch(target):
        name, overload = found.groups()
        if name in _SKIPPED:
            return None
        if name.removesuffix("_") in _ATEN:  # "add_" is "add" in place
            made = getattr(getattr(torch.ops.aten, name, None), overload, None)
            if isinstance(made, torch._ops.OpOverload):
                return made
    raise ValueError(f"the operator {target}: expected one of those in minilearn/inference/operators.py")
