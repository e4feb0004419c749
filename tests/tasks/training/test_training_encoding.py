"""What is trained on is what is seen in use: prompts and answers as tokens."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tasks.data.encoding import decode, encode_answer, encode_prompt, encode_turns, load_tokenizer
from tasks.data.records import assistant, user
from tasks.errors import PreflineError

CHATML = (
    "{{ bos_token }}{% for m in messages %}{{ '<|user|>' + m['role'] + '\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|user|>assistant\n' }}{% endif %}"
)
REWRITES = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
QUESTION = [user("How warm is the red lamp?")]
LATER = [user("How warm is the red lamp?"), assistant("Very."), user("And the blue kettle?")]


def with_bos(tokenizer, template):
    """A tokenizer that begins every text with <|system|> as its BOS unless told not to, as Llama's and Gemma's do."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        bos_token="<|system|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        chat_template=template,
    )
    made.backend_tokenizer.post_processor = TemplateProcessing(single="<|system|> $A", special_tokens=[("<|system|>", 2)])
    assert made("x")["input_ids"][0] == 2
    return made


@pytest.mark.parametrize(("brings_bos", "expected"), [(True, 1), (False, 0)])
@pytest.mark.parametrize("prompt", [QUESTION, LATER], ids=["one turn", "three turns"])
def test_a_text_has_the_templates_bos_and_no_second_one(tokenizer, prompt, brings_bos, expected):
    template = CHATML if brings_bos else CHATML.removeprefix("{{ bos_token }}")
    made = with_bos(tokenizer, template)
    text = encode_prompt(made, prompt) + encode_answer(made, prompt, [assistant("Very warm.")])
    assert text.count(2) == expected
    assert text[0] == 2 or expected == 0


def test_a_prompt_is_the_template_up_to_where_the_assistant_speaks(tokenizer):
    # <|user|> is 3, <|assistant|> 4, <|end|> 1
    plain = [tokenizer(text)["input_ids"] for text in ("How warm is the red lamp?", "Very.", "And the blue kettle?")]
    assert encode_prompt(tokenizer, LATER) == [3, *plain[0], 4, *plain[1], 1, 3, *plain[2], 4]


def test_an_answer_is_its_text_and_one_eos(tokenizer):
    assert encode_answer(tokenizer, QUESTION, [assistant("Very warm.")]) == [*tokenizer("Very warm.")["input_ids"], 1]


TURNS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(question=TURNS, answer=TURNS, more=TURNS)
def test_an_answer_trained_on_is_the_answer_seen_later_as_history(tokenizer, question, answer, more):
    """Prompt and answer, encoded apart, are how the conversation is encoded once it has gone on."""
    assume("<|" not in question + answer + more)
    prompt = [user(question)]
    trained = encode_prompt(tokenizer, prompt) + encode_answer(tokenizer, prompt, [assistant(answer)])
    seen = encode_prompt(tokenizer, [*prompt, assistant(answer), user(more)])
    assert seen[: len(trained)] == trained


@given(answer=TURNS)
def test_decoding_gives_the_answers_text_back(tokenizer, answer):
    assume("<|" not in answer)
    assert decode(tokenizer, encode_answer(tokenizer, QUESTION, [assistant(answer)])) == answer.strip()


@pytest.mark.parametrize("template", [None, CHATML], ids=["own", "chatml"])
def test_an_answer_of_several_messages_follows_the_prompt_as_the_template_writes_it(tokenizer, template):
    made = tokenizer if template is None else with_bos(tokenizer, template)
    answer = [assistant("Very."), user("Sure?"), assistant("Yes.")]
    found = encode_answer(made, QUESTION, answer)
    whole = made.apply_chat_template(QUESTION + answer, tokenize=False)
    assert made.decode(encode_prompt(made, QUESTION) + found) == whole.rstrip()
    assert found.count(1) == (2 if template is None else 3)
    assert found[-1] == 1
    assert found[-2] != 1


def test_a_template_that_rewrites_the_prompt_is_refused_for_answers_of_several_messages(tokenizer):
    made = with_bos(tokenizer, REWRITES)
    with pytest.raises(PreflineError, match="differently once the conversation goes on"):
        encode_answer(made, QUESTION, [assistant("Very."), user("Sure?"), assistant("Yes.")])
    with pytest.raises(PreflineError, match="differently once the conversation goes on"):
        encode_answer(made, QUESTION, [user("Sure?"), assistant("Yes.")])


