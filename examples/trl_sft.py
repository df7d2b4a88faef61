"""TRL's SFTTrainer, unmodified, on a patched model: packed conversations, gradients masked by GMT.

    python examples/trl_sft.py --model FOLDER_OR_HUB_ID --messages FILE.jsonl --length 8192 --output run

A line of the file is {"messages": [{"role": ..., "content": ...}, ...]}. TRL computes the loss with a fused head of
its own, so longspan's loss does not run; its attention, layers and update do.
"""

from __future__ import annotations

import argparse

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import longspan
from longspan.updates import GradientMaskAdamW


def main(arguments: list[str] | None = None) -> SFTTrainer:
    """Full fine-tuning on packed conversations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--messages", required=True)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", required=True)
    given = parser.parse_args(arguments)

    model = AutoModelForCausalLM.from_pretrained(given.model)
    print(longspan.patch(model, {"data": {"length": given.length}, "memory": {"recompute": "mlp"}}))
    # The optimizer clips by the norm of what its masks keep, so the trainer must not clip before it.
    optimizer = GradientMaskAdamW(model.named_parameters(), lr=1e-5, keep_ratio=0.2, clip=1.0)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=given.output,
            max_steps=given.steps,
            per_device_train_batch_size=1,
            max_length=given.length,
            packing=True,
            max_grad_norm=0.0,
            gradient_checkpointing=False,  # longspan recomputes what is cheap to recompute
            bf16=False,
            logging_steps=1,
            report_to="none",
        ),
        train_dataset=load_dataset("json", data_files=given.messages, split="train"),
        processing_class=AutoTokenizer.from_pretrained(given.model),
        optimizers=(optimizer, None),
    )
    trainer.train()
    trainer.save_model(given.output)
    return trainer


if __name__ == "__main__":
    main()
