"""A model's tokenizer: text and conversations to token ids, token ids to text.

Chat templates come from the model's folder and are run by transformers in jinja's sandbox. What
looks like a control token inside a message is encoded as plain text, so that nobody can write
another turn into a conversation.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from brisk_native.model import library_words
from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from services.common.constraint import Constraint
from services.common.errors import InvalidArgumentError, Reason
from services.common.log import get_logger
from services.common.names import shorten
from services.common.prompt import Conversation, Prompt, TextPrompt, TokensPrompt
from services.worker.chat import (
    refuse_control_tokens,
    refuse_unless_shown,
    tools_of,
    turns_of,
)
from services.worker.checkpoint import invalid_model
from services.worker.constraining import Constrainer, Guide

log = get_logger(__name__)

_FILES: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_MESSAGE_CHARS_MAX: Final = 300
_REPLACEMENT: Final = "\ufffd"
_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # SentencePiece's
_BYTE_LEVEL: Final[Mapping[str, int]] = {
    letter: byte
    for byte, letter in bytes_to_unicode().items()  # type: ignore[no-untyped-call]
}


class Tokenizer:
    """Safe to use from several threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        # Encoding changes settings inside the tokenizer for a moment; decoding does not care.
        self._encoding = threading.Lock()
        self._pieces: dict[int, bytes] = {}  # one for each token of the vocabulary at most
        self._anchor: int | None = None
        self._constraining = threading.Lock()
        self._constrainer: Constrainer | None = None  # made with the first constraint

    @property
    def eos_token_id(self) -> int | None:
        """The token that the tokenizer calls end of sequence."""
        token: int | None = self._tokenizer.eos_token_id
        return token

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the prompt's token ids. Blocks for up to a second on a long text.

        Raises InvalidArgumentError: NO_CHAT_TEMPLATE, NO_TOOLS, TEMPLATE_FAILED.
        """
        match prompt:
            case TokensPrompt():
                return prompt.ids
            case TextPrompt():
                with self._encoding:
                    return tuple(self._tokenizer.encode(prompt.text))
            case Conversation():
                return self._render(prompt)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some tokens, special ones left out."""
        text = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)

    def piece(self, token_id: int) -> bytes:
        """Return a token's bytes, which need not be whole characters; a special token's name."""
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._pieces[token_id] = self._spell(token_id)
        return piece

    def _spell(self, token_id: int) -> bytes:
        # Behind another token, because decoders treat the first one of a text differently.
        if self._anchor is None:
            self._anchor = self._first_word()
        before = self.decode((self._anchor,))
        text = self.decode((self._anchor, token_id))[len(before) :]
        if text and _REPLACEMENT not in text:
            return text.encode()
        name: Any = self._tokenizer.convert_ids_to_tokens(token_id)
        if name is None:  # the model has more tokens than its tokenizer
            return b""
        if not text:
            return str(name).encode()
        if found := _BYTE_TOKEN.fullmatch(name):
            return bytes([int(found[1], 16)])
        if all(letter in _BYTE_LEVEL for letter in name):
            return bytes(_BYTE_LEVEL[letter] for letter in name)
        return text.encode()

    def constrain(
        self, constraint: Constraint, *, vocabulary: int, eos_token_ids: frozenset[int]
    ) -> Guide:
        """Return what keeps a sequence to `constraint`. Blocks for a second at the worst.

        Raises InvalidArgumentError (INVALID_CONSTRAINT).
        """
        with self._constraining:
            if self._constrainer is None:
                self._constrainer = Constrainer(
                    self._tokenizer, vocabulary=vocabulary, ends=eos_token_ids
                )
        return self._constrainer.guide(constraint)

    def _control_tokens(self) -> Collection[str]:
        added = self._tokenizer.added_tokens_decoder.values()
        return [token.content for token in added if not token.content.isspace()]

    def _first_word(self) -> int:
        """Return a token of plain text; without one, any."""
        tokens = range(len(self._tokenizer))
        return next((token for token in tokens if self.decode((token,)).strip().isalnum()), 0)

    def _render(self, conversation: Conversation) -> tuple[int, ...]:
        if not self._tokenizer.chat_template:
            raise InvalidArgumentError(
                "the model has no chat template: send a text or tokens",
                reason=Reason.NO_CHAT_TEMPLATE,
            )
        turns, tools = turns_of(conversation), tools_of(conversation)
        if tools or any("tool_calls" in turn for turn in turns):
            refuse_control_tokens([turns, tools], self._control_tokens())
        try:
            if tools:
                refuse_unless_shown(self._tokenizer.get_chat_template(tools=tools))
            with self._encoding:
                ids = self._tokenizer.apply_chat_template(
                    turns,
                    tools=tools,
                    add_generation_prompt=True,
                    sanitize_control_tokens=True,
                    return_dict=False,
                )
        except InvalidArgumentError:
            raise
        except TemplateError as error:  # mostly the template's own words to its callers
            problem = shorten(str(error)[:_MESSAGE_CHARS_MAX])
            raise _template_failed(f"the chat template refused the messages: {problem}") from error
        except Exception as error:
            log.warning("chat template failed", exc_info=error)
            raise _template_failed("the chat template failed on these messages") from error
        return tuple(ids)


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """Return the tokenizer in `folder`, or None if there is none. Blocks.

    Raises InvalidArgumentError (INVALID_MODEL) if there is one that cannot be used.
    """
    present = [name for name in _FILES if (folder / name).is_file()]
    if not present:
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # any tokenizer's code may raise anything
        problem = f"cannot be used: {library_words(error, folder)}"
        raise invalid_model(present[0], problem) from error
    return Tokenizer(tokenizer)


def _template_failed(message: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, reason=Reason.TEMPLATE_FAILED)
