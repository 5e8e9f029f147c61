"""A row becomes token ids and a loss mask; needs neither torch nor transformers.

A sample is what inference sees and then says: encode(prompt) + encode(completion), as two pieces because inference
encodes the prompt alone. Only the completion is in the loss, its end-of-turn token included; the newline that
templates write after it is no part of the sample. So nothing that the generation prompt supplies is ever trained.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from qwen_align.align.rendering.chat_template import (
    ChatTemplate,
    TemplateError,
    Thinking,
    Traits,
    continuation,
    load_template,
    located,
    read_traits,
)
from qwen_align.align.rendering.samples import PairIds as PairIds
from qwen_align.align.rendering.samples import Sample as Sample
from qwen_align.align.rendering.samples import merge_turns
from qwen_align.align.rendering.thinking_modes import (
    Switch,
    check_mode,
    has_tags,
    read_switch,
    thought_in,
    turn_switch,
    with_flag,
    with_inline_thinking,
)
from qwen_align.align.rows import Chat, Completion, Flag, Message, Mode, Pair, Row, Text, Trace, last_flag

END_OF_TEXT = "<|endoftext|>"  # ends a document in every Qwen base model, and pads


class Prompt(NamedTuple):
    """What inference sees. `supplied` is the part of the thinking block that is already in it."""

    ids: list[int]
    supplied: str


class Rendered(NamedTuple):
    """Samples within the limit, why others were dropped, and the token lengths of all, dropped ones included.

    Counts are of samples as rendered before turns are merged: a conversation has one an assistant turn.
    """

    samples: list[Sample]
    dropped: dict[str, int]
    lengths: list[int]


class RenderedPairs(NamedTuple):
    """Pairs within the limit, why others were dropped, and the length of each pair's longer side with the prompt."""

    pairs: list[PairIds]
    dropped: dict[str, int]
    lengths: list[int]


def render_rows(renderer: "Renderer", rows: Iterable[Row], max_tokens: int) -> Rendered:
    """The samples of all rows; those over `max_tokens` are dropped and counted, never cut."""
    samples: list[Sample] = []
    dropped: Counter[str] = Counter()
    lengths = []
    for row in rows:
        kept = []
        for turn in renderer.turns(row):
            lengths.append(len(turn.ids))
            reason = _too_long(len(turn.ids), turn.mask.index(True), max_tokens)
            if reason:
                dropped[reason] += 1
            else:
                kept.append(turn)
        samples.extend(merge_turns(kept))
    return Rendered(samples, dict(dropped), lengths)


def render_pairs(renderer: "Renderer", rows: Iterable[Pair], max_tokens: int) -> RenderedPairs:
    """All pairs as ids; those with a side that is over `max_tokens` with its prompt are dropped and counted."""
    pairs: list[PairIds] = []
    dropped: Counter[str] = Counter()
    lengths = []
    for row in rows:
        pair = renderer.pair(row)
        lengths.append(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)))
        reason = _too_long(lengths[-1], len(pair.prompt), max_tokens)
        if reason:
            dropped[reason] += 1
        else:
            pairs.append(pair)
    return RenderedPairs(pairs, dict(dropped), lengths)


def _too_long(n_tokens: int, n_prompt: int, max_tokens: int) -> str | None:
    if n_tokens <= max_tokens:
        return None
    return f"prompt over {max_tokens} tokens" if n_prompt >= max_tokens else f"over {max_tokens} tokens"


