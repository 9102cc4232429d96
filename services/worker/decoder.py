"""A transformers model as the engine sees it: the facts of the model, and what decodes with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from services.worker.checkpoint import invalid_model
from services.worker.packed import PackedDecoder
from services.worker.probe import Prober
from services.worker.serial import SerialDecoder

CONFIG_FILE: Final = "config.json"
GENERATION_FILE: Final = "generation_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderFacts:
    """What a model says about itself."""

    vocabulary: int  # token ids are below this
    context_tokens_max: int  # 0: its config states none
    kv_bytes_per_token: int  # 0: cannot be derived
    eos_token_ids: frozenset[int]


class Decoders:
    """Makes decoders. Safe to use from several threads."""

    def __init__(self, *, exact: bool = False, shares_prefixes: bool = True) -> None:
        """Make a sequence's logits independent of its company, to the bit, if `exact`."""
        self._exact = exact
        self._shares_prefixes = shares_prefixes
        self._prober = Prober(exact=exact)

    def make(self, model: PreTrainedModel, kv_bytes: int) -> PackedDecoder | SerialDecoder:
        """Return what decodes with `model`, with `kv_bytes` for keys and values. Blocks.

        Sequences are packed if that is right for the model, else shown one at a time. Raises
        ResourceExhaustedError (INSUFFICIENT_MEMORY).
        """
        verdict = self._prober.probe(model)
        if verdict.packing is None:
            return SerialDecoder(
                model, by_token=self._exact, caches=verdict.caches, reason=verdict.reason
            )
        return PackedDecoder(
            model, verdict.packing, kv_bytes=kv_bytes, shares_prefixes=self._shares_prefixes
        )


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
