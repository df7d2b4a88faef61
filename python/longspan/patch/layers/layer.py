"""One call of a decoder layer: norm, q, k, v, rotation -> attention -> o + residual; norm, feed-forward + residual.

One computation for all families; see families.py for what differs. Rows are [B*T, C] throughout, so that what a
projection gives can be rotated in place. A part that is switched off, or whose module cannot be replaced, is called.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from longspan import ops
from longspan.patch.attention import dropout_of
from longspan.patch.backend import attention_forward
from longspan.patch.layers import parts
from longspan.patch.layers.offload import Shelf, checkpointed
from longspan.patch.layers.recompute import Keep, dropped, keep_nothing
from longspan.patch.layers.rotation import Rotation

if TYPE_CHECKING:
    from longspan.patch.layers.forward import LayerState

SEGMENT = 2048


@dataclass
class Layer:
    """One call of one layer."""

    layer: Any
    state: LayerState
    recompute: str
    shelf: Shelf | None = None
    batch: int = 1

    @property
    def keeps_input(self) -> bool:
        """Whether this computation saves nothing but its input, without a checkpoint around it."""
        return False

    def run(self, hidden: Tensor, given: dict[str, Any]) -> Tensor:
        """hidden [B,T,C] through both branches."""
        self.batch, length, columns = hidden.shape
        given = {name: value for name, value in given.items() if name != "encoder_hidden_states"}
        rows = hidden.reshape(self.batch * length, columns)
        middle = self.attention(rows, given)
        out = self.feed_forward(rows if self.parallel else middle, middle)
        return out.reshape(self.batch, length, columns)

    @property
    def parallel(self) -> bool:
        """Whether both branches read the layer's input."""
        path = self.state.family.parallel
        return path is not None and bool(parts.attribute(self.layer, path))

    # ---- the attention branch ------------------------------------------------------------------------------------

    def attention(self, rows: Tensor, given: dict[str, Any]) -> Tensor:
        """rows [B*T,C] through the attention branch; takes its mask and tables out of `given`."""
        family, attention = self.state.family, parts.attribute(self.layer, self.state.family.attention)
        tables, mask = given.pop("position_embeddings", None), given.pop("attention_mask", None)
        if parts.hooked(attention):
            return self._stock_attention(attention, rows, mask, tables, given)
        rotation = self.rotation_of(tables, rows.dtype)
        if rotation is not None and self.shelf is not None:
            self.shelf.leave((rotation.cos, rotation.sin, rotation.positions))
        project = partial(self.project, rotation)
        if "qkv" in self.recompute:
            with dropped(project, rows, self.shelf) as keep:
                made = project(rows, keep)
                out = self._attend(attention, made, mask, tables, given)
        else:
            made = project(rows, keep_nothing)
            out = self._attend(attention, made, mask, tables, given)
        del made  # before the output's projection needs memory
        return self._add(family.out, out, rows, family.post1, family.drop1)

    def rotation_of(self, tables: Any, dtype: torch.dtype) -> Rotation | None:
        """The rows' rotation where it is ours to do: a rotary family with lean.rope on."""
        return self.rotation(tables, dtype) if self.state.family.rotary and self.state.rope else None

    def rotation(self, tables: tuple[Tensor, Tensor], dtype: torch.dtype) -> Rotation:
        """The rows' rotation."""
        return self.state.rotations.of(*tables, self.batch, dtype)

    def _stock_attention(
        self, attention: nn.Module, rows: Tensor, mask: Any, tables: Any, given: dict[str, Any]
    ) -> Tensor:
        """The attention module itself, for the hooks that it has."""
        family = self.state.family
        named = {} if tables is None else {"position_embeddings": tables}
        z = self.norm(family.norm1, rows).unflatten(0, (self.batch, -1))
        y = attention(z, attention_mask=mask, **named, **given)[0].flatten(0, 1)
        return self.join(y, rows, family.post1, _outside(family.drop1, family.attention))

    def project(self, rotation: Rotation | None, rows: Tensor, keep: Keep) -> tuple[Tensor, ...]:
        """q, k, v in rows as their projections give them, normed and rotated; or one packed. `keep` sees all stages."""
        made = self.linears(self.state.family.norm1, self.state.family.qkv, rows)
        keep(made)
        made = self._rotated(self.normed_heads(made), rotation)
        keep(made)
        return made

    def _rotated(self, made: tuple[Tensor, ...], rotation: Rotation | None) -> tuple[Tensor, ...]:
        family, (heads, kv_heads) = self.state.family, self._heads()
        if rotation is None:
            return made
        if any(self._linear_of(path) is None for path in family.qkv):
            made = tuple(x.clone() for x in made)  # a module was called: what it returned is not ours to write to
        tables = (rotation.cos, rotation.sin, rotation.positions)
        if family.packed:
            return (ops.rope_packed_(made[0], *tables, heads=heads, kv_heads=kv_heads, layout=family.packed),)
        if family.qk_norm:
            q, k, v = made
            q, k = (
                ops.rope(x.unflatten(1, (n, -1)).transpose(0, 1)[None], *tables)[0].transpose(0, 1).flatten(1)
                for x, n in ((q, heads), (k, kv_heads))
            )
            return q, k, v
        q, k, v = made
        return ops.rope_(q, *tables, heads=heads), ops.rope_(k, *tables, heads=kv_heads), v

    def normed_heads(self, made: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Norms over each head of queries and keys (Qwen3)."""
        if self.state.family.qk_norm is None:
            return made
        q, k, v = made
        heads = self._heads()
        found = []
        for x, n, path in zip((q, k), heads, self.state.family.qk_norm, strict=True):
            found.append(self.norm(path, x.unflatten(1, (n, -1))).flatten(1))
        return *found, v

    def _heads(self) -> tuple[int, int]:
        config = parts.attribute(self.layer, self.state.family.attention).config
        heads = int(config.num_attention_heads)
        return heads, int(getattr(config, "num_key_value_heads", None) or heads)

    def _attend(
        self,
        attention: Any,
        made: tuple[Tensor, ...],
        mask: Any,
        tables: Any,
        given: dict[str, Any],
    ) -> Tensor:
        """Attention over what the projections gave: rows [B*T, H*D]."""
        family = self.state.family
        q, k, v = self.heads(attention, made, tables)
        cache = given.pop(family.cache, None)
        if cache is not None:
            cache = getattr(cache, "self_attention_cache", cache)
            k, v = cache.update(k, v, attention.layer_idx)
        softcap = parts.attribute(self.layer, family.softcap) if family.softcap else None
        options = {"scaling": attention.scaling, "softcap": softcap, "dropout": dropout_of(attention)[0]}
        out, _ = attention_forward(attention, q, k, v, mask, **options, **given)
        return out.reshape(q.shape[0] * q.shape[2], -1)

    def heads(self, attention: nn.Module, made: tuple[Tensor, ...], tables: Any) -> tuple[Tensor, Tensor, Tensor]:
        """q [B,H,T,D], k and v [B,K,T,D] as the engine takes them."""
        q, k, v = (x.unflatten(0, (self.batch, -1)).transpose(1, 2) for x in self.by_head(made))
        if self.state.family.rotary and not self.state.rope:
            q, k = sys.modules[type(attention).__module__].apply_rotary_pos_emb(q, k, *self.turns(tables))
        return q, k, v

    def turns(self, tables: Any) -> Any:
        """transformers' cos and sin of these rows, for its own rotation."""
        return tables

    def by_head(self, made: tuple[Tensor, ...]) -> Sequence[Tensor]:
        """q, k, v as [B*T,H,D]."""
        heads, kv_heads = self._heads()
        if not self.state.family.packed:
            return tuple(x.unflatten(1, (n, -1)) for x, n in zip(made, (heads, kv_heads, kv_heads), strict=True))
        if self.state.family.packed == "heads":
            return made[0].unflatten(1, (heads, 3, -1)).unbind(2)
        return made[0].unflatten(1, (heads + 2 * kv_heads, -1)).split([heads, kv_heads, kv_heads], 1)

    # ---- the feed-forward branch ---------------------------------------------------------------------------------

    def feed_forward(self, rows: Tensor, residual: Tensor) -> Tensor:
        """residual + the feed-forward branch of rows [B*T,C]."""
        family, layer, route = self.state.family, self.layer, self.state.route
        if route is not None and (layer.training or route.evaluates):
            return route.run(self, rows, residual)
        mlp = parts.attribute(layer, family.mlp) if family.mlp else None
        if not self.state.mlp or self.state.activation is None or (mlp is not None and parts.hooked(mlp)):
            return self._stock_feed_forward(rows, residual, mlp)
        if "mlp" in self.recompute:
            return self._segmented(rows, residual)
        hidden = self.activate(self.linears(family.norm2, family.up, rows))
        return self._add(family.down, hidden, residual, family.post2, family.drop2)

    def activate(self, wide: tuple[Tensor, ...]) -> Tensor:
        name = self.state.activation
        assert name is not None
        return ops.glu(*wide, activation=name) if self.state.family.gated else ops.activation(wide[0], name)

    def _stock_feed_forward(self, rows: Tensor, residual: Tensor, mlp: nn.Module | None) -> Tensor:
        family, layer = self.state.family, self.layer
        z = self.norm(family.norm2, rows).unflatten(0, (self.batch, -1))
        if mlp is not None:
            y = mlp(z).flatten(0, 1)
            return self.join(y, residual, family.post2, _outside(family.drop2, family.mlp))
        up, down = parts.attribute(layer, family.up[0]), parts.attribute(layer, family.down)
        y = down(parts.attribute(layer, family.activation)(up(z))).flatten(0, 1)
        return self.join(y, residual, family.post2, family.drop2)

    def _segmented(self, rows: Tensor, residual: Tensor) -> Tensor:
        """The branch in segments of rows that are made again in the backward."""
        family = self.state.family
        found = [self._linear_of(path) for path in (*family.up, family.down)]
        norm = self.norm_of(family.norm2)
        probabilities = {entry[1] for entry in found if entry is not None}
        plain = family.post2 is None and not self.drops(family.drop2)
        if (
            None in found
            or norm is None
            or len(probabilities) > 1
            or not plain
            or parts.autocast_dtype(rows) is not None
        ):
            again = replace(self, recompute="none", shelf=None)
            return checkpointed(again.feed_forward, rows, residual, shelf=self.shelf)
        projections = [entry[0] for entry in found if entry is not None]
        assert self.state.activation is not None
        return ops.segment_mlp(
            rows,
            projections[:-1],
            projections[-1],
            norm,
            activation=self.state.activation,
            packed=family.gated and len(family.up) == 1,
            residual=residual,
            segment=SEGMENT,
            dropout_p=probabilities.pop(),
            known=self.known(),
        )

    def known(self) -> Tensor | None:
        """What the feed-forward gives, where that has been computed."""
        return None

    # ---- parts -----------------------------------------------------------------------------------------------------

    def linears(self, norm: str, paths: Sequence[str], rows: Tensor) -> tuple[Tensor, ...]:
        """norm(rows) through each of the linear layers."""
        entries = [entry for entry in map(self._linear_of, paths) if entry is not None]
        if len(entries) < len(paths) or len({p for _, p in entries}) > 1:
            z = self.norm(norm, rows)
            return tuple(self._linear(path, z, None) for path in paths)
        group, p = [projection for projection, _ in entries], entries[0][1]
        spec = self.norm_of(norm)
        dtype = parts.autocast_dtype(rows)
        if spec is None or dtype is not None:
            rows, spec = self.norm(norm, rows), None
        if dtype is not None:
            rows, group = rows.to(dtype), [parts.cast(projection, dtype) for projection in group]
        return ops.norm_lora_linear(rows, group, spec, dropout_p=p)

    def _add(self, path: str, x: Tensor, residual: Tensor, post: str | None, drop: str | None) -> Tensor:
        """residual + the linear layer of x, through the branch's norm and dropout where it has them."""
        if post is None and not self.drops(drop):
            return self._linear(path, x, residual)
        return self.join(self._linear(path, x, None), residual, post, drop)

    def join(self, y: Tensor, residual: Tensor, post: str | None, drop: str | None) -> Tensor:
        """residual + y through the branch's norm and dropout."""
        return residual + self._dropout(drop, y if post is None else self.norm(post, y))

    def _linear_of(self, path: str, residual: Tensor | None = None) -> tuple[ops.Projection, float] | None:
        return parts.linear_of(parts.attribute(self.layer, path), residual) if self.state.lora else None

    def _linear(self, path: str, x: Tensor, residual: Tensor | None) -> Tensor:
        dtype = parts.autocast_dtype(x)
        fused = residual if dtype is None else None
        found = self._linear_of(path, fused)
        if found is None:
            y = parts.attribute(self.layer, path)(x.unflatten(0, (self.batch, -1))).flatten(0, 1)
        else:
            projection, p = found
            if dtype is not None:
                x, projection = x.to(dtype), parts.cast(projection, dtype)
            y = ops.norm_lora_linear(x, [projection], dropout_p=p)[0]
            if fused is not None:
                return y
        return y if residual is None else residual + y

    def norm_of(self, path: str) -> ops.Norm | None:
        """A norm whose tensors an op may use; None where its module has to be called."""
        return parts.norm_of(parts.attribute(self.layer, path)) if self.state.norm else None

    def norm(self, path: str, x: Tensor) -> Tensor:
        """The norm of rows, by its module where it cannot be ours."""
        spec = self.norm_of(path)
        y: Tensor = parts.attribute(self.layer, path)(x) if spec is None else ops.apply_norm(spec, x)
        return y

    def drops(self, path: str | None) -> bool:
        """Whether a branch's dropout is at work."""
        return self._probability(path) > 0

    def _probability(self, path: str | None) -> float:
        if path is None or not self.layer.training:
            return 0.0
        found = parts.attribute(self.layer, path)
        return float(found.p if isinstance(found, nn.Dropout) else found or 0.0)

    def _dropout(self, path: str | None, x: Tensor) -> Tensor:
        p = self._probability(path)
        return nn.functional.dropout(x, p) if p > 0 else x


def _outside(drop: str | None, module: str | None) -> str | None:
    """The branch's dropout; None where it lies inside a module that was called and has applied it."""
    return None if drop is not None and drop.startswith(f"{module}.") else drop
