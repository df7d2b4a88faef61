"""Passkey prompts are exact, and only who can copy the key scores."""

from __future__ import annotations

import random
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from longspan.eval import passkey
from longspan.eval.passkey import PromptMaker, decode_greedily
from longspan.eval.scoring import evaluating

FILLER = "".join(f"Line {number} of the text that the user asks about.\n" for number in range(50))


class Scripted(torch.nn.Module):
    """A 'model' that answers with a function of the prompt's text, one token a call, through a cache it fakes."""

    def __init__(self, tokenizer: Any, answer: Any) -> None:
        super().__init__()
        self.tokenizer, self.answer, self.device = tokenizer, answer, torch.device("cpu")
        self.prompts: list[list[int]] = []
        self.given: list[int] = []

    def forward(
        self, input_ids: Any, past_key_values: Any = None, use_cache: bool = True, logits_to_keep: int = 0
    ) -> Any:
        if past_key_values is None:
            ids = input_ids[0].tolist()
            self.prompts.append(ids)
            text = self.tokenizer.decode(ids)
            past_key_values = [*self.tokenizer(self.answer(text))["input_ids"], *[0] * 50]
        self.given.append(input_ids.shape[1])
        logits = torch.zeros(1, 1, len(self.tokenizer))
        logits[0, 0, past_key_values[0]] = 1
        return SimpleNamespace(logits=logits, past_key_values=past_key_values[1:])


def copy_key(text: str) -> str:
    return " " + re.search(r"The pass key is (\d{5})\. Remember", text)[1] + "."


def test_who_copies_the_key_scores_and_who_does_not_fails(chat_tokenizer: Any) -> None:
    answers = {
        "right": (copy_key, 1.0),
        "off by one": (lambda text: " " + str(int(copy_key(text)[1:6]) + 1), 0.0),
        "a digit too many": (lambda text: copy_key(text)[:6] + "7", 0.0),
        "a digit short": (lambda text: copy_key(text)[:5] + ".", 0.0),
        "words": (lambda text: " the key", 0.0),
    }
    for name, (answer, want) in answers.items():
        found = passkey(Scripted(chat_tokenizer, answer), chat_tokenizer, [400], trials=6, filler=FILLER)
        assert found[400]["accuracy"] == want, name


def test_prompts_are_of_exact_length_and_hold_the_key_twice(chat_tokenizer: Any) -> None:
    maker = PromptMaker(chat_tokenizer, FILLER)
    for length in (300, 511, 5000):
        for depth in (0.0, 0.37, 1.0):
            prompt = maker.make(length, depth, random.Random(length))
            assert len(prompt.ids) + prompt.new_tokens == length
            text = chat_tokenizer.decode(prompt.ids)
            assert text.count(prompt.key) == 2
            assert text.endswith("What is the pass key? The pass key is")
            assert text.startswith("There is important information hidden")
            before = text.index("The pass key is") / len(text)
            assert abs(before - depth) < 0.35 if length < 600 else abs(before - depth) < 0.1
            assert abs(prompt.depth - depth) < 40 / length + 0.01


def test_the_key_stands_at_a_line_of_its_own(chat_tokenizer: Any) -> None:
    prompt = PromptMaker(chat_tokenizer, FILLER).make(2000, 0.5, random.Random(0))
    text = chat_tokenizer.decode(prompt.ids)
    at = text.index("\nThe pass key is")
    assert text[:at].endswith(".\n")
    assert re.match(r"Line \d+ of", text[text.index("is the pass key.") + len("is the pass key.\n\n") :])


def test_trials_follow_from_seed_length_and_number_alone(chat_tokenizer: Any) -> None:
    def prompts(lengths: list[int], trials: int, seed: int) -> list[list[int]]:
        model = Scripted(chat_tokenizer, copy_key)
        passkey(model, chat_tokenizer, lengths, trials, seed, filler=FILLER)
        return model.prompts

    random.seed(5)
    state = random.getstate()
    both = prompts([400, 300], 3, 1)
    assert random.getstate() == state
    assert both == prompts([300], 3, 1) + prompts([400], 3, 1)
    assert len({tuple(ids) for ids in both}) == 6
    assert both[0] not in prompts([300], 3, 2)


def test_depths_cover_the_length_and_are_reported_by_fifths(chat_tokenizer: Any) -> None:
    def only_near(text: str) -> str:
        return copy_key(text) if text.index("The pass key is") > 0.55 * len(text) else " no"

    found = passkey(Scripted(chat_tokenizer, only_near), chat_tokenizer, [4000], trials=20, filler=FILLER)[4000]
    assert list(found["by_depth"].values())[:2] == [0.0, 0.0]
    assert list(found["by_depth"].values())[3:] == [1.0, 1.0]
    assert found["accuracy"] == pytest.approx(0.45, abs=0.1)
    depths = [trial["depth"] for trial in found["trials"]]
    assert all(i / 20 - 0.02 <= depth <= (i + 1) / 20 + 0.02 for i, depth in enumerate(depths))


def test_greedy_decoding_with_a_cache_is_greedy_decoding(chat_tokenizer: Any) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(chat_tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM(config).train()
    ids = list(range(3, 60))
    with evaluating(model):
        got = decode_greedily(model, ids, 9)
        want = list(ids)
        for _ in range(9):
            want.append(int(model(input_ids=torch.tensor([want]), use_cache=False).logits[0, -1].argmax()))
    assert got == want[len(ids) :]
    assert model.training
    assert passkey(model, chat_tokenizer, [300], trials=3)[300]["accuracy"] == 0.0, "random weights know no key"


def test_the_cache_is_used(chat_tokenizer: Any) -> None:
    model = Scripted(chat_tokenizer, copy_key)
    passkey(model, chat_tokenizer, [300], trials=1, filler=FILLER)
    assert model.given[0] > 200
    assert set(model.given[1:]) == {1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": []}, "passkey needs at least one length"),
        ({"lengths": [300], "trials": 0}, "passkey needs at least one trial, not 0"),
        ({"lengths": [300], "filler": " \n"}, "the filler text is empty"),
    ],
)
def test_bad_input(chat_tokenizer: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        passkey(Scripted(chat_tokenizer, copy_key), chat_tokenizer, **options)
    assert str(caught.value) == message


def test_a_length_without_room_says_how_much_is_needed(chat_tokenizer: Any) -> None:
    model = Scripted(chat_tokenizer, copy_key)
    with pytest.raises(ValueError, match=r"a passkey prompt needs at least \d+ tokens, not 64") as caught:
        passkey(model, chat_tokenizer, [64], filler=FILLER, trials=1)
    needed = int(re.search(r"at least (\d+)", str(caught.value))[1])
    assert passkey(model, chat_tokenizer, [needed + 8], filler=FILLER, trials=1)[needed + 8]["accuracy"] == 1.0
