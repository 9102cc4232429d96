"""A model's tokenizer: text and conversations to token ids, token ids to text.

Chat templates come from the model's folder and are run by transformers in jinja's sandbox. What
looks like a control token inside a message is encoded as plain text, so that nobody can write
another turn into a conversation.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from brisk_native.model import library_words
from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from services.common.errors import InvalidArgumentError, Reason
from services.common.log import get_logger
from services.common.names import shorten
from services.common.prompt import Conversation, Prompt, TextPrompt, TokensPrompt
from services.worker.checkpoint import invalid_model

log = get_logger(__name__)

_FILES: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_MESSAGE_CHARS_MAX: Final = 300


class Tokenizer:
    """Safe to use from several threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        # Encoding changes settings inside the tokenizer for a moment; decoding does not care.
        self._encoding = threading.Lock()

    @property
    def eos_token_id(self) -> int | None:
        """The token that the tokenizer calls end of sequence."""
        token: int | None = self._tokenizer.eos_token_id
        return token

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the prompt's token ids. Blocks for up to a second on a long text.

        Raises InvalidArgumentError: NO_CHAT_TEMPLATE, TEMPLATE_FAILED.
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

    def _render(self, conversation: Conversation) -> tuple[int, ...]:
        if not self._tokenizer.chat_template:
            raise InvalidArgumentError(
                "the model has no chat template: send a text or tokens",
                reason=Reason.NO_CHAT_TEMPLATE,
            )
        messages = [{"role": m.role, "content": m.content} for m in conversation.messages]
        try:
            with self._encoding:
                ids = self._tokenizer.apply_chat_template(
                    messages,
                    add_generation_prompt=True,
                    sanitize_control_tokens=True,
                    return_dict=False,
                )
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
