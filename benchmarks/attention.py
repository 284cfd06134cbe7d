"""Milliseconds of one attention layer in training: PyTorch's fused kernel against our plain one.

python benchmarks/attention.py [--threads 2] [--repeats 20]

MiniLM's shape (12 heads of 32), a batch of 32; forward and backward in turns, medians.
"""

from __future__ import annotations

from functools import partial

import common
import torch
import torch.nn.functional as F

from xtclib.attention import score_attention
from xtclib.clock import in_turns

HEADS, SIZE, BATCH = 12, 32, 32


def fused(query, key, value, mask):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def plain(query, key, value, mask):
    return score_attention(torch.nn.Module(), query, key, value, mask)[0]


def step(attend, operands, mask, backward: bool) -> None:
    """One forward pass, and its gradients where ``backward``."""
    with torch.set_grad_enabled(backward):
        out = attend(*operands, mask)
        if backward:
            out.backward(torch.ones_like(out))


def main() -> None:
    options = common.options(__doc__, threads=2, repeats=20)
    torch.set_num_threads(options.threads)
    print(f"{options.threads} threads, batch {BATCH}, {HEADS} heads of {SIZE}; ms, medians\n")
    print(f"{'':<22}{'fused':>10}{'plain':>10}{'fused ÷ plain':>16}")
    for length in (32, 64, 128):
        for dtype in (torch.bfloat16, torch.float32):
            shape = (BATCH, length, HEADS, SIZE)
            operands = [
                torch.randn(shape, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3)
            ]
            mask = torch.zeros(BATCH, 1, length, length, dtype=dtype)
            mask[::2, ..., length - 4 :] = torch.finfo(dtype).min
            for name, backward in (("forward", False), ("and backward", True)):
                runs = {
                    f.__name__: partial(step, f, operands, mask, backward) for f in (fused, plain)
                }
                times = in_turns(runs, options.repeats)
                ours, theirs = times["plain"]["median"], times["fused"]["median"]
                kind = f"{str(dtype)[6:]:<9}{length:>4} {name}"
                print(f"{kind:<27}{theirs:>5.1f}{ours:>10.1f}{theirs / ours:>16.2f}")


if __name__ == "__main__":
    main()
