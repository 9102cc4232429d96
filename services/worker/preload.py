"""Pay for imports before the first model comes, not while a client waits.

Importing torch and a transformers model takes seconds, several times what reading most models
does. A tiny model is built and run once, so that what is made lazily is made too.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Final

import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.utils import logging as transformers_logging

from services.common.clock import monotonic_s
from services.common.log import get_logger
from services.worker.decoder import Decoders, decoder_facts
from services.worker.ports import Share

log = get_logger(__name__)

_KV_BYTES: Final = 1 << 16


def preload(threads: int) -> None:
    """Set up torch for `threads` threads per forward pass and warm everything up. Blocks."""
    began_s = monotonic_s()
    torch.set_num_threads(threads)
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=32,
    )
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.train(mode=False)
    get_model_conversion_mapping(model)
    decoder = Decoders().make(model, _KV_BYTES)
    strand = decoder.open((1, 2), 3)
    if strand is not None:
        decoder.step((Share(strand=strand, token_ids=(1, 2), wants_logits=True),))
        decoder.step((Share(strand=strand, token_ids=(3,), wants_logits=True),))
    decoder_facts(model, Path())
    # What is loaded now stays: later collections, which stop every thread, need not look at it.
    gc.collect()
    gc.freeze()
    log.info(
        "preloaded",
        seconds=monotonic_s() - began_s,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
    )
