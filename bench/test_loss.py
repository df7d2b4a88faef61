"""The head's loss on the CPU: op linear_cross_entropy through torch and through longspan.kernels."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.conftest import Session
from bench.layer_parts import HUGGING_FACE, KERNELS, OP, error_law, require, write_routes
from bench.race import race, roofline
from longspan import kernels
from longspan.memory import measure
from longspan.ops import segment_linear_cross_entropy
from longspan.ops.reference import loss as reference

MM = "mm"
T, C, V, SEGMENT = 4096, 576, 49152, 2048
SMALL = (192, 64, 1000)  # T, C, V of the gate
IGNORED = -100


class Inputs:
    """hidden, weight and shifted labels; `share` of the labels count. Every route gives the loss and its gradients."""

    def __init__(self, sizes: tuple[int, int, int], share: float, train_weight: bool, threads: int) -> None:
        tokens, width, vocabulary = sizes
        self.hidden = torch.randn(tokens, width, requires_grad=True)
        self.weight = (torch.randn(vocabulary, width) * width**-0.5).requires_grad_(train_weight)
        self.labels = torch.randint(vocabulary, (tokens,))
        self.labels[torch.rand(tokens) >= share] = IGNORED
        self.counted = int((self.labels != IGNORED).sum())
        self.wanted = [self.hidden, self.weight] if train_weight else [self.hidden]
        self.threads = threads

    def _with_gradients(self, loss: Tensor) -> tuple[Tensor, ...]:
        return (loss.detach(), *torch.autograd.grad(loss, self.wanted))

    def op(self) -> tuple[Tensor, ...]:
        """The torch op."""
        loss = segment_linear_cross_entropy(self.hidden, self.weight, self.labels, segment=SEGMENT)
        return self._with_gradients(loss)

    def pybind(self) -> tuple[Tensor, ...]:
        """longspan.kernels with its own matrix product, which knows no torch."""
        total, _, dhidden, dweight, _ = kernels.linear_cross_entropy(
            self.hidden.detach().numpy(),
            self.weight.detach().numpy(),
            self.labels.numpy(),
            row_weights=torch.full(self.labels.shape, 1 / max(1, self.counted)).numpy(),
            segment=SEGMENT,
            need_dhidden=True,
            need_dweight=self.weight.requires_grad,
            threads=self.threads,
        )
        return tuple(torch.from_numpy(x) for x in (total, dhidden, dweight) if x is not None)

    def hugging_face(self) -> tuple[Tensor, ...]:
        """The head and the loss as transformers computes them."""
        return self._with_gradients(hugging_face_loss(self.hidden, self.weight, self.labels))

    def reference(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The oracle in another dtype."""
        hidden, weight = (x.detach().to(dtype).requires_grad_(x.requires_grad) for x in (self.hidden, self.weight))
        loss = reference.segment_linear_cross_entropy(hidden, weight, self.labels)
        return (loss.detach(), *torch.autograd.grad(loss, [hidden, weight][: len(self.wanted)]))


def hugging_face_loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """transformers' ForCausalLMLoss behind the head, with labels that are already shifted."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    logits = torch.nn.functional.linear(hidden, weight)[None]
    return ForCausalLMLoss(logits, None, weight.shape[0], shift_labels=labels[None], ignore_index=IGNORED)


def memory(inputs: Inputs) -> dict[str, int]:
    """Peak live bytes beside the inputs; predicted: gradients, one segment of logits, the gathered rows."""
    with measure() as m:
        inputs.op()
    gradients = sum(x.nbytes for x in inputs.wanted)
    rows = min(SEGMENT, inputs.counted)
    return {"peak_live_bytes": m.peak_bytes, "predicted_bytes": gradients + 4 * rows * V + 2 * 4 * rows * C}


@pytest.mark.parametrize(
    ("share", "train_weight", "least"),
    [(1.0, True, 1.0), (1.0, False, 1.0), (0.1, True, 8.0), (0.1, False, 8.0)],
    ids=["all-weight_trains", "all-weight_frozen", "tenth-weight_trains", "tenth-weight_frozen"],
)
def test_loss(session: Session, benchmark: BenchmarkFixture, share: float, train_weight: bool, least: float) -> None:
    """linear_cross_entropy, forward and backward, against Hugging Face's head and loss."""
    trains = "weight trains" if train_weight else "weight frozen"
    key = f"linear_cross_entropy|cpu|float32|T={T},C={C},V={V},labels={share:.0%},{trains}"
    small = Inputs(SMALL, share, train_weight, session.threads)
    checked = error_law((small.op, small.pybind), small.reference(torch.float32), small.reference(torch.float64))
    require(session, key, checked)
    inputs = Inputs((T, C, V), share, train_weight, session.threads)
    product, product_flops = roofline()
    competitors = {OP: inputs.op, KERNELS: inputs.pybind, HUGGING_FACE: inputs.hugging_face, MM: product}
    measured = memory(inputs)
    result = race(benchmark, OP, competitors, session.seconds)
    flops = 2.0 * inputs.counted * V * C * (3 if train_weight else 2)
    write_routes(session, benchmark, key, checked, result, flops, flops / product_flops, MM, measured, least)
