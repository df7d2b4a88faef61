"""From a record to token ids and the tokens that are labels: text, prompt/completion, messages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

KEYS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "prompt_completion": ("prompt", "completion"),
    "messages": ("messages",),
}

# A template that marks the assistant's words itself, by {% generation %} ... {% endgeneration %}.
_GENERATION = re.compile(r"\{%-?\s*generation\b")

Encoded = tuple[list[int], "list[bool] | None"]  # ids [T], is a label [T]; None where every token is one


def check_record(record: Any, form: str, where: str) -> dict[str, Any]:
    """The keys of ``form`` out of a record. Raises ``ValueError`` naming the record and the missing key."""
    keys = KEYS[form]
    if not isinstance(record, Mapping):
        raise ValueError(f"{where}: must be an object with {_listed(keys)}, not {type(record).__name__}")
    for key in keys:
        if key not in record:
            found = _listed(tuple(str(name) for name in record)) if record else "no keys at all"
            fitting = [name for name, needs in KEYS.items() if all(need in record for need in needs)]
            hint = f"; set data.format: {fitting[0]}" if fitting else ""
            raise ValueError(f"{where}: format {form} needs {_listed(keys)}, the record has {found}{hint}")
        if key != "messages" and not isinstance(record[key], str):
            raise ValueError(f"{where}: {key!r} must be text, not {type(record[key]).__name__}")
    if form == "messages":
        _check_messages(record["messages"], where)
    return {key: record[key] for key in keys}


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(repr(key) for key in keys)


def _check_messages(messages: Any, where: str) -> None:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or len(messages) == 0:
        raise ValueError(f"{where}: 'messages' must be a list of {{role, content}} with at least one entry")
    for index, message in enumerate(messages):
        fine = isinstance(message, Mapping) and isinstance(message.get("role"), str)
        if not fine or not isinstance(message.get("content"), str):
            raise ValueError(f"{where}: messages[{index}] must be {{role, content}} with text in both, not {message!r}")
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError(f"{where}: no message has the role 'assistant', so nothing would be learned")


class Encoder:
    """Encodes records of one format with one tokenizer.

    Text gets the end-of-text token after it, and what the tokenizer itself adds before it. Labels of prompt
    and completion, and of messages, are exact: a token is a label if a character of it belongs to the
    completion (the assistant's words and the end-of-turn token after them). The text is tokenised as a
    whole, as the model will meet it.
    """

    def __init__(self, tokenizer: Any, form: str) -> None:
        if form != "text" and not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"format {form} needs a fast tokenizer (one with character offsets); {type(tokenizer).__name__} is not"
            )
        self.tokenizer, self.form = tokenizer, form
        self.template = getattr(tokenizer, "chat_template", None)
        if form == "messages" and not self.template:
            raise ValueError(
                "format messages needs a chat template and the tokenizer has none; use a chat model's "
                "tokenizer "
                "or set tokenizer.chat_template"
            )

    def encode(self, records: Sequence[Mapping[str, Any]], places: Sequence[str]) -> list[Encoded]:
        """Token ids and label marks of each record. Raises ``ValueError`` naming the place of a bad one."""
        if self.form == "text":
            encoded = self._text([record["text"] for record in records])
        elif self.form == "prompt_completion":
            encoded = [self._prompt_completion(record) for record in records]
        else:
            encoded = [self._messages(record["messages"], where) for record, where in zip(records, places, strict=True)]
        for (ids, marks), where in zip(encoded, places, strict=True):
            # The first token has no context to be predicted from, so it cannot be the only label.
            if len(ids) < 2 or (marks is not None and not any(marks[1:])):
                raise ValueError(f"{where}: no token to learn from ({len(ids)} tokens in all); remove the record")
        return encoded

    def _text(self, texts: list[str]) -> list[Encoded]:
        for_empty: list[Encoded] = [([], None) for _ in texts]
        filled = [index for index, text in enumerate(texts) if text.strip()]
        if filled:
            ids = self.tokenizer([texts[index] for index in filled], verbose=False)["input_ids"]
            for index, tokens in zip(filled, ids, strict=True):
                for_empty[index] = (self._ended(list(tokens)), None)
        return for_empty

    def _ended(self, ids: list[int]) -> list[int]:
        end = self.tokenizer.eos_token_id
        return ids if end is None or (ids and ids[-1] == end) else [*ids, end]

    def _prompt_completion(self, record: Mapping[str, Any]) -> Encoded:
        prompt, completion = record["prompt"], record["completion"]
        if not completion:
            return [], None
        out = self.tokenizer(prompt + completion, return_offsets_mapping=True, verbose=False)
        ids = list(out["input_ids"])
        # Byte-level tokenizers trim white space off offsets, so a token of white space only is (end, end).
        marks = [end > len(prompt) for _, end in out["offset_mapping"]]
        ended = self._ended(ids)
        if len(ended) == len(marks) and ids[-1] == self.tokenizer.eos_token_id:
            marks[-1] = True  # the tokenizer added the end itself, without characters
        return ended, marks + [True] * (len(ended) - len(marks))

    def _messages(self, messages: Sequence[Mapping[str, Any]], where: str) -> Encoded:
        if _GENERATION.search(str(self.template)):
            out = self.tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
            return list(out["input_ids"]), [bool(mark) for mark in out["assistant_masks"]]
        text = self._render(messages)
        spans = [self._span(messages, i, text, where) for i, m in enumerate(messages) if m["role"] == "assistant"]
        out = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        marks = [
            any(end > begin and (start < stop or end <= stop) for begin, stop in spans)
            for start, end in out["offset_mapping"]
        ]
        return list(out["input_ids"]), marks

    def _render(self, messages: Sequence[Mapping[str, Any]], prompt: bool = False) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))

    def _span(self, messages: Sequence[Mapping[str, Any]], index: int, text: str, where: str) -> tuple[int, int]:
        """Characters of ``text`` that message ``index`` made the model say, its end-of-turn token included."""
        before = self._render(messages[:index], prompt=True) if index else ""
        through = self._render(messages[: index + 1])
        if not index or not text.startswith(through) or not through.startswith(before):
            reason = "starts with the assistant" if not index else "is rendered differently once it goes on"
            raise ValueError(
                f"{where}: the conversation {reason}, so the assistant's words cannot be located; start "
                f"with another "
                "role or use a chat template with {% generation %} marks"
            )
        end_of_turn = self.tokenizer.eos_token
        said = through.rstrip()
        # White space that the template puts after the end-of-turn token is never generated.
        return len(before), len(said) if end_of_turn and said.endswith(end_of_turn) else len(through)
