"""Constraints in llguidance's own form, compiled within fixed budgets of work."""

from __future__ import annotations

from typing import Final

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from

# Blanks between JSON's tokens; without a limit some models go on with them for ever.
_JSON_BLANKS: Final = r"[ \n\r\t]{1,20}"


def compiled(tokenizer: LLTokenizer, kind: str, text: str) -> LLMatcher:
    """Return the matcher of a sequence that begins; `is_error` tells whether it works.

    `kind` is a ConstraintKind's value. Raises ValueError for a text that is none of its kind.
    """
    limits = LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_items_in_row=2_000,
        max_lexer_states=20_000,  # about 2 kB each
        max_grammar_size=100_000,
        verbose_errors=False,
    )
    return LLMatcher(tokenizer, _grammar(kind, text), log_level=0, limits=limits)


def _grammar(kind: str, text: str) -> str:
    match kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(
                text, overrides={"whitespace_pattern": _JSON_BLANKS, "lenient": False}
            )
        case "regex":
            return LLMatcher.grammar_from_regex(text)
        case "grammar":
            return grammar_from("grammar", text)
        case _:
            raise ValueError(f"a constraint of unknown kind {kind}")
