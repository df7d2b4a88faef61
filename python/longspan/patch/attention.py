"""Give one model the attention engine, and take it away again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from longspan import ops
from longspan.patch import backend, pq, probe
from longspan.patch.backend import OPTIONS, AttentionOptions, Chooser, Observed
from longspan.recipe import Recipe

# Where attention modules keep their dropout probability.
_DROPOUTS = ("attention_dropout", "attn_dropout", "attn_pdrop", "dropout")


@dataclass
class AttentionPatch:
    """What was changed: the config objects of the model before (``originals``) and their private copies."""

    paths: dict[str, str] = field(default_factory=dict)
    originals: list[Any] = field(default_factory=list)
    privates: list[Any] = field(default_factory=list)
    snapshots: list[dict[str, Any]] = field(default_factory=list)


def refuse(model: Any) -> None:
    """Raise ``ValueError`` for models whose class or config says that the engine cannot serve them."""
    name = type(model).__name__
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{name} is an encoder-decoder; longspan serves causal (decoder-only) language models")
    if config.get_text_config() is not config:
        raise ValueError(f"{name} joins several models ({', '.join(_sub_configs(config))}); patch a text-only model")
    if getattr(config, "is_causal", True) is False:
        raise ValueError(f"{name} has config.is_causal=False; bidirectional attention is not served")
    if getattr(config, "alibi", False) or getattr(getattr(config, "attn_config", None), "alibi", False):
        raise ValueError(f"{name} uses ALiBi, which longspan's attention engine does not serve")
    kinds = set(getattr(config, "layer_types", None) or ())
    if "chunked_attention" in kinds or getattr(config, "attention_chunk_size", None):
        raise ValueError(f"{name} uses chunked attention (config.attention_chunk_size), which is not served")
    if not model._can_set_attn_implementation() or not model.is_backend_compatible():
        raise ValueError(
            f"{name} does not take an attention backend from transformers' AttentionInterface, "
            "so longspan cannot serve its attention"
        )


def install(root: nn.Module, model: Any, recipe: Recipe) -> AttentionPatch:
    """Switch ``model`` to the engine with the recipe's patterns; ``root`` is the model or what wraps it
    (PEFT).

    Raises ``ValueError`` when the model does not take an attention backend, asks for something that the engine
    does not serve, or has attention that computes something else.
    """
    backend.register()
    expected = _record(model)
    done = AttentionPatch()
    try:
        _privatise_configs(root, model, done)
        model.set_attn_implementation(backend.NAME)
        modules = _observe(model, expected)
        names = {id(module): name for name, module in model.named_modules()}
        for module in modules:
            _refuse_dropout(names[id(module)], module)
        options = _options(recipe, pq.install(model, recipe, modules))
        for module in modules:
            path = names[id(module)]
            setattr(module, OPTIONS, replace(options, path=path))
            done.paths[path] = _describe(options)
    except BaseException:
        remove(root, done)
        raise
    return done


def remove(root: nn.Module, done: AttentionPatch) -> None:
    """Undo `install`; settings changed on ``model.config`` since then are kept."""
    pq.remove(root)
    for module in root.modules():
        if OPTIONS in module.__dict__:
            delattr(module, OPTIONS)
    for original, private, snapshot in zip(done.originals, done.privates, done.snapshots, strict=True):
        for name, value in vars(private).items():
            changed = name not in snapshot or not _same(snapshot[name], value)
            if changed and name not in ("_attn_implementation_internal", *_sub_configs(private)):
                setattr(original, name, value)
        # Wrappers around the model (PeftModel) may still hold the copy.
        private._attn_implementation_internal = original._attn_implementation_internal
    back = {id(private): original for private, original in zip(done.privates, done.originals, strict=True)}
    _rebind(root, back)
    done.originals, done.privates, done.snapshots = [], [], []


def _same(before: Any, now: Any) -> bool:
    return type(before) is type(now) and bool(before == now)


def _sub_configs(config: Any) -> tuple[str, ...]:
    return tuple(getattr(config, "sub_configs", None) or ())


def _privatise_configs(root: nn.Module, model: Any, done: AttentionPatch) -> None:
    """The backend's name lives in the config object, which several models may share: give this one its
    own.
    """
    memo: dict[int, Any] = {}
    copy.deepcopy(model.config, memo)
    chain = [model.config, *(getattr(model.config, name) for name in _sub_configs(model.config))]
    done.originals = [config for config in chain if config is not None]
    done.privates = [memo[id(config)] for config in done.originals]
    done.snapshots = [copy.deepcopy(vars(config)) for config in done.originals]
    _rebind(root, {id(old): new for old, new in zip(done.originals, done.privates, strict=True)})


def _rebind(root: nn.Module, mapping: dict[int, Any]) -> None:
    for module in root.modules():
        for name, value in list(module.__dict__.items()):
            if id(value) in mapping:
                object.__setattr__(module, name, mapping[id(value)])


def _record(model: nn.Module) -> dict[str, Tensor]:
    """What every module gives in a trial."""
    found: dict[str, Tensor] = {}

    def see(path: str, module: nn.Module, given: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        if isinstance(first, Tensor):
            found[path] = first

    _with_hooks(model, see)
    return found


def _with_hooks(model: nn.Module, see: Callable[[str, nn.Module, Any, Any], Any]) -> None:
    """A trial in which `see(path, module, inputs, output)` may replace any module's output."""
    handles = [module.register_forward_hook(partial(see, path)) for path, module in model.named_modules() if path]
    try:
        probe.trial(model)
    finally:
        for handle in handles:
            handle.remove()


