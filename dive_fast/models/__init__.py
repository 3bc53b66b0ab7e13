"""Base models, adapters, prompts and their fusion. Importing this loads neither torch nor diffusers."""

from dive_fast.models.adapter import Adapter, load_adapter, merge_identities, save_adapter, subset
from dive_fast.models.bundle import ModelBundle, load_bundle, save_bundle
from dive_fast.models.fuse import add_identity_tokens, fuse, taught_by
from dive_fast.models.lora import add_lora, has_lora, lora_shapes, lora_state, lora_targets, remove_lora, set_lora_state
from dive_fast.models.prompts import DEFAULT_TEMPLATE, TEMPLATES, PromptEncoder, PromptKey, PromptTable, render

__all__ = [
    "DEFAULT_TEMPLATE",
    "TEMPLATES",
    "Adapter",
    "ModelBundle",
    "PromptEncoder",
    "PromptKey",
    "PromptTable",
    "add_identity_tokens",
    "add_lora",
    "fuse",
    "has_lora",
    "load_adapter",
    "load_bundle",
    "lora_shapes",
    "lora_state",
    "lora_targets",
    "merge_identities",
    "remove_lora",
    "render",
    "save_adapter",
    "save_bundle",
    "set_lora_state",
    "subset",
    "taught_by",
]
