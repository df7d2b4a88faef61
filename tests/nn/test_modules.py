"""The public modules: torch's own results and names, in a plain PyTorch transformer, and bad input."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import longspan.nn as lnn
from longspan.ops import AttentionPattern, TokenLayout


@pytest.mark.parametrize("eps", [None, 1e-3])
def test_rms_norm_is_torchs(eps: float | None) -> None:
    x = torch.randn(2, 5, 24)
    ours, torchs = lnn.RMSNorm(24, eps), nn.RMSNorm(24, eps)
    nn.init.normal_(torchs.weight)
    ours.load_state_dict(torchs.state_dict())
    torch.testing.assert_close(ours(x), torchs(x))
    assert lnn.RMSNorm((24,), elementwise_affine=False).state_dict() == {}


@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm_is_torchs(bias: bool) -> None:
    x = torch.randn(2, 5, 24)
    ours, torchs = lnn.LayerNorm(24, bias=bias), nn.LayerNorm(24, bias=bias)
    for p in torchs.parameters():
        nn.init.normal_(p)
    ours.load_state_dict(torchs.state_dict())
    torch.testing.assert_close(ours(x), torchs(x))


def test_a_norm_of_a_sum_returns_both() -> None:
    x, residual = torch.randn(2, 3, 16)
    for norm in (lnn.RMSNorm(16), lnn.LayerNorm(16)):
        y, total = norm(x, residual)
        assert torch.equal(total, x + residual)
        assert torch.equal(y, norm(total))


def test_an_offset_weight_starts_as_one() -> None:
    plain, offset = lnn.RMSNorm(8), lnn.RMSNorm(8, weight_offset=1.0)
    assert (offset.weight == 0).all()
    x = torch.randn(3, 8)
    assert torch.equal(plain(x), offset(x))


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_gated_mlp_is_llamas(activation: str) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    stock = LlamaMLP(LlamaConfig(hidden_size=24, intermediate_size=40, num_attention_heads=2, hidden_act=activation))
    ours = lnn.GatedMLP(24, 40, activation)
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(2, 3, 24)
    torch.testing.assert_close(ours(x), stock(x))


def test_mlp_is_its_definition() -> None:
    mlp, x = lnn.MLP(8, 12, "relu"), torch.randn(4, 8)
    torch.testing.assert_close(mlp(x), mlp.fc2(torch.relu(mlp.fc1(x))))


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_attention_is_llamas(key_heads: int) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaModel

    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=key_heads,
        vocab_size=10,
    )
    model = LlamaModel(config)
    stock = model.layers[0].self_attn
    ours = lnn.Attention(32, 4, key_heads)
    ours.load_state_dict(stock.state_dict())
    x, positions = torch.randn(2, 7, 32), torch.arange(7)[None]
    mask = torch.full((7, 7), float("-inf")).triu(1)[None, None]
    expected, _ = stock(x, position_embeddings=model.rotary_emb(x, positions), attention_mask=mask)
    torch.testing.assert_close(ours(x, lnn.RotaryEmbedding(8)(7)), expected, rtol=1e-5, atol=1e-5)


def test_rotary_tables_grow_and_stay_exact() -> None:
    rotary = lnn.RotaryEmbedding(16, 500000.0, factor=2.0).to(torch.bfloat16)
    short = [table.clone() for table in rotary(5)]
    long = rotary(50)
    assert long[0].dtype == torch.float32
    assert all(torch.equal(a, b[:5]) for a, b in zip(short, long, strict=True))
    assert rotary(20)[0].data_ptr() == long[0].data_ptr(), "made again"
    inv_freq = 500000.0 ** -(torch.arange(8, dtype=torch.float64) / 8)
    torch.testing.assert_close(long[1][40], (40 / 2.0 * inv_freq).sin().float())
    assert rotary.state_dict() == {}


class Block(nn.Module):
    """A pre-norm transformer block; the second norm takes the residual add."""

    def __init__(self, C: int, H: int, K: int, F: int, parts: Any, pattern: AttentionPattern | None = None) -> None:
        super().__init__()
        self.norm1, self.norm2 = parts.RMSNorm(C, 1e-6), parts.RMSNorm(C, 1e-6)
        self.attention, self.mlp = lnn.Attention(C, H, K, pattern=pattern), lnn.GatedMLP(C, F)
        self.fused = parts is lnn

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], layout: TokenLayout | None = None) -> Tensor:
        attended = self.attention(self.norm1(x), rope, layout=layout)
        if self.fused:
            y, x = self.norm2(attended, x)
        else:
            x = attended + x
            y = self.norm2(x)
        return x + self.mlp(y)


class Transformer(nn.Module):
    """A plain PyTorch language model on the public modules."""

    def __init__(self, parts: Any = lnn, pattern: AttentionPattern | None = None) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, 32), nn.Linear(32, 50, bias=False)
        self.rotary = lnn.RotaryEmbedding(8)
        self.blocks = nn.ModuleList(Block(32, 4, 2, 48, parts, pattern) for _ in range(2))
        self.norm = parts.RMSNorm(32, 1e-6)

    def forward(self, tokens: Tensor, layout: TokenLayout | None = None) -> Tensor:
        x, rope = self.embedding(tokens), self.rotary(tokens.shape[1])
        for block in self.blocks:
            x = block(x, rope, layout)
        return self.head(self.norm(x))


def losses(model: nn.Module, tokens: Tensor, steps: int) -> list[float]:
    optimizer, found = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_a_plain_transformer_trains_as_with_torchs_norms() -> None:
    torch.manual_seed(0)
    ours, stock = Transformer(), Transformer(nn)
    stock.load_state_dict(ours.state_dict())
    tokens = torch.randint(50, (4, 33))
    first, second = losses(ours, tokens, 15), losses(stock, tokens, 15)
    assert first[-1] < 0.7 * first[0]
    assert first == pytest.approx(second, rel=1e-4)


def test_packed_documents_are_trained_apart() -> None:
    torch.manual_seed(0)
    model = Transformer(pattern=AttentionPattern.window(6, sinks=1))
    tokens = torch.randint(50, (1, 20))
    layout = TokenLayout.packed(torch.tensor([0, 8, 20]))
    both = model(tokens, layout)
    # Scores depend on distances alone, so that a document's angles may begin anywhere.
    for part in (slice(0, 8), slice(8, 20)):
        torch.testing.assert_close(both[:, part], model(tokens[:, part]), rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing_and_autocast() -> None:
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    block, x = Block(32, 4, 2, 48, lnn), torch.randn(2, 9, 32)
    rope = lnn.RotaryEmbedding(8)(9)
    gradients = []
    for run in (block, lambda *a: checkpoint(block, *a, use_reentrant=False)):
        leaf = x.clone().requires_grad_()
        run(leaf, rope).square().sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(gradients[0], gradients[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = block.mlp(x)
    assert y.dtype == torch.bfloat16


def test_compiles_without_breaks_and_copies() -> None:
    torch.manual_seed(0)
    block, x = Block(32, 4, 2, 48, lnn), torch.randn(2, 9, 32)
    rope = lnn.RotaryEmbedding(8)(9)
    compiled = torch.compile(copy.deepcopy(block), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, rope), block(x, rope))
    compiled(x, rope).sum().backward()


BAD: dict[str, Callable[[], Any]] = {
    "RMSNorm: normalized_shape is (2, 8); it must be one positive number, the last dimension": lambda: lnn.RMSNorm(
        (2, 8)
    ),
    "LayerNorm: x has shape (3, 7); its last dimension must be 8": lambda: lnn.LayerNorm(8)(torch.zeros(3, 7)),
    "GatedMLP: activation is 'swish'; allowed: silu, gelu, gelu_tanh, relu, relu2": lambda: lnn.GatedMLP(4, 8, "swish"),
    "Attention: num_heads is 6 and num_key_value_heads 4; "
    "the first must be a positive multiple of the second": lambda: lnn.Attention(48, 6, 4),
    "Attention: embed_dim 50 is not a multiple of num_heads 4; give head_dim": lambda: lnn.Attention(50, 4),
    "Attention: x has shape (3, 8); it must be [B,T,C]": lambda: lnn.Attention(8, 2)(torch.zeros(3, 8)),
    "RotaryEmbedding: dim is 7; it must be even and at least 2": lambda: lnn.RotaryEmbedding(7),
    "RotaryEmbedding: factor is 0.0; it must be positive": lambda: lnn.RotaryEmbedding(8, factor=0.0),
    "RotaryEmbedding: inv_freq has shape (3,); it must be (4,)": lambda: lnn.RotaryEmbedding(8, inv_freq=torch.ones(3)),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert str(error.value) == message


def test_the_page_of_the_modules_runs() -> None:
    page = Path(__file__).parents[2] / "docs" / "modules.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    code = "\n".join(line[4:] for line in lines if line.startswith("    ") or not line)
    assert "class Block" in code
    exec(code.replace("4096", "64").replace("1024", "16"), {"__name__": "docs"})
