"""Trains the tokenizer of the embedded tiny model: a few hundred byte-level tokens that behave as Qwen3's do.

Same pre-tokenizer rule (a digit is a token), same control tokens, same kind of chat template, so that a
run on the tiny model rehearses one on a large model.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from qwen_align.reward.thinking import CLOSE, OPEN

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
# As in Qwen3 these are single tokens but no special ones: decoding with skip_special_tokens keeps them.
PLAIN_ADDED_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", OPEN, CLOSE)

# Qwen2's and Qwen3's rule for cutting text into words, from their tokenizer.json.
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Words of the chat format, which the base's text does not have; each is to become one token.
CHAT_WORDS = (
    "system",
    "user",
    "assistant",
    "\n\n",
    "think",
    "no_think",
    " /",
    "/",
    "_think",
    "You are a helpful assistant.",
)
CHAT_WORD_WEIGHT = 2000  # occurrences claimed for each: as frequent as the text's own words

# Rendered as Qwen3's template renders: thinking of turns before the last question is dropped, a closing answer
# always gets a think block, enable_thinking=False opens the answer with an empty one.
CHAT_TEMPLATE = r"""
{%- set state = namespace(question=messages | length - 1, searching=true) %}
{%- for message in messages | reverse %}
    {%- set said = message.content if message.role == 'user' else '' %}
    {%- set is_tool_result = said.startswith('<tool_response>') and said.endswith('</tool_response>') %}
    {%- if state.searching and message.role == 'user' and not is_tool_result %}
        {%- set state.question = messages | length - loop.index %}
        {%- set state.searching = false %}
    {%- endif %}
{%- endfor %}
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content ~ '\n\n' }}
    {%- endif %}
    {{- '# Tools\n\nThese functions can be called:\n<tools>' }}
    {%- for tool in tools %}
        {{- '\n' ~ (tool | tojson) }}
    {%- endfor %}
    {{- '\n</tools>\n\nTo call one, write its name and arguments as JSON:\n' }}
    {{- '<tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call><|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not (tools and loop.first)) %}
        {{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or loop.previtem.role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' ~ message.content ~ '\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- elif message.role == 'assistant' %}
        {%- set answer = message.content %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in answer %}
            {%- set thought = answer.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set answer = answer.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > state.question and (loop.last or thought) %}
            {{- '<think>\n' ~ thought.strip('\n') ~ '\n</think>\n\n' ~ answer.lstrip('\n') }}
        {%- else %}
            {{- answer }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if answer or not loop.first %}
                {{- '\n' }}
            {%- endif %}
            {%- set function = call.function or call %}
            {%- set arguments = function.arguments if function.arguments is string else function.arguments | tojson %}
            {{- '<tool_call>\n{"name": "' ~ function.name ~ '", "arguments": ' ~ arguments ~ '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
""".lstrip()


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE tokenizer on the lines of `texts` and the words of the chat format.

    It has at most `vocab_size` tokens.

    Lines are learned without their newline: a question ends with a newline in raw text and with a control token
    in a chat, and must end in the same token in both.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    n_added = len(SPECIAL_TOKENS) + len(PLAIN_ADDED_TOKENS)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - n_added,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    lines = [line for text in texts for line in text.split("\n")]
    tokenizer.train_from_iterator([*lines, *CHAT_WORDS * CHAT_WORD_WEIGHT], trainer)
    # Added after training, so that they follow the ordinary tokens as they do in Qwen's vocabulary.
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN_ADDED_TOKENS])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, *, max_tokens: int) -> None:
    """Writes the three tokenizer files that transformers' AutoTokenizer needs.

    `max_tokens` is the model's context length.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    config: dict[str, Any] = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        # Padding must differ from the end of a turn, or masking the padding unteaches the model to stop.
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "model_max_length": max_tokens,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
