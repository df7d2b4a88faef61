"""Passkey retrieval: five digits hidden in real text, asked for at the end (Mohtashami and Jaggi 2023, arXiv
2305.16300, section 4.2; by length as in Chen et al. 2023, arXiv 2309.12307)."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch

from longspan.data.demo import reference_text
from longspan.eval.scoring import evaluating, takes

HEAD = "There is important information hidden inside a lot of text. Find it and memorize it.\n\n"
NEEDLE = "\nThe pass key is {key}. Remember it. {key} is the pass key.\n\n"
QUESTION = "\n\nWhat is the pass key? The pass key is"
DEPTH_BANDS = 5


class Trial(TypedDict):
    """One question: where the key stood (0 start, 1 end), how long the prompt was, and what was answered."""

    depth: float
    tokens: int
    key: str
    answer: str
    correct: bool


class Retrieval(TypedDict):
    """Share of right answers at one length, in all and by fifths of the depth (None where no trial fell)."""

    accuracy: float
    by_depth: dict[str, float | None]
    trials: list[Trial]


@dataclass(frozen=True)
class Prompt:
    """Token ids whose last word the model is to continue with ``key``; ``depth`` is where the key really stands."""

    ids: list[int]
    key: str
    depth: float
    new_tokens: int


class PromptMaker:
    """Builds prompts of an exact length out of a tokenizer and a filler text, which is repeated where it ends."""

    def __init__(self, tokenizer: Any, filler: str | None = None) -> None:
        text = reference_text() if filler is None else filler
        lines = [line for line in text.splitlines(keepends=True) if line.strip()]
        if not lines:
            raise ValueError("the filler text is empty")
        self.tokenizer = tokenizer
        encoded = tokenizer(lines, add_special_tokens=False)["input_ids"]
        self.lines: list[list[int]] = [list(ids) for ids in encoded if ids]
        # What the tokenizer puts before a text belongs to the prompt, an end-of-text mark after it does not.
        head = list(tokenizer(HEAD)["input_ids"])
        marked = head[-1] == tokenizer.eos_token_id and head != self._ids(HEAD)
        self.head = head[:-1] if marked else head

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def make(self, length: int, depth: float, rng: random.Random) -> Prompt:
        """A prompt that ends, with its answer, at ``length`` tokens; the key stands at the line nearest
        ``depth``.

        Raises ``ValueError`` when ``length`` leaves no room for the filler.
        """
        key = str(rng.randint(10000, 99999))
        needle, question = self._ids(NEEDLE.format(key=key)), self._ids(QUESTION)
        # One token more than the digits take, so that a sixth digit is seen and counts as wrong.
        new_tokens = len(self._ids(f"{QUESTION} {key}")) - len(question) + 1
        room = length - len(self.head) - len(needle) - len(question) - new_tokens
        if room < 1:
            raise ValueError(f"a passkey prompt needs at least {length - room + 1} tokens, not {length}")
        filler: list[int] = []
        borders = [0]
        at = rng.randrange(len(self.lines))
        while len(filler) < room:
            filler += self.lines[at]
            at = (at + 1) % len(self.lines)
            borders.append(min(len(filler), room))
        place = min(borders, key=lambda border: abs(border - depth * room))
        ids = [*self.head, *filler[:place], *needle, *filler[place:room], *question]
        return Prompt(ids, key, place / room, new_tokens)


def decode_greedily(model: Any, ids: Sequence[int], new_tokens: int) -> list[int]:
    """The likeliest continuation, token by token with the model's cache; call inside ``evaluating``."""
    lean = {"logits_to_keep": 1} if takes(model, "logits_to_keep") else {}
    step = torch.tensor([list(ids)], dtype=torch.long, device=model.device)
    cache = None
    answer: list[int] = []
    for _ in range(new_tokens):
        out = model(input_ids=step, past_key_values=cache, use_cache=True, **lean)
        cache = out.past_key_values
        if cache is None:
            raise ValueError(f"{type(model).__name__} returns no key-value cache")
        step = out.logits[:, -1:].argmax(dim=-1)
        answer.append(int(step))
    return answer


def passkey(
    model: Any,
    tokenizer: Any,
    lengths: Sequence[int],
    trials: int = 10,
    seed: int = 0,
    *,
    filler: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, Retrieval]:
    """Accuracy of passkey retrieval by length, at random depths spread evenly over each length.

    A trial of ``length`` tokens (prompt and answer) hides five digits in ``filler`` (default: Python's
    language reference) and counts as right when greedy decoding continues with exactly these digits. Keys,
    depths and filler follow from (seed, length, trial) alone. ``progress`` is told trials done and trials
    in all.

    Raises ``ValueError`` for no lengths, lengths too short for the prompt, and fewer than one trial.
    """
    if not lengths:
        raise ValueError("passkey needs at least one length")
    if trials < 1:
        raise ValueError(f"passkey needs at least one trial, not {trials}")
    maker = PromptMaker(tokenizer, filler)
    jobs = []
    for length in sorted(set(lengths)):
        for trial in range(trials):
            rng = random.Random(f"{seed}/{length}/{trial}")
            jobs.append((length, maker.make(length, (trial + rng.random()) / trials, rng)))
    found: dict[int, list[Trial]] = {length: [] for length, _ in jobs}
    with evaluating(model):
        for done, (length, prompt) in enumerate(jobs, start=1):
            try:
                answer = tokenizer.decode(decode_greedily(model, prompt.ids, prompt.new_tokens))
            except IndexError as error:
                raise ValueError(
                    f"the model cannot read {length} tokens: its positions end before ({error})"
                ) from error
            digits = re.match(r"\s*(\d+)", answer)
            found[length].append(
                Trial(
                    depth=prompt.depth,
                    tokens=len(prompt.ids),
                    key=prompt.key,
                    answer=answer,
                    correct=digits is not None and digits[1] == prompt.key,
                )
            )
            if progress is not None:
                progress(done, len(jobs))
    return {length: _retrieval(rows) for length, rows in found.items()}


def _retrieval(rows: list[Trial]) -> Retrieval:
    bands: list[list[bool]] = [[] for _ in range(DEPTH_BANDS)]
    for row in rows:
        bands[min(int(row["depth"] * DEPTH_BANDS), DEPTH_BANDS - 1)].append(row["correct"])
    step = 100 // DEPTH_BANDS
    return Retrieval(
        accuracy=sum(row["correct"] for row in rows) / len(rows),
        by_depth={
            f"{i * step}-{(i + 1) * step} %": sum(band) / len(band) if band else None for i, band in enumerate(bands)
        },
        trials=rows,
    )
