"""The laboratory's tokenizer: one token for every word of a chain.

It is a real `PreTrainedTokenizerFast`, so whatever reads one from a folder reads this one. Decoding
joins words by a space, as they were written. ``</t>`` is an ordinary word and no special token: it
stays in the text when special tokens are skipped, where a reward looks for it.
"""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from softgrpo.lab.chains import MODULUS, OPERATORS, THINK_END

PAD, UNKNOWN, EOS = "<pad>", "<unk>", "<eos>"

# A conversation is its messages' texts in a row: the model knows no roles.
_CHAT_TEMPLATE = "{{ messages | map(attribute='content') | join(' ') }}"


def make_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Builds the tokenizer for a model with a context of `max_length` tokens."""
    words = [PAD, UNKNOWN, EOS, THINK_END, "=", *OPERATORS, *(str(n) for n in range(MODULUS))]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=EOS,
        padding_side="left",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        chat_template=_CHAT_TEMPLATE,
    )
