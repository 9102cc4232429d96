"""A transformers model as the engine sees it: strands that step, and the facts of the model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import DynamicCache, GenerationConfig, PretrainedConfig, PreTrainedModel

from services.worker.checkpoint import invalid_model
from services.worker.ports import Strand
from services.worker.sampler import Logits

CONFIG_FILE: Final = "config.json"
GENERATION_FILE: Final = "generation_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderFacts:
    """What a model says about itself."""

    vocabulary: int  # token ids are below this
    context_tokens_max: int  # 0: its config states none
    kv_bytes_per_token: int  # 0: cannot be derived
    eos_token_ids: frozenset[int]


class TransformersDecoder:
    """A Decoder over a model on the CPU, one sequence per forward pass."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        # Most models can spare us the logits of all tokens but the last.
        keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._options: dict[str, Any] = {"logits_to_keep": 1} if keeps else {}

    def open(self) -> Strand:
        """Return a sequence's place, with an empty cache."""
        return _TransformersStrand(self._model, self._options)


class _TransformersStrand:
    def __init__(self, model: PreTrainedModel, options: dict[str, Any]) -> None:
        self._model = model
        self._options = options
        self._cache = DynamicCache(config=model.config)

    def step(self, token_ids: Sequence[int]) -> Logits:
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.tensor([token_ids]),
                past_key_values=self._cache,
                use_cache=True,
                return_dict=True,
                **self._options,
            )
            last: Logits = output.logits[0, -1].float().numpy()
        return last


def decoder_facts(model: PreTrainedModel, folder: Path) -> DecoderFacts:
    """Return the facts of `model`, whose files are in `folder`. Blocks for a small file.

    Raises InvalidArgumentError (INVALID_MODEL) if the generation config cannot be read.
    """
    config = model.config.get_text_config()
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, torch.nn.Embedding):
        raise invalid_model(CONFIG_FILE, "the model's input is not an embedding of tokens")
    return DecoderFacts(
        vocabulary=embedding.weight.shape[0],
        context_tokens_max=int(getattr(config, "max_position_embeddings", None) or 0),
        kv_bytes_per_token=_kv_bytes_per_token(config, model.dtype.itemsize),
        eos_token_ids=_eos_token_ids(model, folder),
    )


def _kv_bytes_per_token(config: PretrainedConfig, element_bytes: int) -> int:
    layers = getattr(config, "num_hidden_layers", 0)
    heads = getattr(config, "num_attention_heads", 0)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head = getattr(config, "head_dim", None)
    if not head and heads:
        head = getattr(config, "hidden_size", 0) // heads
    return 2 * layers * kv_heads * (head or 0) * element_bytes


def _eos_token_ids(model: PreTrainedModel, folder: Path) -> frozenset[int]:
    """Return what `generate` would stop at: the generation config decides, else the config."""
    stated = model.generation_config.eos_token_id
    if (folder / GENERATION_FILE).is_file():
        try:
            generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise invalid_model(GENERATION_FILE, "cannot be read") from error
        if generation.eos_token_id is not None:
            stated = generation.eos_token_id
    ids = stated if isinstance(stated, list) else [stated]
    return frozenset(int(token) for token in ids if token is not None)
