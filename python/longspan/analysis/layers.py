"""Running a frozen model over rows of text and looking at what its decoder layers are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from longspan import data
from longspan.patch.decoder import run_decoder
from longspan.patch.install import causal_model
from longspan.patch.layers.forward import STATE
from longspan.patch.layers.layer import Layer
from longspan.patch.tokens.stream import Stream
from longspan.recipe import Recipe
from longspan.tokens.lemo import LeMo


@dataclass(frozen=True)
class Input:
    """What one decoder layer is given: its number, a call of it, rows [M,C], and the tokens they are."""

    number: int
    call: Layer
    rows: Tensor
    stream: Stream

    def normed(self) -> Tensor:
        """What a predictor is given, in float32: [M,C]."""
        return self.call.norm(self.call.state.family.norm1, self.rows).float()


@dataclass
class Subject:
    """A frozen model in evaluation mode, patched without a token method; its tokenizer; the method to look at."""

    model: Any
    tokenizer: Any
    recipe: Recipe
    method: LeMo

    @property
    def layers(self) -> list[nn.Module]:
        """Its decoder layers."""
        return [module for module in causal_model(self.model).modules() if STATE in module.__dict__]

    @property
    def chosen(self) -> tuple[int, ...]:
        """Numbers of the layers that the method names."""
        return self.method.chosen_layers(len(self.layers))

    def rows(self, *, held_out: bool = False) -> Any:
        """The recipe's rows. Raises ValueError where held-out ones are asked for and there are none."""
        return rows_of(self.recipe, self.model, self.tokenizer, held_out=held_out)


def rows_of(recipe: Recipe, model: Any, tokenizer: Any, *, held_out: bool = False) -> Any:
    """A recipe's rows. Raises ValueError where held-out ones are asked for and there are none."""
    size = model.get_input_embeddings().num_embeddings
    train, other = data.build(recipe.data, tokenizer, recipe.seed, vocab_size=size)
    if held_out and not other:
        raise ValueError("data.held_out is 0, and what is measured is measured on held-out rows; set a share")
    return other if held_out else train


def text_row(path: Path, tokenizer: Any, recipe: Recipe) -> dict[str, Any]:
    """The first tokens of a text file, as a row of the recipe's length. Raises ValueError for one without any."""
    ids = tokenizer(path.read_text(encoding="utf-8")).input_ids[: recipe.data.length]
    if not ids:
        raise ValueError(f"{path} holds no token")
    return {"input_ids": ids, "labels": ids, "doc_lengths": [len(ids)]}


def bare(recipe: Recipe) -> Recipe:
    """The recipe of the model that a `Subject` looks at: without adapter and token method."""
    return recipe.replace({"adapter": {"method": "none"}, "tokens": {"method": "none"}})


def subject_of(recipe: Recipe, model: Any, tokenizer: Any) -> Subject:
    """A model prepared by the recipe's `bare` form, frozen; what is looked at is the recipe's LeMo, or its defaults.

    Raises ValueError where no decoder layer runs in longspan.
    """
    method = recipe.tokens if isinstance(recipe.tokens, LeMo) else LeMo()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    subject = Subject(model.eval(), tokenizer, recipe, method)
    if not subject.layers:
        raise ValueError("no decoder layer runs in longspan: lean parts are off, or the model's family is unknown")
    return subject


@contextmanager
def watching(subject: Subject, numbers: tuple[int, ...], see: Callable[[Input], None]) -> Iterator[None]:
    """While inside, `see` is called with the input of each of these layers before it runs."""
    handles, every = [], subject.layers
    for number in numbers:
        layer = every[number]

        def enter(module: nn.Module, args: Any, kwargs: dict[str, Any], number: int = number) -> None:
            state = getattr(module, STATE)
            given = dict(zip(state.names, args, strict=False)) | kwargs
            hidden: Tensor = given.pop(state.names[0])
            batch, length, columns = hidden.shape
            stream = Stream.of(f"layer {number}", given, batch, length, hidden.device, subject.method.block)
            see(Input(number, Layer(module, state, "none"), hidden.reshape(-1, columns), stream))

        handles.append(layer.register_forward_pre_hook(enter, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run(model: Any, row: Any) -> None:
    """The decoder over one row of data, without its head."""
    run_decoder(model, data.collate([row]))
