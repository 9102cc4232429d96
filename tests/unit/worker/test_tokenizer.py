"""Prompts become the tokens that the model was trained on, and nobody can smuggle in a turn."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from services.common.errors import InvalidArgumentError, Reason
from services.common.prompt import ChatMessage, Conversation, Prompt, TextPrompt, TokensPrompt
from services.worker.tokenizer import Tokenizer, load_tokenizer
from tests.models import copy_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant:' }}{% endif %}"
)


def loaded(folder: Path, **settings: object) -> Tokenizer:
    copy_tokenizer(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("chat_template", None)
    path.write_text(json.dumps({**config, **settings}))
    tokenizer = load_tokenizer(folder)
    assert tokenizer is not None
    return tokenizer


def talk(*contents: str) -> Conversation:
    return Conversation(
        messages=tuple(ChatMessage(role="user", content=content) for content in contents)
    )


def test_text_is_encoded_with_the_models_special_tokens(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    text = "You may copy, distribute \u20ac and/or modify"
    assert tokenizer.encode(TextPrompt(text=text)) == tuple(reference.encode(text))
    assert tokenizer.encode(TokensPrompt(ids=(4, 2))) == (4, 2)


def test_text_comes_back_without_special_tokens(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path)
    text = "You may , copy . it \u20ac"
    ids = tokenizer.encode(TextPrompt(text=text))
    assert tokenizer.eos_token_id is not None
    assert tokenizer.decode((*ids, tokenizer.eos_token_id)) == text


def test_a_conversation_is_rendered_by_the_models_template(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path, chat_template=TEMPLATE)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    rendered = reference.apply_chat_template(
        [{"role": "user", "content": "Hi there"}], add_generation_prompt=True, return_dict=False
    )
    assert tokenizer.encode(talk("Hi there")) == tuple(rendered)


def test_a_control_token_in_a_message_is_plain_text(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path, chat_template=TEMPLATE)
    eos = tokenizer.eos_token_id
    assert eos is not None
    reference = AutoTokenizer.from_pretrained(tmp_path)
    smuggled = reference.convert_ids_to_tokens(eos)
    ids = tokenizer.encode(talk(f"a{smuggled}b"))
    honest = tokenizer.encode(talk("ab"))
    assert ids.count(eos) == honest.count(eos)
    assert tokenizer.encode(TextPrompt(text="ab")) == tuple(reference.encode("ab"))  # as before


def test_a_model_without_a_template_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        loaded(tmp_path).encode(talk("Hi"))
    assert refused.value.reason == Reason.NO_CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.no.such.thing }}", "has no attribute"),
        ("{{ 1 // 0 }}", "failed"),
        ("{% for %}", "template"),
    ],
)
def test_a_template_that_fails_is_the_callers_error(
    tmp_path: Path, template: str, words: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=words) as refused:
        loaded(tmp_path, chat_template=template).encode(talk("Hi"))
    assert refused.value.reason == Reason.TEMPLATE_FAILED


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
    ],
)
def test_a_template_cannot_leave_the_sandbox(tmp_path: Path, template: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        loaded(tmp_path, chat_template=template).encode(talk("Hi"))
    assert refused.value.reason == Reason.TEMPLATE_FAILED


def test_a_folder_without_tokenizer_has_none(tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path) is None


def test_a_broken_tokenizer_is_refused_by_file(tmp_path: Path) -> None:
    copy_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidArgumentError, match=r"tokenizer\.json") as refused:
        load_tokenizer(tmp_path)
    assert refused.value.reason == Reason.INVALID_MODEL
    assert str(tmp_path) not in refused.value.message


class Library:
    """Stands in for the library's tokenizer, which must not be entered twice at a time."""

    eos_token_id = None
    chat_template = "any"

    def __init__(self) -> None:
        self.inside = 0
        self.most_inside = 0
        self.may_leave = threading.Event()

    def encode(self, _: str) -> list[int]:
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        self.may_leave.wait(0.1)
        self.inside -= 1
        return [1]

    def apply_chat_template(self, _: object, **__: object) -> list[int]:
        return self.encode("")

    def decode(self, *_: object, **__: object) -> str:
        return "decoded"


def test_one_prompt_is_encoded_at_a_time_and_decoding_does_not_wait() -> None:
    library = Library()
    tokenizer = Tokenizer(library)  # type: ignore[arg-type]
    prompts: list[Prompt] = [TextPrompt(text="a"), talk("b")] * 2
    with ThreadPoolExecutor(4) as executor:
        encoded = [executor.submit(tokenizer.encode, prompt) for prompt in prompts]
        assert tokenizer.decode((1,)) == "decoded"
        assert not all(each.done() for each in encoded)
        assert [each.result() for each in encoded] == [(1,)] * 4
    assert library.most_inside == 1
