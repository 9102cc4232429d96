"""Small real tokenizers of the two families: byte-level BPE, and SentencePiece's byte fallback."""

from __future__ import annotations

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def byte_level() -> Backend:
    """Return a byte-level BPE tokenizer: every byte is a token, and a few pairs are."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    merges = [("a", "b"), ("\u00e2", "\u0124")]  # the second one begins a euro sign
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    made = Backend(models.BPE(vocab=vocabulary, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return made


def byte_fallback() -> Backend:
    """Return a tokenizer as SentencePiece's are: letters, and bytes for all that it lacks."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"abce\u2581", "\u2581a", "ab"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    made = Backend(
        models.BPE(
            vocab=vocabulary,
            merges=[("\u2581", "a"), ("a", "b")],
            unk_token="<unk>",  # noqa: S106 - no password
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return made


def with_end(backend: Backend) -> PreTrainedTokenizerFast:
    """Return transformers' tokenizer around a backend, with an end-of-sequence token."""
    backend.add_special_tokens(["</s>"])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        eos_token="</s>",  # noqa: S106 - no password
    )
