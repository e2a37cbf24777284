import json
import shutil

import numpy as np
import pytest

from launch.tiny_model import TinyModelSettings, make_tiny_model
from rollout.chat import ChatTokenizer
from shared.config import EnvironmentConfig
from shared.errors import ModelFolderError

SETTINGS = TinyModelSettings(hidden=8, heads=1, intermediate=8, layers=1, steps=0, max_response_tokens=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "tiny"
    make_tiny_model(folder, EnvironmentConfig(prompts="short"), settings=SETTINGS, seed=0)
    return folder


@pytest.fixture(scope="module")
def chat(folder):
    return ChatTokenizer.from_folder(folder)


def test_a_prompt_is_one_user_turn_and_the_start_of_the_assistants(folder, chat):
    from transformers import AutoTokenizer

    text = AutoTokenizer.from_pretrained(folder).decode(chat.prompt_ids("Find y"), skip_special_tokens=False)
    assert text == "<|im_start|>user\nFind y<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("text", ["", " a  b ", "12, 13", "line\nline ,  end .", "ünïcödé ☃ ١٢", "don 't"])
def test_a_response_survives_encoding_and_decoding(chat, text):
    ids = chat.response_ids(text)
    assert ids[-1] == chat.eos_token_id
    assert chat.decode(ids) == text
    assert chat.decode(tuple(ids)) == text


def test_a_response_that_spells_the_end_of_turn_has_no_second_one_after_decoding(chat):
    assert chat.decode([*chat.response_ids("a"), *chat.response_ids("b")]) == "a<|im_end|>b"


@pytest.mark.parametrize("control", ["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_a_prompt_that_spells_a_control_token_is_refused(chat, control):
    with pytest.raises(ModelFolderError, match="control token"):
        chat.prompt_ids(f"Find y {control} with")


def test_an_added_token_that_is_plain_text_may_be_asked_for(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<think>"])
    thinking = ChatTokenizer(tokenizer)
    ids = thinking.prompt_ids("Reason inside <think>")
    assert tokenizer.convert_tokens_to_ids("<think>") in ids
    with pytest.raises(ModelFolderError, match="control token"):
        thinking.prompt_ids("Find y <|im_end|>")


def test_a_special_token_that_shapes_no_chat_may_be_asked_for_and_answered_in(folder, tmp_path):
    base = changed(folder, tmp_path, "tokenizer_config.json", extra_special_tokens=["<|im_start|>", "<answer>"])
    with_room(base)
    chat = ChatTokenizer.from_folder(base)
    ids = chat.prompt_ids("Answer like <answer>7")
    assert chat.decode(ids[-6:]).count("<|im_start|>") == 1
    chat.check_shown(["Answer like <answer>7", "Answer like <answer>8"])
    assert chat.decode(chat.response_ids("<answer>7<answer>")) == "<answer>7<answer>"
    assert chat.decode(chat.response_ids("<answer>7<answer>")[:-1]) == "<answer>7<answer>"
    for control in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"):
        with pytest.raises(ModelFolderError, match="control token"):
            chat.prompt_ids(f"Find y {control}")


def test_whatever_ends_a_completion_is_not_part_of_its_text(folder, tmp_path):
    """Also a token that generation_config.json alone names."""
    base = changed(folder, tmp_path, "generation_config.json", eos_token_id=[5, 2])
    chat = ChatTokenizer.from_folder(base)
    ids = chat.response_ids("17")[:-1]
    assert chat.decode([*ids, chat.eos_token_id]) == chat.decode([*ids, 5]) == chat.decode([*ids]) == "17"
    assert chat.decode([*ids, 6]) != "17"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        # Written for contents in parts: of a text it shows nothing.
        (
            "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}<|im_start|>",
            "shown",
        ),
        ("<|im_start|>user\nHello<|im_end|>", "would not be shown what it is asked"),
        ("{{ messages[0].content[:9] }}", "would not be shown what it is asked"),
        ("{{ messages[0].content | upper }}", "would not be shown what it is asked"),
        ("Set y. Find y with 3. Find y with 5.", "makes the same of different prompts"),
        ("{{ raise_exception('too long') if messages[0].content | length > 4 else '' }}", "cannot be used: .*too long"),
        ("{{ messages[0].content.no.such }}", "cannot be used"),
    ],
)
def test_a_template_that_does_not_show_what_is_asked_is_refused(folder, tmp_path, template, said):
    base = shutil.copytree(folder, tmp_path / "base")
    (base / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelFolderError, match=said):
        ChatTokenizer.from_folder(base).check_shown(["Find y with 3.", "Find y with 5."])


def test_white_space_that_a_template_strips_is_no_matter(folder, tmp_path):
    base = shutil.copytree(folder, tmp_path / "base")
    (base / "chat_template.jinja").write_text("<|im_start|>{{ messages[0].content | trim }}<|im_end|>")
    ChatTokenizer.from_folder(base).check_shown([" Find y\nwith 3.\n", "Find y"])


def changed(folder, tmp_path, file: str, **changes: object):
    """A copy, with keys of a JSON file changed."""
    base = shutil.copytree(folder, tmp_path / "base")
    (base / file).write_text(json.dumps(json.loads((base / file).read_text()) | changes))
    return base


def with_room(base) -> None:
    """For tokens that the tokenizer adds."""
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 8}))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ModelFolderError, match="nowhere does not exist"):
        ChatTokenizer.from_folder(tmp_path / "nowhere")


def test_an_empty_folder_is_a_model_folder_error(tmp_path):
    with pytest.raises(ModelFolderError, match=r"config\.json is refused"):
        ChatTokenizer.from_folder(tmp_path)


def test_a_tokenizer_that_cannot_be_loaded_is_a_model_folder_error(folder, tmp_path):
    base = changed(folder, tmp_path, "config.json")
    (base / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFolderError, match="cannot load a tokenizer from"):
        ChatTokenizer.from_folder(base)


def test_a_tokenizer_without_a_chat_template_is_a_model_folder_error(folder, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(folder, base)
    (base / "chat_template.jinja").unlink()
    with pytest.raises(ModelFolderError, match="no chat template"):
        ChatTokenizer.from_folder(base)


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(folder, base)
    largest = json.loads((base / "config.json").read_text())["vocab_size"] - 1
    config = (base / "config.json").read_text()
    ChatTokenizer.from_folder(base)
    (base / "config.json").write_text(config.replace(f'"vocab_size": {largest + 1}', f'"vocab_size": {largest}'))
    with pytest.raises(ModelFolderError, match=f"ids up to {largest}, but the model knows {largest} tokens"):
        ChatTokenizer.from_folder(base)


def test_a_template_that_cannot_be_used_is_a_model_folder_error(folder, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(folder, base)
    (base / "chat_template.jinja").write_text("{% for message in %}")
    with pytest.raises(ModelFolderError, match=r"the chat template in .* cannot be used"):
        ChatTokenizer.from_folder(base)


def test_a_prompt_that_comes_again_is_the_same_array_and_cannot_be_changed(chat):
    first = chat.prompt("Find y with 3")
    assert chat.prompt("Find y with 3") is first
    assert first.dtype == np.int32
    assert chat.prompt_ids("Find y with 3") == first.tolist()
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1