# Conversations of several turns ------------------------------------------------------------------------------------------

SPECIAL = ["<|end|>", "<|assistant|>", "<|user|>", "<|pad|>", "<|end", "|>"]
ODD = st.lists(
    st.one_of(TURNS, st.sampled_from(SPECIAL), st.sampled_from(["\n\n", "  ", "\t", "\r\n", "\u200d", "e\u0301"])), max_size=4
).map("".join)


def conversation(texts):
    """Messages that take turns, the user first."""
    return [(assistant if number % 2 else user)(text) for number, text in enumerate(texts)]


def seen_in_use(tokenizer, messages, number):
    """The ids before a turn, and those of the turn, as sampling has them."""
    return encode_prompt(tokenizer, messages[:number]), encode_answer(tokenizer, messages[:number], [messages[number]])


@pytest.mark.parametrize("template", [None, CHATML], ids=["own", "chatml"])
@given(texts=st.lists(TURNS, min_size=2, max_size=7))
def test_every_turn_of_the_assistant_is_trained_on_as_it_is_seen_in_use(tokenizer, template, texts):
    assume("<|" not in "".join(texts))
    made = tokenizer if template is None else with_bos(tokenizer, template)
    messages = conversation(texts)
    (spoken,) = encode_turns(made, messages)
    assert len(spoken.turns) == len(texts) // 2
    for turn, number in zip(spoken.turns, range(1, len(texts), 2), strict=True):
        before, said = seen_in_use(made, messages, number)
        assert spoken.tokens[: turn.start] == before
        assert spoken.tokens[turn.start : turn.stop] == said
    assert len(spoken.tokens) == spoken.turns[-1].stop  # what a user says last is answered by nothing


@given(texts=st.lists(ODD, min_size=2, max_size=6))
def test_whatever_is_said_is_trained_on_as_it_is_seen_in_use(tokenizer, texts):
    """Text that spells a special token is text where the assistant says it and a token where the template repeats it."""
    messages = conversation(texts)
    sequences = encode_turns(tokenizer, messages)
    if len(sequences) > 1:
        earlier = messages[1 : 2 * (len(texts) // 2) - 1 : 2]
        assert any(special in message["content"] for message in earlier for special in SPECIAL[:4])
    placed = [(spoken.tokens, turn) for spoken in sequences for turn in spoken.turns]
    for (tokens, turn), number in zip(placed, range(1, len(texts), 2), strict=True):
        assert (tokens[: turn.start], tokens[turn.start : turn.stop]) == seen_in_use(tokenizer, messages, number)
        assert tokens[turn.start : turn.stop].count(tokenizer.eos_token_id) == 1


def test_turns_count_from_the_first_that_is_asked_for(tokenizer):
    messages = conversation(["a", "b", "c", "d", "e", "f"])
    found = [encode_turns(tokenizer, messages, first) for first in range(6)]
    assert [len(spoken.turns) for (spoken,) in found] == [3, 3, 2, 2, 1, 1]
    assert found[5][0].tokens == found[0][0].tokens


def test_a_turn_that_opens_the_conversation_answers_nothing(tokenizer):
    (spoken,) = encode_turns(tokenizer, [assistant("Hello!"), user("hi"), assistant("Yes?")])
    assert [tokenizer.decode(spoken.tokens[turn.start : turn.stop]) for turn in spoken.turns] == ["Yes?<|end|>"]


def test_a_saved_tokenizer_encodes_alike(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert encode_prompt(load_tokenizer(tmp_path), LATER) == encode_prompt(tokenizer, LATER)


def test_an_answer_that_spells_a_special_token_ends_once_and_reads_the_same(tokenizer):
    # "<|end|>" typed by a person is seven characters, not the end of an answer
    tokens = encode_answer(tokenizer, [user("hi")], [assistant("a<|end|>b<|assistant|>c")])
    assert tokens.count(tokenizer.eos_token_id) == 1
    assert tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokens[:-1]) == "a<|end|>b<|assistant|>c"