@dataclass(frozen=True)
class Renderer:
    """One model's tokenizer and chat template.

    `stop_ids` are the tokens that end generation, the end of a turn first; `end_of_text_id` ends a raw text.
    """

    tokenizer: Tokenizer
    template: ChatTemplate
    traits: Traits
    end_of_turn_id: int
    end_of_text_id: int
    pad_id: int
    stop_ids: list[int]

    @classmethod
    def load(cls, folder: Path) -> "Renderer":
        """The renderer of a model or tokenizer folder; raises TemplateError if what is there cannot be trained on."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise TemplateError(
                f"{folder}: has no tokenizer.json; write one there with "
                "transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )
        tokenizer = _read_tokenizer(path)
        # tokenizer.json may carry both, and they would cut or lengthen samples.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        template = load_template(folder)
        traits = read_traits(template, tokenizer)
        eos, pad = template.special_tokens.get("eos_token"), template.special_tokens.get("pad_token")
        stop_ids = _ids(tokenizer, traits.end_of_turn, END_OF_TEXT, eos)
        # Padding with the end of turn would make padding look like an answer's end; Qwen pads with <|endoftext|>.
        pads = [token for token in _ids(tokenizer, pad, END_OF_TEXT, "<|fim_pad|>") if token != stop_ids[0]]
        if not pads:
            raise TemplateError(
                f"{folder}: 'pad_token' is {pad!r}, no token of its own; "
                "name one in tokenizer_config.json that is not the end of turn"
            )
        return cls(
            tokenizer=tokenizer,
            template=template,
            traits=traits,
            end_of_turn_id=stop_ids[0],
            end_of_text_id=_ids(tokenizer, END_OF_TEXT, eos, traits.end_of_turn)[0],
            pad_id=pads[0],
            stop_ids=stop_ids,
        )

    @property
    def thinking(self) -> Thinking:
        """What the template does with thinking."""
        return self.traits.thinking

    def text(
        self,
        messages: Sequence[Message],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        enable_thinking: bool | None = None,
    ) -> str:
        """What transformers' `apply_chat_template(tokenize=False)` returns, with `thinking` as `reasoning_content`."""
        return self.template.text(
            [_as_dict(message) for message in messages],
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=enable_thinking,
        )

    def encode(self, text: str) -> list[int]:
        """Token ids, with no special token added before or after."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text with its `<think>` tags, without the stop and pad tokens at the end."""
        n_kept = len(ids)
        while n_kept and (ids[n_kept - 1] in self.stop_ids or ids[n_kept - 1] == self.pad_id):
            n_kept -= 1
        text: str = self.tokenizer.decode(list(ids[:n_kept]), skip_special_tokens=False)
        return text

    def prompt(
        self,
        messages: Sequence[Message],
        *,
        mode: Mode | None,
        flag: Flag | None,
        tools: list[dict[str, Any]] | None = None,
        where: str = "prompt",
    ) -> Prompt:
        """What inference sees before the next assistant turn; `where` opens the message of a TemplateError."""
        with located(where):
            asked = self._ask(messages, mode, flag, tools)
            ids = self.encode(self._prompt_text(asked))
        return Prompt(ids, self.traits.supplied[asked.switch.enable_thinking])

    def samples(self, row: Row) -> list[Sample]:
        """The training samples of a row; raises TemplateError, naming the row, where it cannot be trained as it is.

        A conversation is one sample an assistant turn, with its history as inference would render it at that turn
        (Qwen3's template leaves out the thinking of earlier ones). Turns that merely continue the one before are
        one sample with it. A turn that contradicts the flag in its user message's text is seen, not trained.
        """
        return merge_turns(self.turns(row))

    def turns(self, row: Row) -> list[Sample]:
        """One sample an assistant turn that does not contradict its user message's own flag, none merged."""
        with located(f"row '{row.id}'"):
            if isinstance(row, Text):
                return [self._text_sample(row)]
            if isinstance(row, Completion):
                return [self._completion_sample(row)]
            if isinstance(row, Trace):
                turn = Message(role="assistant", content=row.answer, thinking=row.thinking)
                return [self._turn_sample(self._ask(row.messages, row.mode, row.flag), turn)]
            if isinstance(row, Chat):
                return self._chat_samples(row)
            raise TemplateError(f"a {row.row} row has no answer to train; wanted text, chat, trace or completion rows")

    def whole(self, row: Completion) -> list[int]:
        """Prompt and completion as a scorer reads them, ended by the end of the turn, whether the model did or not."""
        with located(f"completion '{row.id}'"):
            asked = self._ask(row.prompt, row.mode, row.flag)
            supplied = self.traits.supplied[asked.switch.enable_thinking]
            said = self.encode(row.text.removeprefix(supplied))
            return [*self.encode(self._prompt_text(asked)), *said, self.end_of_turn_id]

    def pair(self, row: Pair) -> PairIds:
        """Prompt, chosen and rejected ids. The chosen side has to obey the row's mode, the rejected one need not.

        A side whose content holds thinking tags, with no `thinking`, is taken word for word as what a model said,
        prompt-supplied part included: so a malformed or unfinished thought can be rejected.
        """
        with located(f"row '{row.id}'"):
            asked = self._ask(row.messages, row.mode, row.flag)
            prompt = self._prompt_text(asked)
            with located("chosen"):
                is_raw = has_tags(row.chosen)
                check_mode(asked.switch, thought_in(row.chosen.content) if is_raw else row.chosen.thinking)
                chosen = self._side_text(asked, prompt, row.chosen)
            with located("rejected"):
                rejected = self._side_text(asked, prompt, row.rejected)
        return PairIds(self.encode(prompt), self.encode(chosen), self.encode(rejected))

    def _ask(
        self,
        messages: Sequence[Message],
        mode: Mode | None,
        flag: Flag | None,
        tools: list[dict[str, Any]] | None = None,
    ) -> "_Asked":
        # A soft switch in the prompt's own text is obeyed as one, or the empty block it asks for would not be trained.
        soft = last_flag(messages) if mode == "no_think" and flag is None else None
        switch = read_switch(self.traits, mode, soft if soft == "/no_think" else flag)
        return _Asked(with_flag(messages, flag), tools, switch)

    def _text_sample(self, row: Text) -> Sample:
        if not row.text:
            raise TemplateError("its text is empty, so there is nothing to train")
        ids = [*self.encode(row.text), self.end_of_text_id]
        return Sample(ids, [True] * len(ids))

    def _chat_samples(self, row: Chat) -> list[Sample]:
        places = [place for place, message in enumerate(row.messages) if message.role == "assistant"]
        if not places:
            raise TemplateError("has no assistant turn, so no token would be in the loss")
        read_switch(self.traits, row.mode, row.flag)
        samples = []
        for place in places:
            with located(f"message {place + 1}"):
                switch = turn_switch(row.messages[:place], row.mode, row.flag)
                if switch is not None:
                    asked = self._ask(row.messages[:place], switch.mode, switch.flag, row.tools)
                    samples.append(self._turn_sample(asked, row.messages[place]))
        if not samples:
            raise TemplateError(f"flag '{row.flag}' contradicts those in its user messages; drop it or them")
        return samples

    def _completion_sample(self, row: Completion) -> Sample:
        if row.finish_reason == "length":
            raise TemplateError("was cut at its token limit; training it would teach the model not to stop")
        asked = self._ask(row.prompt, row.mode, row.flag)
        check_mode(asked.switch, thought_in(row.text))
        return self._sample(self._prompt_text(asked), self._raw_text(asked, row.text))

    def _turn_sample(self, asked: "_Asked", turn: Message) -> Sample:
        if self.thinking != "none" and has_tags(turn):
            raise TemplateError("its content holds a thinking tag; put the thinking into the field 'thinking'")
        if not (turn.content.strip() or turn.tool_calls):
            raise TemplateError("the assistant says nothing; drop the row")
        check_mode(asked.switch, turn.thinking)
        prompt = self._prompt_text(asked)
        return self._sample(prompt, self._completion_text(asked, prompt, turn))

    def _sample(self, prompt: str, completion: str) -> Sample:
        seen, said = self.encode(prompt), self.encode(completion)
        return Sample([*seen, *said], [False] * len(seen) + [True] * len(said))

    def _side_text(self, asked: "_Asked", prompt: str, side: Message) -> str:
        return self._raw_text(asked, side.content) if has_tags(side) else self._completion_text(asked, prompt, side)

    def _prompt_text(self, asked: "_Asked") -> str:
        if not asked.messages or asked.messages[-1].role == "assistant":
            found = "an assistant turn" if asked.messages else "nothing"
            raise TemplateError(f"an answer needs a user or tool message before it, found {found}")
        return self._whole_text(asked, asked.messages, add_generation_prompt=True)

    def _completion_text(self, asked: "_Asked", prompt: str, turn: Message) -> str:
        """What the model has to say after the prompt, end-of-turn token included."""
        if not (turn.thinking and turn.thinking.strip()):
            # Said to be empty, or the template would look for thinking inside the content.
            turn = turn.model_copy(update={"thinking": ""})
        said = continuation(prompt, self._whole_text(asked, [*asked.messages, turn]))
        said, end, rest = said.rpartition(self.traits.end_of_turn)
        if not end or rest.strip():
            raise TemplateError(f"the template does not end the answer with {self.traits.end_of_turn}")
        _check_kept(turn, said)
        return self._closed(said)

    def _raw_text(self, asked: "_Asked", text: str) -> str:
        """What the model said after the prompt, from raw output with the prompt-supplied part in front."""
        supplied = self.traits.supplied[asked.switch.enable_thinking]
        if not text.startswith(supplied):
            raise TemplateError(f"raw output has to start with {supplied!r}, which its prompt supplies: {text[:40]!r}")
        return self._closed(text[len(supplied) :])

    def _closed(self, said: str) -> str:
        for stop in (self.tokenizer.id_to_token(stop_id) for stop_id in self.stop_ids):
            if stop is not None and stop in said:
                raise TemplateError(f"holds {stop} before its end, where inference would stop; take it out")
        return said + self.traits.end_of_turn

    def _whole_text(self, asked: "_Asked", messages: list[Message], *, add_generation_prompt: bool = False) -> str:
        if self.thinking == "none":
            messages = [with_inline_thinking(message) for message in messages]
        return self.text(
            messages,
            tools=asked.tools,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=asked.switch.enable_thinking,
        )


