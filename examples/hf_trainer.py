"""transformers.Trainer, unmodified, on a patched model with token elimination in its later layers.

python examples/hf_trainer.py --model FOLDER_OR_HUB_ID --text FILE [FILE ...] --length 8192 --output run
"""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

import longspan


def main(arguments: list[str] | None = None) -> Trainer:
    """Trains on rows of the text, evaluates on the last of them, saves the adapter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", nargs="+", type=Path, required=True)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", required=True)
    given = parser.parse_args(arguments)

    tokenizer = AutoTokenizer.from_pretrained(given.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    text = "\n".join(path.read_text(encoding="utf-8") for path in given.text)
    tokens = tokenizer(text)["input_ids"]
    rows = [tokens[i : i + given.length] for i in range(0, len(tokens) - given.length + 1, given.length)]

    model = AutoModelForCausalLM.from_pretrained(given.model)
    model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    elimination = {"method": "lemo", "forward": "dense", "selector": "gradient", "keep_ratio": 0.4}
    print(longspan.patch(model, {"data": {"length": given.length}, "tokens": elimination}))

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=given.output,
            max_steps=given.steps,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
            learning_rate=5e-4,
            logging_steps=1,
            report_to="none",
        ),
        train_dataset=Dataset.from_dict({"input_ids": rows[:-1]}),
        eval_dataset=Dataset.from_dict({"input_ids": rows[-1:]}),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.train()
    print(trainer.evaluate())  # dense: the patch works in training only
    model.save_pretrained(given.output)
    return trainer


if __name__ == "__main__":
    main()
