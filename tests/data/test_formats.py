"""Labels are exactly the tokens that the model is to say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.data.formats import Encoder
from tests.chat import make_tokenizer

TOKENIZER = make_tokenizer()
words = st.text(st.sampled_from("the user\n é.<>人"), min_size=1, max_size=12)


def encode(form: str, record: dict[str, Any], tokenizer: Any = TOKENIZER) -> tuple[list[int], list[bool] | None]:
    (encoded,) = Encoder(tokenizer, form).encode([record], ["here"])
    return encoded


def labelled(ids: list[int], marks: list[bool] | None) -> bytes:
    """The bytes of the labelled tokens; a token may hold part of a character."""
    assert marks is not None
    assert len(ids) == len(marks)
    return b"".join(as_bytes(token) for token, mark in zip(ids, marks, strict=True) if mark)


def as_bytes(token: int) -> bytes:
    """The bytes behind a token of a byte-level vocabulary."""
    from tokenizers import pre_tokenizers

    text = TOKENIZER.convert_ids_to_tokens(token)
    if token in TOKENIZER.all_special_ids:
        return text.encode()
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in printable}
    rest = [byte for byte in range(256) if byte not in printable]
    table.update({chr(256 + index): byte for index, byte in enumerate(rest)})
    assert set(table) == set(pre_tokenizers.ByteLevel.alphabet())
    return bytes(table[character] for character in text)


@given(words)
def test_every_token_of_a_text_is_a_label_and_it_ends(text: str) -> None:
    if not text.strip():
        return
    ids, marks = encode("text", {"text": text})
    assert marks is None
    assert b"".join(map(as_bytes, ids)).decode() == text + "</s>"


@given(words, words)
def test_the_labels_of_a_completion_spell_it(prompt: str, completion: str) -> None:
    ids, marks = encode("prompt_completion", {"prompt": prompt, "completion": completion})
    assert b"".join(map(as_bytes, ids)).decode() == prompt + completion + "</s>"
    said = labelled(ids, marks)
    # A token across the border belongs to the completion, so labels may begin with the prompt's last characters.
    assert said.endswith((completion + "</s>").encode())
    extra = said[: -len((completion + "</s>").encode())]
    assert prompt.encode().endswith(extra)
    if extra:
        border = marks.index(True)
        assert len(as_bytes(ids[border])) > len(extra), "the first labelled token holds some of the completion"


def test_the_border_is_exact_when_no_token_crosses_it() -> None:
    ids, marks = encode("prompt_completion", {"prompt": "the user asks", "completion": "\n\nthe answers\n\n"})
    assert labelled(ids, marks) == b"\n\nthe answers\n\n</s>"


turns = st.lists(st.tuples(words, words), min_size=1, max_size=3)


@given(turns)
def test_the_labels_of_a_conversation_are_the_assistants_words(pairs: list[tuple[str, str]]) -> None:
    pairs = [(asked.strip() + "?", answered.strip() + "!") for asked, answered in pairs]
    messages = [
        {"role": role, "content": content}
        for asked, answered in pairs
        for role, content in (("user", asked), ("assistant", answered))
    ]
    ids, marks = encode("messages", {"messages": messages})
    text = TOKENIZER.apply_chat_template(messages, tokenize=False)
    assert b"".join(map(as_bytes, ids)).decode() == text
    assert labelled(ids, marks) == "".join(f"{answered}</s>" for _, answered in pairs).encode()


def test_a_template_with_generation_marks_decides_itself() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message['role'] == 'assistant' %}{% generation %}"
        "{{ message['content'] }}{% endgeneration %}{{ '</s>' }}{% else %}{{ message['content'] + '\n' }}{% endif %}"
        "{% endfor %}"
    )
    messages = [{"role": "user", "content": "the user"}, {"role": "assistant", "content": "main(argv)"}]
    ids, marks = encode("messages", {"messages": messages}, tokenizer)
    assert labelled(ids, marks) == b"main(argv)"


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}"
    messages = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    with pytest.raises(ValueError, match="here: the conversation is rendered differently once it goes on"):
        encode("messages", {"messages": messages}, tokenizer)


def test_formats_that_need_offsets_or_a_template_say_so() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match=r"format prompt_completion needs a fast tokenizer .*; Slow is not"):
        Encoder(Slow(), "prompt_completion")
    plain = make_tokenizer()
    plain.chat_template = None
    with pytest.raises(ValueError, match="format messages needs a chat template and the tokenizer has none"):
        Encoder(plain, "messages")
