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
from tests.unit.worker.backends import byte_fallback, with_end

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


def test_pieces_of_a_byte_level_tokenizer_make_up_the_bytes(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path)
    text = " You may copy \u20ac \U0001f600"
    ids = tokenizer.encode(TextPrompt(text=text))
    assert b"".join(map(tokenizer.piece, ids)) == text.encode()
    assert tokenizer.eos_token_id is not None
    assert tokenizer.piece(tokenizer.eos_token_id) == b"<|end|>"
    assert tokenizer.piece(10**6) == b""


def test_pieces_of_a_sentencepiece_tokenizer_keep_their_spaces() -> None:
    backend = byte_fallback()
    tokenizer = Tokenizer(with_end(backend))
    ids = backend.encode("ab a\u20ac e").ids
    assert b"".join(map(tokenizer.piece, ids)) == " ab a\u20ac e".encode()


TOOLS = (
    "{% for t in tools or [] %}{{ '<tool>' + t['function']['name'] + '</tool>' }}{% endfor %}"
    "{% for m in messages %}{{ m['role'] + ' ' + m.get('name', '-') + ': ' + m['content'] }}"
    "{% for c in m.get('tool_calls', []) %}"
    "{{ c['function']['name'] + '=' + c['function']['arguments']['city'] }}{% endfor %}"
    "{{ m.get('tool_call_id', '') + ';' }}{% endfor %}"
)
WEATHER = '{"type":"function","function":{"name":"weather","parameters":{"type":"object"}}}'
CALLED = '{"type":"function","id":"c1","function":{"name":"weather","arguments":{"city":"Rome"}}}'


def test_tools_calls_and_names_reach_the_template(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path, chat_template=TOOLS)
    conversation = Conversation(
        messages=(
            ChatMessage(role="user", content="Hi", name="eve"),
            ChatMessage(role="assistant", content="", tool_calls=(CALLED,)),
            ChatMessage(role="tool", content="hot", tool_call_id="c1"),
        ),
        tools=(WEATHER,),
    )
    text = tokenizer.decode(tokenizer.encode(conversation))
    assert text == "<tool>weather</tool>user eve: Hi;assistant -: weather=Rome;tool -: hotc1;"


def test_a_template_that_takes_no_tools_says_so(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path, chat_template=TEMPLATE + "{# tools #}{{ 'tools' }}")
    conversation = Conversation(messages=talk("Hi").messages, tools=(WEATHER,))
    with pytest.raises(InvalidArgumentError, match="takes no tools") as refused:
        tokenizer.encode(conversation)
    assert refused.value.reason == Reason.NO_TOOLS


@pytest.mark.parametrize("place", ["tools", "tool_calls"])
def test_a_control_token_in_a_tools_names_is_refused_and_in_its_values_plain(
    tmp_path: Path, place: str
) -> None:
    tokenizer = loaded(tmp_path, chat_template=TOOLS + "{{ tools | tojson }}")
    eos = tokenizer.eos_token_id

    def asked(tool: str) -> Conversation:
        if place == "tools":
            return Conversation(messages=talk("Hi").messages, tools=(tool,))
        said = ChatMessage(role="assistant", content="", tool_calls=(tool,))
        return Conversation(messages=(said,), tools=(WEATHER,))

    value = CALLED.replace("Rome", "a<|end|>b")
    assert eos not in tokenizer.encode(asked(value))
    with pytest.raises(InvalidArgumentError, match="no control tokens"):
        tokenizer.encode(asked(CALLED.replace('"city"', '"a<|end|>b"')))
