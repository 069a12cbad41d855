"""When thinking ends: a marker however the tokenizer cuts it, the budget, cold stop."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from softgrpo.thinking import ThinkingConfig
from softgrpo.thinking.phases import Markers, Progress, ThinkingPhases
from tests.helpers import word_tokenizer


def _byte_bpe(merges):
    """A byte-level BPE whose merges, and so whose cuts, are the ones given ("Ġ" is a space)."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for a, b in merges:
        vocabulary[a + b] = len(vocabulary)
    core = Tokenizer(models.BPE(vocabulary, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False)


HASHES = [("#", "#"), ("##", "##"), ("Ġ", "####")]
CUTS = {
    "one token": HASHES,
    "with the space before it": HASHES,
    "two tokens": HASHES[:1],
    "four tokens": [],
    "inside a longer token": [*HASHES[:2], ("x", "####"), ("x####", "y")],
}


def _feed(text, markers, config):
    """(tokens until the thinking ended, how) of a text; None where it did not."""
    tokenizer = markers._decode.__self__
    phase = _One(markers, config)
    seen = []
    for token in tokenizer.encode(text, add_special_tokens=False):
        seen.append(token)
        if phase.update(token, 1.0).ended:
            return tokenizer.decode(seen), phase.ended_by
    return None


class _One:
    """The phase of one sequence among others that go on."""

    def __init__(self, markers, config):
        self.phases = ThinkingPhases(markers, config)
        self.others = [self.phases.begin() for _ in range(3)]
        self.number = self.phases.begin()

    def update(self, token, entropy):
        numbers = np.array([self.others[0], self.number, self.others[1]])
        tokens, entropies = np.array([3, token, 3]), np.array([1.0, entropy, 1.0])
        progress = self.phases.update(numbers, tokens, entropies)
        assert not {0, 2} & {*progress.ended}
        places = ([1] if 1 in rows else [] for rows in (progress.ended, progress.forced))
        return Progress(int(progress.tokens[1]), *places)

    @property
    def is_thinking(self):
        return bool(self.phases.is_thinking[self.number])

    @property
    def ended_by(self):
        return self.phases.ended_by(self.number)


@pytest.mark.parametrize("before", ["ab", "ab ", "x", "ab #", "é", "a ### b "])
@pytest.mark.parametrize("cut", CUTS)
def test_a_marker_is_found_however_the_tokenizer_cuts_it(cut, before):
    config = ThinkingConfig(think_end=("####",))
    markers = Markers(config.think_end, _byte_bpe(CUTS[cut]))
    ended, how = _feed(before + "####y 42", markers, config)
    assert how == "marker"
    assert ended.startswith(before) and "####" in ended and "42" not in ended


@pytest.mark.parametrize("text", ["ab ## # c", "### #", "a # # # # b"])
@pytest.mark.parametrize("cut", CUTS)
def test_what_is_not_the_marker_does_not_end_a_thought(cut, text):
    config = ThinkingConfig(think_end=("####",))
    assert _feed(text, Markers(config.think_end, _byte_bpe(CUTS[cut])), config) is None


@pytest.mark.parametrize("marker", ["</think>", "结束", "🙂!", "\n\nAnswer:"])
def test_a_marker_of_many_tokens_and_bytes_ends_at_its_last_token(marker):
    config = ThinkingConfig(think_end=(marker,))
    markers = Markers(config.think_end, _byte_bpe([]))
    assert _feed(f"so 1{marker} 2", markers, config) == (f"so 1{marker}", "marker")


def test_any_of_several_markers_ends_a_thought():
    config = ThinkingConfig(think_end=("</a>", "####"))
    markers = Markers(config.think_end, _byte_bpe(HASHES))
    assert _feed("x #### y", markers, config) == ("x ####", "marker")
    assert _feed("x</a> y", markers, config) == ("x</a>", "marker")


def test_a_marker_in_the_prompt_is_not_one_in_the_thought():
    """The phase sees generated tokens only: half a marker there is half a marker."""
    config = ThinkingConfig(think_end=("####",))
    assert _feed("##", Markers(config.think_end, _byte_bpe(HASHES)), config) is None


def test_a_marker_the_tokenizer_cannot_produce_is_refused():
    with pytest.raises(ValueError, match="think_end='</think>'"):
        Markers(("</think>",), word_tokenizer())


def _phase(**settings):
    config = ThinkingConfig(think_end=("</t>",), **settings)
    return _One(Markers(config.think_end, word_tokenizer()), config)


def test_at_the_budget_the_marker_is_forced():
    phase = _phase(max_think_tokens=3)
    states = []
    for token in (3, 4, 5):
        assert not phase.update(token, 1.0).forced
        states.append(phase.is_thinking)
    assert states == [True, True, False] and phase.ended_by == "budget"
    forced, after = phase.update(6, 1.0), phase.update(7, 1.0)
    assert [forced.tokens] == word_tokenizer().encode("</t>") and forced.forced
    assert after.tokens == 7 and not after.forced


def test_a_marker_at_the_budgets_last_step_is_not_forced_again():
    phase = _phase(max_think_tokens=2)
    phase.update(3, 1.0)
    assert phase.update(word_tokenizer().encode("</t>")[0], 1.0).ended
    assert phase.ended_by == "marker" and not phase.update(4, 1.0).forced


def test_a_cold_stop_needs_consecutive_cold_steps():
    phase = _phase(cold_stop_entropy=0.1, cold_stop_steps=2)
    for entropy in (0.05, 0.2, 0.05):
        phase.update(3, entropy)
        assert phase.is_thinking
    phase.update(3, 0.05)
    assert phase.ended_by == "cold_stop" and phase.update(3, 1.0).forced


def test_without_an_end_the_phase_goes_on():
    phase = _phase()
    for _ in range(50):
        phase.update(3, 0.0)
    assert phase.is_thinking and phase.ended_by is None


def test_a_number_that_is_free_again_begins_anew():
    """What the sequence before it had seen, half a marker and a forced one, is forgotten."""
    config = ThinkingConfig(think_end=("####",), max_think_tokens=3)
    markers = Markers(config.think_end, _byte_bpe([]))
    phases, hash_token = ThinkingPhases(markers, config), np.array([_byte_bpe([]).encode("#")[0]])
    number = np.array([phases.begin()])
    for _ in range(3):
        phases.update(number, hash_token, np.ones(1))
    assert phases.ended_by(0) == "budget"
    phases.end(0)
    assert phases.begin() == 0
    progress = phases.update(number, hash_token, np.ones(1))
    assert phases.is_thinking[0] and not progress.ended + progress.forced


def test_numbers_are_the_lowest_that_are_free():
    phases = _phase().phases
    assert [phases.begin() for _ in range(20)] == list(range(4, 24))
    phases.end(9)
    phases.end(5)
    assert [phases.begin(), phases.begin(), phases.begin()] == [5, 9, 24]
