"""What `cross_attention` computes, in readable torch. This file defines correctness, on any device and float type."""

from __future__ import annotations

from torch import Tensor

from dive_kernels.attention.reference import attention_reference


def cross_attention_reference(query: Tensor, key: Tensor, value: Tensor, prompt_index: Tensor, heads: int) -> Tensor:
    """Row r of query [R, T, C] attends to the keys and values [P, L, C] of prompt `prompt_index[r]`: [R, T, C].

    Rows whose index is outside [0, P) are NaN.
    """
    known = (prompt_index >= 0) & (prompt_index < len(key))
    index = prompt_index.where(known, 0)
    result = attention_reference(query, key[index], value[index], heads)
    return result.where(known[:, None, None], float("nan"))