class _Asked(NamedTuple):
    """What an answer answers: the flagged messages before it, the tools, the switch."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None
    switch: Switch


def _as_dict(message: Message) -> dict[str, Any]:
    """The message as templates read it."""
    as_dict: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.thinking is not None:
        if message.role != "assistant":
            raise TemplateError(f"a {message.role} message has 'thinking', which only assistant turns can have")
        # transformers gives templates both names.
        as_dict["reasoning_content"] = as_dict["thinking"] = message.thinking
    if message.tool_calls is not None:
        as_dict["tool_calls"] = message.tool_calls
    return as_dict


def _check_kept(turn: Message, said: str) -> None:
    """Raises TemplateError for what a template would leave out or garble without a word."""
    for name, part in (("content", turn.content), ("thinking", turn.thinking or "")):
        if part.strip() not in said:
            raise TemplateError(f"the template does not write its {name} as it is; use another template or row")
    for call in turn.tool_calls or []:
        function = call.get("function", call)
        name, arguments = function.get("name"), function.get("arguments")
        if not isinstance(name, str) or name not in said:
            raise TemplateError(f"a tool call needs {{'function': {{'name': ..., 'arguments': ...}}}}, found {call}")
        if isinstance(arguments, str) and arguments not in said:
            raise TemplateError(
                f"the template quotes the arguments of tool call '{name}'; give them as an object, not as a string"
            )


def _ids(tokenizer: Tokenizer, *tokens: str | None) -> list[int]:
    """The ids of those tokens that the tokenizer has, each once."""
    ids = (tokenizer.token_to_id(token) for token in tokens if token is not None)
    return list(dict.fromkeys(token for token in ids if token is not None))


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        is_whole = "model" in json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        is_whole = False
    if not is_whole:
        raise TemplateError(f"{path}: is no tokenizer in JSON form, or is cut short; copy it again")
    return Tokenizer.from_file(str(path))
