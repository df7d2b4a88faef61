"""Bad recipes: each row with the exact error that it gives."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from longspan.recipe import Recipe, RecipeError

TABLE: list[tuple[dict[str, Any] | Any, str]] = [
    ({"modle": "demo"}, "unknown key modle; did you mean model?"),
    (
        {"xyz": {}},
        "unknown key xyz; keys allowed here: model, dtype, seed, data, attention, tokens, ffn, positions, adapter, "
        "update, objective, lean, memory, trainer",
    ),
    ({"data": {"lenght": 8}}, "unknown key data.lenght; did you mean data.length?"),
    (
        {"attention": {"train": {"method": "s2", "group": 4}}},
        "unknown key attention.train.group; did you mean attention.train.groups?",
    ),
    (
        {"update": {"engine": {"method": "adamw", "beta": 1}}},
        "unknown key update.engine.beta; did you mean update.engine.betas?",
    ),
    (
        {"update": {"engine": {"method": "sgd", "eps": 1}}},
        "unknown key update.engine.eps; keys allowed here: update.engine.method, update.engine.lr, "
        "update.engine.momentum, update.engine.weight_decay",
    ),
    ({"lean": {"keep_logit": True}}, "unknown key lean.keep_logit; did you mean lean.keep_logits?"),
    (
        {"attention": {"train": {"method": "pq", "form": "masks"}}},
        "attention.train.form: unknown form 'masks'; did you mean 'mask'? available: mask, list, block",
    ),
    (
        {"attention": {"train": {"method": "pq", "subspaces": 0}}},
        "attention.train.subspaces: subspaces is 0; allowed: auto, or 1 to 64",
    ),
    (
        {"attention": {"decode": {"method": "pq"}}},
        "attention.decode: attention method 'pq' serves train, prefill only, not decode; available for decode: full, "
        "window",
    ),
    (
        {"attention": {"train": {"method": "pq", "window": 1.0}}, "data": {"length": 1024}},
        "attention.train: a window of 128 and 4 sinks are more than the 128 keys of keep_ratio 0.125; give a larger "
        "keep_ratio, or a smaller window or sinks; data.length is 1024",
    ),
    (
        {"attention": {"train": {"method": "s3"}}},
        "attention.train: unknown attention method 's3'; did you mean 's2'? available: full, pq, s2, window",
    ),
    (
        {"attention": {"train": "s2"}},
        "attention.train: must be a mapping with the key 'method', not 's2'; available: full, pq, s2, window",
    ),
    (
        {"attention": {"train": {"groups": 4}}},
        "attention.train: must be a mapping with the key 'method', not {'groups': 4}; available: full, pq, s2, window",
    ),
    (
        {"attention": {"decode": {"method": "s2"}}},
        "attention.decode: attention method 's2' serves train only, not decode; available for decode: full, window",
    ),
    (
        {"attention": {"train": {"method": "s2", "groups": 2, "group_size": 8}}},
        "attention.train: takes either groups or group_size, not both",
    ),
    (
        {"attention": {"train": {"method": "s2", "group_size": 7}}},
        "attention.train.group_size: input should be a multiple of 2, not 7",
    ),
    (
        {"attention": {"train": {"method": "s2", "group_size": 8192}}},
        "attention.train: group_size 8192 is larger than the row of 4096 tokens; data.length is 4096",
    ),
    (
        {"attention": {"train": {"method": "s2", "groups": 9}}, "data": {"length": 16}},
        "attention.train: 9 groups do not fit into a row of 16 tokens (2 tokens each); data.length is 16",
    ),
    ({"attention": {"train": {"method": "window"}}}, "attention.train.size is required"),
    (
        {"attention": {"train": {"method": "window", "size": 0}}},
        "attention.train.size: input should be greater than or equal to 1, not 0",
    ),
    ({"tokens": {"method": "tokentune"}}, "tokens: unknown tokens method 'tokentune'; available: lemo, none"),
    (
        {"tokens": {"method": "lemo", "selector": "score"}},
        "tokens.selector: unknown selector 'score'; did you mean 'scores'? available: predictor, scores, random, "
        "token_loss, gradient",
    ),
    (
        {"tokens": {"method": "lemo", "layers": [1, 1]}},
        "tokens.layers: layers is [1, 1]; allowed: later-half, thresholds, or a list of different layer numbers from 0",
    ),
    (
        {"tokens": {"method": "lemo", "layers": "thresholds"}},
        "tokens: layers: thresholds and the key thresholds (a file) go together; give both or none",
    ),
    (
        {"tokens": {"method": "lemo", "layers": "thresholds", "thresholds": "t.json"}},
        "tokens: thresholds are of scores; selector 'random' has none, use predictor or scores",
    ),
    (
        {"tokens": {"method": "lemo", "selector": "predictor"}},
        "tokens: selector is 'predictor' and predictor None; selector: predictor needs a file of `longspan lemo "
        "train-predictor` (or 'untrained'), and no other selector takes one",
    ),
    (
        {"tokens": {"method": "lemo", "forward": "eliminate", "selector": "gradient"}},
        "tokens: selector 'gradient' is known in the backward only; forward: eliminate takes predictor, scores, random",
    ),
    (
        {"tokens": {"method": "lemo", "forward": "dense", "mlp": "skip"}},
        "tokens: mlp: skip changes the forward; forward: dense takes mlp: dense, rows or cols",
    ),
    (
        {"ffn": {"train": {"method": "routed", "active": 5}}},
        "ffn.train: active is 5; there are 4 blocks",
    ),
    (
        {"ffn": {"eval": "routed"}},
        "ffn: eval is routed, and train is dense: give train: {method: routed}",
    ),
    (
        {"ffn": {"eval": "sparse"}},
        "ffn.eval: unknown ffn.eval 'sparse'; available: dense, routed",
    ),
    (
        {"ffn": {"train": {"method": "routed"}}, "tokens": {"method": "lemo"}},
        "ffn.train routed and tokens.mlp rows both choose what the feed-forward computes; use tokens.mlp: dense",
    ),
    (
        {"positions": {"method": "yarn"}},
        "positions: positions method 'yarn' is not available yet; available: linear, none",
    ),
    ({"positions": {"method": "linear"}}, "positions.factor is required"),
    (
        {"positions": {"method": "linear", "factor": 0.5}},
        "positions.factor: input should be greater than or equal to 1, not 0.5",
    ),
    ({"adapter": {"method": "lora", "rank": 0}}, "adapter.rank: input should be greater than or equal to 1, not 0"),
    ({"adapter": {"method": "lora", "dropout": 1.0}}, "adapter.dropout: input should be less than 1, not 1.0"),
    ({"adapter": {"method": "lora", "targets": ["q", "q"]}}, "adapter.targets: 'q' is given more than once"),
    (
        {"adapter": {"method": "lora", "also_train": ["norm"]}},
        "adapter.also_train.0: unknown part to train as well 'norm'; did you mean 'norms'? available: embeddings, "
        "norms",
    ),
    (
        {"update": {"engine": {"method": "meso"}}},
        "update.engine: unknown update engine method 'meso'; did you mean 'mezo'? available: adamw, es, mezo, sgd",
    ),
    (
        {"update": {"transforms": [{"method": "gmt", "mask_ratio": 0.2}]}},
        "unknown key update.transforms.0.mask_ratio; did you mean update.transforms.0.keep_ratio?",
    ),
    (
        {"update": {"transforms": [{"method": "gmt"}, {"method": "hft"}]}},
        "update: gmt and hft each say what takes part; give one of them",
    ),
    (
        {"update": {"transforms": [{"method": "gmt"}, {"method": "gmt"}]}},
        "update: transforms has gmt twice; give it once",
    ),
    (
        {"update": {"engine": {"method": "mezo"}, "transforms": [{"method": "gmt"}]}},
        "update: engine mezo has no gradients for gmt; give engine adamw or sgd",
    ),
    (
        {"update": {"engine": {"method": "mezo"}}, "attention": {"train": {"method": "s2"}}},
        "update.engine mezo runs the model as in evaluation, where attention.train s2 has no part; "
        "use attention.train: {method: full}",
    ),
    (
        {"update": {"groups": [{"keep_ratio": 0.5}]}},
        "update: a group has a keep_ratio, which only the transform gmt reads; add it",
    ),
    (
        {"update": {"groups": [{"freeze": True, "reinit": True}]}},
        "update.groups.0: what is frozen is not stepped: freeze stands alone",
    ),
    (
        {"update": {"groups": ["norms"]}},
        "update.groups.0: must be a mapping with the keys names, layers, lr_scale, layer_decay, weight_decay, "
        "keep_ratio, freeze, reinit, not 'norms'",
    ),
    (
        {"update": {"hooks": ["ema"]}},
        "update.hooks.0: must be a mapping with the key 'method', not 'ema'; available: ema",
    ),
    ({"objective": {"method": "dft"}}, "objective: objective method 'dft' is not available yet; available: sft"),
    (
        {"memory": {"recompute": "layers"}},
        "memory.recompute: unknown recompute 'layers'; did you mean 'layer'? available: none, mlp, mlp+qkv, layer, "
        "auto",
    ),
    ({"memory": {"offload": "disk"}}, "memory.offload: unknown offload 'disk'; available: none, cpu"),
    (
        {"memory": {"budget": "16 gigs"}},
        "memory.budget: must be a size like 24GiB, 8GB or 512MiB, or a number of bytes, not '16 gigs'",
    ),
    ({"memory": {"budget": 0}}, "memory.budget: must be at least 1 byte, not 0"),
    (
        {"memory": {"budget": 1.5}},
        "memory.budget: must be a size like 24GiB, 8GB or 512MiB, or a number of bytes, not 1.5",
    ),
    ({"dtype": "float16"}, "dtype: dtype 'float16' is not available yet; available: float32, bfloat16"),
    ({"seed": -1}, "seed: input should be greater than or equal to 0, not -1"),
    (
        {"data": {"format": "chat"}},
        "data.format: unknown data format 'chat'; available: text, prompt_completion, messages",
    ),
    (
        {"data": {"packing": "doc"}},
        "data.packing: unknown packing 'doc'; did you mean 'documents'? available: documents, none",
    ),
    ({"data": {"held_out": 1}}, "data.held_out: must be a share of documents from 0 to below 1, or a file, not 1"),
    ({"data": {"length": 1}}, "data.length: input should be greater than or equal to 16, not 1"),
    ({"data": {"format": "messages"}}, "data: 'demo' holds plain text, so format must be text, not messages"),
    (
        {"data": {"train": "a.txt", "held_out": 0, "format": "messages"}},
        "data: 'a.txt' holds plain text, so format must be text, not messages",
    ),
    ({"trainer": {"steps": True}}, "trainer.steps: input should be a valid integer, not True"),
    ({"trainer": {"steps": "10"}}, "trainer.steps: input should be a valid integer, not '10'"),
    ({"trainer": {"warmup": 101}}, "trainer.warmup 101 is larger than trainer.steps 100"),
    (
        {"trainer": {"schedule": "cosin"}},
        "trainer.schedule: unknown schedule 'cosin'; did you mean 'cosine'? available: constant, linear, cosine",
    ),
    ({"lean": {"norm": "yes"}}, "lean.norm: input should be a valid boolean, not 'yes'"),
    ({"data": None}, "data: must be a mapping with the keys train, held_out, format, length, packing, not None"),
    (
        {"seed": -1, "data": {"lenght": 8}},
        "2 problems\n  seed: input should be greater than or equal to 0, not -1\n  unknown key "
        "data.lenght; did you mean data.length?",
    ),
]


@pytest.mark.parametrize(("given", "message"), TABLE, ids=[str(row[0])[:60] for row in TABLE])
def test_bad_recipe(given: Any, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.model_validate(given)
    assert str(caught.value) == f"recipe: {message}"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty; it needs at least 'model: demo'"),
        ("- a\n- b\n", "must hold a mapping of keys, not a list"),
        ("model: demo\nmodel: other\n", "line 2, column 1: the key 'model' is given twice"),
        ("data:\n  length: 16\n  length: 32\n", "line 3, column 3: the key 'length' is given twice"),
        ("1: demo\n", "line 1, column 1: the key 1 is not text"),
        ("model: [demo\n", "line 2, column 1: expected ',' or ']', but got '<stream end>'"),
        (
            "model: !!python/object/apply:os.getcwd []\n",
            "line 1, column 8: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object/apply:os.getcwd'",
        ),
        ("data: {lenght: 3}\n", "unknown key data.lenght; did you mean data.length?"),
    ],
)
def test_bad_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(path)
    assert str(caught.value) == f"{path}: {message}"


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no recipe .*absent\.yaml"):
        Recipe.from_yaml(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"model: \xff\xfe")
    with pytest.raises(RecipeError, match="not UTF-8 text: invalid start byte at byte 7"):
        Recipe.from_yaml(tmp_path / "binary.yaml")
