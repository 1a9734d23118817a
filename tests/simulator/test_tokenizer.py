from array import array

from hypothesis import given
from hypothesis import strategies as st

from engine.simulator import chat, text, tokenizer

UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=400)


@given(UNICODE)
def test_decoding_gives_the_text_back(content: str):
    tokens = tokenizer.Tokenizer().encode(content)

    assert tokenizer.Tokenizer().decode(tokens) == content


@given(UNICODE)
def test_ids_fit_31_bits_and_are_no_marks(content: str):
    tokens = tokenizer.Tokenizer().encode(content)

    assert all(0 < token < tokenizer.BEGIN for token in tokens)


def test_different_pieces_have_different_ids():
    pieces = [" the", "the", "The", " The", "t", "th", " ", "\n", "1", "12", " 12", "é", "日", "\0", "!", "z", "zzzzz"]

    assert len({tokenizer.piece_id(piece) for piece in pieces}) == len(pieces)


def test_long_texts_are_encoded_once_and_the_memory_is_bounded():
    tokens = tokenizer.Tokenizer()
    long = "a text of some length " * 20

    assert tokens.encode(long) is tokens.encode(long)
    for i in range(5000):
        tokens.encode(f"{long}{i}")
    assert len(tokens._texts) <= 4096


def test_every_word_of_an_answer_is_one_token_that_encodes_to_itself():
    sentence = "".join(map(tokenizer.token_text, text.TOKENS))

    assert tokenizer.Tokenizer().encode(sentence) == array("I", text.TOKENS)


@given(
    st.lists(st.tuples(st.sampled_from(["user", "system", "tool"]), UNICODE), min_size=1, max_size=4),
    st.integers(0, 40),
    UNICODE,
)
def test_the_next_turn_begins_with_the_tokens_of_the_last(turns: list[tuple[str, str]], length: int, question: str):
    tokens = tokenizer.Tokenizer()
    messages = [{"role": role, "content": content} for role, content in turns]
    prompt = chat.render(tokens, messages)
    voice = text.Voice(7, None)
    answer = array("I", [voice(i) for i in range(length)])
    messages += [{"role": "assistant", "content": tokens.decode(answer)}, {"role": "user", "content": question}]

    following = chat.render(tokens, messages)

    assert following[: len(prompt) + length] == prompt + answer


def test_parts_of_content_count_as_their_text():
    tokens = tokenizer.Tokenizer()
    whole = chat.render(tokens, [{"role": "user", "content": "one two"}])

    parts = chat.render(
        tokens, [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": " two"}]}]
    )

    assert parts == whole


def test_different_images_are_different_prompts():
    tokens = tokenizer.Tokenizer()

    def picture(url: str) -> array:
        return chat.render(tokens, [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])

    assert picture("http://a/1.png") != picture("http://a/2.png")
    assert picture("http://a/1.png") == picture("http://a/1.png")