def _observe(model: nn.Module, expected: dict[str, Tensor]) -> dict[nn.Module, tuple[int, int]]:
    """The attention modules, in order, found by running the model with full attention and compared with
    before; with their key heads and head size. Each is given what it was given before: in half precision the
    differences of many layers would add up.
    """
    observed = Observed()
    errors: dict[str, float] = {}

    def see(path: str, module: nn.Module, given: Any, output: Any) -> Any:
        if module not in observed.modules or path not in expected:
            return None
        first = output[0] if isinstance(output, tuple) else output
        fits, error = probe.agree(first, expected[path])
        if not fits:
            errors[path] = error
        return (expected[path], *output[1:]) if isinstance(output, tuple) else expected[path]

    full = ops.AttentionPattern.full()
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.ModuleDict):
            setattr(module, OPTIONS, AttentionOptions(path, full, full, full, observed))
    try:
        _with_hooks(model, see)
    finally:
        for module in model.modules():
            module.__dict__.pop(OPTIONS, None)
    name = type(model).__name__
    if not observed.modules:
        raise ValueError(f"{name} never calls its attention backend, so longspan cannot serve its attention")
    if observed.extra:
        extra = ", ".join(f"{key} ({kind})" for key, kind in observed.extra.items())
        raise ValueError(f"{name} gives its attention {extra}, which longspan's attention engine does not know")
    for path, error in errors.items():
        raise ValueError(
            f"{path} of {name} computes something else than longspan's attention engine (relative difference "
            f"{error:.1e} on {probe.TOKENS} tokens), which the engine does not know; it is not served"
        )
    return observed.modules


def _options(recipe: Recipe, choosers: Mapping[str, Chooser]) -> AttentionOptions:
    """Patterns for the recipe; a group size that follows from the length is fixed here, once."""
    length, section = recipe.data.length, recipe.attention
    train, prefill, decode = (
        choosers[phase] if phase in choosers else getattr(section, phase).pattern(length)
        for phase in ("train", "prefill", "decode")
    )
    return AttentionOptions("", train, prefill, decode)


def dropout_of(module: nn.Module) -> tuple[float, str]:
    """An attention module's dropout probability, and the attribute that holds it."""
    for name in _DROPOUTS:
        value = getattr(module, name, 0.0)
        p = value.p if isinstance(value, nn.Dropout) else value
        if isinstance(p, float) and p > 0:
            return p, name
    return 0.0, ""


def _refuse_dropout(path: str, module: nn.Module) -> None:
    p, name = dropout_of(module)
    if p > 0:
        raise ValueError(
            f"{path}: attention dropout {p} ({name}) is not served; set it to 0 in the model's config "
            "before the model is built, or on the module"
        )


def _describe(options: AttentionOptions) -> str:
    train, prefill, decode = map(_short, (options.train, options.prefill, options.decode))
    inference = f"{prefill} in prefill and decode" if prefill == decode else f"{prefill} in prefill, {decode} in decode"
    return f"attention: {train}" if train == prefill == decode else f"attention: {train} in training, {inference}"


def _short(pattern: ops.AttentionPattern | Chooser) -> str:
    return repr(pattern).removeprefix("AttentionPattern.").replace("(causal=True)", "").replace("causal=True, ", "")
