"""What a model costs: parameters, floating-point operations, milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from xtclib.layers import _Packed


def parameters(model: PreTrainedModel) -> int:
    """Weights and biases of a model, packed ones counted as the weights that they stand for."""
    packed = sum(m.rows * m.columns for m in model.modules() if isinstance(m, _Packed))
    return packed + sum(p.numel() for p in model.parameters())


def flops(config: PretrainedConfig, batch: int = 1, length: int = 128) -> int:
    """Floating-point operations of one forward pass's matrix products, multiply–add as 2.

    Counted by running the model without data (meta device, eager attention), so it costs nothing.
    """
    config = type(config).from_dict(
        {k: v for k, v in config.to_dict().items() if k != "quantization_config"}
    )
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config).eval()
        ids = torch.zeros(batch, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids)
    return int(counter.get_total_flops())


def latency(
    runs: Mapping[str, Callable[[], object]], repeats: int = 20, warm_up: int = 3
) -> dict[str, dict[str, float]]:
    """Milliseconds of each callable, measured in turns so that all meet the same machine.

    Gives ``median``, ``low`` and ``high`` (the quartiles) of ``repeats`` after ``warm_up``.

    >>> sorted(latency({"nothing": lambda: None}, repeats=2)["nothing"])
    ['high', 'low', 'median']
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warm_up + repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warm_up:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: dict(
            zip(
                ("low", "median", "high"),
                np.percentile(t, (25, 50, 75)).round(3).tolist(),
                strict=True,
            )
        )
        for name, t in times.items()
    }


def model_latency(
    models: Mapping[str, PreTrainedModel], batch: int = 8, length: int = 32, repeats: int = 10
) -> dict:
    """Forward latency of several models on the same random batch, with device and threads."""
    first = next(iter(models.values()))
    device = next(first.parameters()).device
    high = min(model.config.vocab_size for model in models.values())
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, high, (batch, length), generator=generator).to(device)
    mask = torch.ones_like(ids)

    def runner(model: PreTrainedModel) -> Callable[[], object]:
        return lambda: model(input_ids=ids, attention_mask=mask)

    with torch.inference_mode():
        found = latency({name: runner(model) for name, model in models.items()}, repeats)
    return {
        "batch": batch,
        "length": length,
        "repeats": repeats,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "milliseconds": found,
    }
