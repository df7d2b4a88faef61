"""One decoder layer of token elimination, a half at a time: what its forward and backward take, and what they keep.

The layer and its input are SmolLM2-135M's; of a step, the halves of all layers that leave tokens out save their sum.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.lean_layers import REST, adapted, rows
from longspan.memory import measure
from longspan.patch.layers.forward import STATE
from longspan.patch.layers.layer import Layer
from longspan.patch.mask import MaskSpec
from longspan.patch.tokens import select
from longspan.patch.tokens.layer import KeptLayer
from longspan.patch.tokens.state import Choice, LayerTokens
from longspan.patch.tokens.stream import Stream

LAYER = 20
SHORT = 1024  # tokens of text that the input repeats: what lies in it does not change the time
ATTENTION, FEED_FORWARD, PREDICTOR = "attention", "feed-forward", "predictor"

Half = Callable[[Tensor, dict[str, Any]], Tensor]


def input_of(base: Any, length: int) -> tuple[Tensor, dict[str, Any]]:
    """The layer's input [length, C] on real text, and what else it is given."""
    given: dict[str, Any] = {}

    def watch(module: Any, args: Any, kwargs: Any) -> None:
        given.update(kwargs, hidden=args[0])

    handle = base.model.layers[LAYER].register_forward_pre_hook(watch, with_kwargs=True)
    with torch.no_grad():
        base.model(rows(SHORT, 1)[0], use_cache=False)
        hidden = given.pop("hidden").repeat(1, length // SHORT, 1)
        tables = base.model.rotary_emb(hidden, torch.arange(length)[None])
    handle.remove()
    return hidden[0], given | {"position_embeddings": tables, "position_ids": None}


def halves(base: Any, ids: Tensor) -> dict[str, Half]:
    """The ways to run a half of the layer, of rows [M,C] of which the blocks `ids` are kept."""
    layer = base.model.layers[LAYER]
    state = getattr(layer, STATE)

    def kept(half: str, changes: dict[str, Any], x: Tensor, given: dict[str, Any]) -> Tensor:
        config = state.tokens.config.model_copy(update=changes | {"selector": "random", "predictor": None})
        stream = Stream.of("layer", given, 1, len(x), x.device, config.block)
        tokens = LayerTokens(config, "layer", state.tokens.signals)
        call = KeptLayer(layer, state, "none", None, 1, tokens=tokens, choice=Choice())
        call.choice.attention = select.keep(tokens, ids, stream)
        return (
            call._attention_of_rows(x, given, stream) if half == ATTENTION else call._feed_forward_of_rows(x, x, stream)
        )

    def predicted(x: Tensor, given: dict[str, Any]) -> Tensor:
        stream = Stream.of("layer", given, 1, len(x), x.device, state.tokens.config.block)
        call = KeptLayer(layer, state, "none", None, 1, tokens=state.tokens)
        select.keep(state.tokens, select.score_before(call, state.tokens, x.detach(), stream), stream)
        return x

    dense = Layer(layer, state, "none", None, 1)
    return {
        f"{ATTENTION}, dense": lambda x, given: dense.attention(x, dict(given)),
        f"{ATTENTION}, eliminate": partial(kept, ATTENTION, {"forward": "eliminate"}),
        f"{ATTENTION}, forward dense": partial(kept, ATTENTION, {"forward": "dense"}),
        f"{FEED_FORWARD}, dense": lambda x, given: dense.feed_forward(x, x),
        f"{FEED_FORWARD}, rows": partial(kept, FEED_FORWARD, {"mlp": "rows"}),
        f"{FEED_FORWARD}, skip": partial(kept, FEED_FORWARD, {"mlp": "skip", "forward": "eliminate"}),
        PREDICTOR: predicted,
    }


def timed(recipe: dict[str, Any], length: int, rounds: int) -> dict[str, Any]:
    """Seconds of forward and backward of each half, all in turn; bytes a token that live between the two."""
    base = adapted({"data": {"length": length}} | recipe).get_base_model()
    x, given = input_of(base, length)
    config = getattr(base.model.layers[LAYER], STATE).tokens.config
    ways = halves(base, torch.rand(-(-length // config.block)))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    alive: dict[str, float] = {}
    for turn in range(rounds + 1):
        for name, run in ways.items():
            rows_ = x.clone().requires_grad_()
            fresh = given | {"attention_mask": MaskSpec(batch=1, q_length=length, kv_length=length)}
            gc.collect()
            time.sleep(REST)
            if turn == 0:  # warms up as well
                with measure() as live:
                    y = run(rows_, fresh)
                own = y.untyped_storage().nbytes() if y is not rows_ else 0
                alive[name] = (live.end_bytes - own) / length
                y.backward(torch.ones_like(y))
                continue
            start = time.perf_counter()
            y = run(rows_, fresh)
            if y is not rows_:
                y.backward(torch.ones_like(y))
            seconds[name].append(time.perf_counter() - start)
            del y
    return {
        "length": length,
        "layer": LAYER,
        "rounds": rounds,
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "faster_than_dense": {
            name: statistics.median(d / s for d, s in zip(seconds[f"{name.split(',')[0]}, dense"], times, strict=True))
            for name, times in seconds.items()
            if name != PREDICTOR
        },
        "bytes_per_token": alive,
    }
