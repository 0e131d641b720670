import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mock_backend import EOS, PIECES, Letters

from elmoe.engine.request import Generation, Request
from elmoe.errors import ConfigError


def request_for(**settings):
    return Request(0, [1, 2], Generation(**settings), Letters(), frozenset({EOS}))


def run(request, steps):
    """Feed steps of tokens; returns the pieces shown after each."""
    pieces = []
    for step in steps:
        if request.finish_reason is None:
            request.emit(step, drafted=len(step) - 1)
            pieces.append(request.new_text())
    return pieces


def ids(*pieces):
    return [PIECES.index(piece) for piece in pieces]


def test_the_text_ends_at_max_tokens():
    request = request_for(max_tokens=3)
    assert run(request, [ids("a"), ids("b", "c", "d")]) == ["a", "bc"]
    output = request.output()
    assert (output.text, output.finish_reason, output.token_ids) == ("abc", "length", ids("a", "b", "c"))
    assert output.drafted == [False, True, True]
    assert output.acceptance.emitted == 3


def test_a_stop_token_ends_the_text_and_is_not_in_it():
    request = request_for()
    assert run(request, [[*ids("a"), EOS, *ids("b")]]) == ["a"]
    output = request.output()
    assert (output.text, output.finish_reason, output.token_ids) == ("a", "stop", [*ids("a"), EOS])


def test_ignore_eos_goes_on():
    request = request_for(ignore_eos=True, max_tokens=3)
    run(request, [[*ids("a"), EOS, *ids("b")]])
    assert (request.output().text, request.output().finish_reason) == ("ab", "length")


def test_a_stop_string_that_straddles_tokens_is_cut_exactly_and_never_shown():
    request = request_for(stop=("bca",))
    assert run(request, [ids("a"), ids("ab"), ids("c"), ids("aab")]) == ["a", "a", "", ""]
    output = request.output()
    assert (output.text, output.finish_reason) == ("aa", "stop")
    assert output.token_ids == ids("a", "ab", "c", "aab"), "the token that completes the stop is the last one"


def test_held_back_text_is_released_when_it_becomes_no_stop():
    request = request_for(stop=("bcd",))
    assert run(request, [ids("b"), ids("c"), ids("a")]) == ["", "", "bca"]


def test_held_back_text_is_released_at_the_end():
    request = request_for(stop=("bcd",), max_tokens=2)
    assert run(request, [ids("b"), ids("c")]) == ["", "bc"]


def test_of_several_stops_the_first_in_the_text_counts_in_any_order():
    for stop in (("b", "a"), ("a", "b")):
        request = request_for(stop=stop)
        run(request, [ids("d"), ids("ab")])
        assert request.output().text == "d"


class Bytes(Letters):
    """Token 10 is 'ab' and the first byte of a character, 11 its last byte; alone they are not valid UTF-8."""

    def decode(self, ids):
        table = {10: b"ab\xc3", 11: b"\xa9", 1: b"a", 2: b"d"}
        return b"".join(table[token] for token in ids).decode(errors="replace")


def test_a_character_split_over_tokens_is_shown_when_it_is_whole():
    request = Request(0, [1], Generation(), Bytes(), frozenset())
    assert run(request, [[1], [10], [11]]) == ["a", "", "abé"]


@pytest.mark.parametrize("last", ["length", "stop token"])
def test_a_stop_string_in_text_held_back_for_its_last_byte_still_stops(last):
    generation = Generation(stop=("ab",), max_tokens=2 if last == "length" else 5)
    request = Request(0, [1], generation, Bytes(), frozenset({EOS}))
    shown = run(request, [[2], [10], [EOS]])
    assert "".join(shown) == request.output().text == "d"
    assert request.output().finish_reason == "stop"


@settings(max_examples=300)
@given(
    st.lists(st.integers(1, len(PIECES) - 1), min_size=1, max_size=14),
    st.lists(st.text("abc d", min_size=1, max_size=4), max_size=3),
    st.data(),
)
def test_streams_join_to_the_text_and_show_no_stop(tokens, stops, data):
    request = request_for(stop=tuple(stops), max_tokens=len(tokens))
    steps, rest = [], list(tokens)
    while rest:
        count = data.draw(st.integers(1, 3))
        steps.append(rest[:count])
        rest = rest[count:]
    pieces = run(request, steps)
    output = request.output()
    assert "".join(pieces) == output.text
    assert not any(stop in output.text for stop in stops)
    whole = "".join(PIECES[token] for token in tokens)
    assert whole.startswith(output.text)
    if output.finish_reason == "length":
        assert output.text == whole
    else:
        assert any(whole[len(output.text) :].startswith(stop) for stop in stops)
    assert output.token_ids == tokens[: len(output.token_ids)]
    assert output.acceptance.emitted == len(output.token_ids) == len(output.drafted)


def test_without_a_tokenizer_there_is_no_text():
    request = Request(0, [1], Generation(max_tokens=1), None, frozenset())
    request.emit([5], drafted=0)
    assert (request.new_text(), request.output().text) == ("", "")


def test_times_and_json():
    request = request_for(max_tokens=1)
    request.emit(ids("a"), drafted=0)
    output = request.output()
    assert 0 <= output.ttft_seconds <= output.seconds
    assert output.as_dict()["acceptance"]["emitted"] == 1


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, not 0"),
        ({"max_tokens": -3}, "max_tokens must be at least 1, not -3"),
        ({"stop": ("a", "")}, "an empty stop string would end every text; remove it"),
    ],
)
def test_parameters_out_of_range_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        Generation(**settings)


def test_a_stop_that_is_not_a_list_is_refused():
    with pytest.raises(ConfigError, match=r"stop must be a list of strings; write \['END'\]"):
        Generation(stop="END")


@given(st.lists(st.integers(1, len(PIECES) - 1), min_size=1, max_size=14), st.data())
def test_new_text_is_told_apart_by_who_wrote_it(tokens, data):
    request = request_for(stop=("bca",), max_tokens=len(tokens))
    pieces, rest = [], list(tokens)
    while rest and request.finish_reason is None:
        count = data.draw(st.integers(1, 3))
        request.emit(rest[:count], drafted=len(rest[:count]) - 1)
        pieces += request.by_origin(request.new_text())
        rest = rest[count:]
    output = request.output()
    assert "".join(text for text, _ in pieces) == output.text
    assert all(text for text, _ in pieces)
    wanted = [drafted for token, drafted in zip(output.token_ids, output.drafted, strict=True) for _ in PIECES[token]]
    assert [drafted for text, drafted in pieces for _ in text] == wanted[: len(output.text)]
