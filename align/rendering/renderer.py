"""Renders rows to token ids and loss masks with a model's tokenizer and chat template, without torch or transformers.

A sample is the prompt of inference and its completion: encode(prompt) + encode(completion), as two pieces because
inference encodes the prompt alone. Only the completion is in the loss, its end-of-turn token included; the newline that
templates write after it is no part of the sample. So nothing that the generation prompt supplies is ever trained.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from qwen_align.align.answer_modes import AnswerMode, Untrained, has_thinking
from qwen_align.align.rendering.chat_template import (
    ChatTemplate,
    TemplateError,
    TemplateTraits,
    Thinking,
    detect_template_traits,
    extract_continuation,
    load_template,
    prefix_template_errors,
)
from qwen_align.align.rendering.samples import PairIds, Sample, TurnCounts, merge_turns
from qwen_align.align.rendering.thinking_modes import (
    ThinkingSwitch,
    append_flag,
    check_thinking_fits_mode,
    choose_answer_mode,
    has_thinking_tags,
    inline_thinking,
    resolve_thinking_switch,
)
from qwen_align.align.rows import Chat, Completion, Flag, Message, Mode, Pair, Row, Text, Trace, find_last_flag
from qwen_align.reward.thinking import extract_thinking

END_OF_TEXT = "<|endoftext|>"  # ends a document in every Qwen base model, and pads


class OnlyRejectedThinks(TemplateError):
    """The error for a preference pair whose rejected side cannot follow the prompt of its chosen one."""


class Prompt(NamedTuple):
    """A rendered prompt as inference sees it.

    `thinking_prefix` is the part of the thinking block that it already contains.
    """

    ids: list[int]
    thinking_prefix: str


@dataclass(frozen=True)
class Renderer:
    """A renderer of rows to token ids and loss masks with one model's tokenizer and chat template.

    `stop_ids` are the tokens that end generation, the end of a turn first; `end_of_text_id` ends a raw text.
    """

    tokenizer: Tokenizer
    template: ChatTemplate
    traits: TemplateTraits
    end_of_turn_id: int
    end_of_text_id: int
    pad_id: int
    stop_ids: list[int]

    @classmethod
    def load(cls, folder: Path) -> "Renderer":
        """Loads the renderer of a model or tokenizer folder.

        Raises TemplateError if its template cannot be trained on.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise TemplateError(
                f"{folder}: has no tokenizer.json; write one there with "
                "transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )
        tokenizer = _read_tokenizer_file(path)
        # tokenizer.json may carry both, and they would cut or lengthen samples.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        template = load_template(folder)
        traits = detect_template_traits(template, tokenizer)
        eos, pad = template.special_tokens.get("eos_token"), template.special_tokens.get("pad_token")
        stop_ids = _look_up_ids(tokenizer, traits.end_of_turn, END_OF_TEXT, eos)
        # Padding with the end of turn would make padding look like an answer's end; Qwen pads with <|endoftext|>.
        pads = [token for token in _look_up_ids(tokenizer, pad, END_OF_TEXT, "<|fim_pad|>") if token != stop_ids[0]]
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
            end_of_text_id=_look_up_ids(tokenizer, END_OF_TEXT, eos, traits.end_of_turn)[0],
            pad_id=pads[0],
            stop_ids=stop_ids,
        )

    @property
    def thinking_support(self) -> Thinking:
        """Returns how the chat template treats thinking: none, hybrid, always or never."""
        return self.traits.thinking

    def render_text(
        self,
        messages: Sequence[Message],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        enable_thinking: bool | None = None,
    ) -> str:
        """Renders chat messages to text as transformers' `apply_chat_template(tokenize=False)` does."""
        return self.template.render_text(
            [_to_template_message(message) for message in messages],
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=enable_thinking,
        )

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text, without adding special tokens before or after it."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes token ids to text with thinking tags, without trailing stop and pad tokens."""
        n_kept = len(ids)
        while n_kept and (ids[n_kept - 1] in self.stop_ids or ids[n_kept - 1] == self.pad_id):
            n_kept -= 1
        text: str = self.tokenizer.decode(list(ids[:n_kept]), skip_special_tokens=False)
        return text

    def render_prompt(
        self,
        messages: Sequence[Message],
        *,
        mode: Mode | None,
        flag: Flag | None,
        tools: list[dict[str, Any]] | None = None,
        where: str = "prompt",
    ) -> Prompt:
        """Renders the prompt for the next assistant turn, as inference sees it. `where` opens error messages."""
        with prefix_template_errors(where):
            request = self._build_request(messages, mode, flag, tools)
            ids = self.encode(self._render_prompt_text(request))
        return Prompt(ids, self.traits.thinking_prefix[request.switch.enable_thinking])

    def render_samples(self, row: Row) -> list[Sample]:
        """Renders a row to its training samples.

        Raises TemplateError with the row's name if the row cannot be trained on.

        A conversation is one sample an assistant turn, with its history as inference would render it at that turn
        (Qwen3's template leaves out the thinking of earlier ones). Turns that merely continue the one before are
        one sample with it. A turn without the thinking of its conversation is seen, not trained.
        """
        return merge_turns(self.render_turns(row))

    def render_turns(self, row: Row, counts: TurnCounts | None = None) -> list[Sample]:
        """Renders one training sample for each assistant turn of a conversation, none merged.

        Turns that are seen and not trained are left out, and counted in `counts` with their reasons.
        """
        with prefix_template_errors(f"row '{row.id}'"):
            if isinstance(row, Text):
                return [self._render_text_sample(row)]
            counts = counts or TurnCounts()
            if isinstance(row, Completion):
                return [self._render_completion_sample(row, counts)]
            if isinstance(row, Trace):
                turn = Message(role="assistant", content=row.answer, thinking=row.thinking)
                return self._render_answers(row, [*row.messages, turn], [len(row.messages)], counts)
            if isinstance(row, Chat):
                indices = [index for index, message in enumerate(row.messages) if message.role == "assistant"]
                return self._render_answers(row, row.messages, indices, counts)
            raise TemplateError(f"a {row.row} row has no answer to train; wanted text, chat, trace or completion rows")

    def encode_for_scoring(self, row: Completion) -> list[int]:
        """Returns the token ids of prompt and completion as a reward model reads them.

        They always end with the end-of-turn token.
        """
        with prefix_template_errors(f"completion '{row.id}'"):
            request = self._build_request(row.prompt, row.mode, row.flag)
            prefix = self.traits.thinking_prefix[request.switch.enable_thinking]
            completion = self.encode(row.text.removeprefix(prefix))
            return [*self.encode(self._render_prompt_text(request)), *completion, self.end_of_turn_id]

    def render_pair(self, row: Pair) -> PairIds:
        """Renders the token ids of a preference pair: prompt, chosen and rejected completion.

        The chosen completion has to obey the row's thinking mode, or decides it, the rejected one not.

        A side whose content holds thinking tags, with no `thinking`, is taken word for word as what a model said,
        prompt-supplied part included: so a malformed or unfinished thought can be rejected.
        """
        with prefix_template_errors(f"row '{row.id}'"):
            with prefix_template_errors("chosen"):
                request = self._build_pair_request(row)
                prompt = self._render_prompt_text(request)
                chosen = self._render_side_text(request, prompt, row.chosen)
            with prefix_template_errors("rejected"):
                if request.is_thinking_off and has_thinking(row.rejected):
                    raise OnlyRejectedThinks("thinks, but its prompt, which is the chosen side's, has thinking off")
                rejected = self._render_side_text(request, prompt, row.rejected)
        return PairIds(self.encode(prompt), self.encode(chosen), self.encode(rejected), row.margin)

    def _build_pair_request(self, row: Pair) -> "_TurnRequest":
        """Resolves the thinking mode of a preference pair, which its chosen side obeys or decides."""
        chosen = row.chosen
        if has_thinking_tags(chosen):
            chosen = chosen.model_copy(update={"thinking": extract_thinking(chosen.content)})
        messages = [*row.messages, chosen]
        answer_mode = choose_answer_mode(self.traits, messages, len(row.messages), row.mode, row.flag)
        if isinstance(answer_mode, Untrained):
            raise TemplateError(f"would be among the {answer_mode.reason}; drop the row")
        request = self._build_request(row.messages, answer_mode.mode, answer_mode.flag)
        check_thinking_fits_mode(request.switch, chosen.thinking)
        return request

    def _build_request(
        self,
        messages: Sequence[Message],
        mode: Mode | None,
        flag: Flag | None,
        tools: list[dict[str, Any]] | None = None,
    ) -> "_TurnRequest":
        """Resolves a thinking mode and flag to the flagged messages and the template switch for rendering an answer."""
        # A soft switch in the prompt's own text is obeyed as one, or the empty block it asks for would not be trained.
        soft = find_last_flag(messages) if mode == "no_think" and flag is None else None
        switch = resolve_thinking_switch(self.traits, mode, soft if soft == "/no_think" else flag)
        return _TurnRequest(append_flag(messages, flag), tools, switch)

    def _render_text_sample(self, row: Text) -> Sample:
        """Renders a raw text as a training sample with all its tokens in the loss."""
        if not row.text:
            raise TemplateError("its text is empty, so there is nothing to train")
        ids = [*self.encode(row.text), self.end_of_text_id]
        return Sample(ids, [True] * len(ids))

    def _render_answers(
        self, row: Trace | Chat, messages: Sequence[Message], indices: Sequence[int], counts: TurnCounts
    ) -> list[Sample]:
        """Renders one training sample for each answer of a conversation at the indices that can be trained."""
        if not indices:
            raise TemplateError("has no assistant turn, so no token would be in the loss")
        resolve_thinking_switch(self.traits, row.mode, row.flag)
        tools = row.tools if isinstance(row, Chat) else None
        samples: list[Sample] = []
        untrained: list[str] = []
        for index in indices:
            with prefix_template_errors(f"message {index + 1}"):
                answer_mode = choose_answer_mode(self.traits, messages, index, row.mode, row.flag)
                if isinstance(answer_mode, AnswerMode):
                    request = self._build_request(messages[:index], answer_mode.mode, answer_mode.flag, tools)
                    samples.append(self._render_turn_sample(request, messages[index]))
                    counts.trained[self._name_switch(request)] += 1
                else:
                    untrained.append(answer_mode.reason)
        if not samples:
            raise TemplateError(f"no answer can be trained: all are among the {untrained[-1]}; drop the row")
        counts.untrained.update(untrained)
        return samples

    def _name_switch(self, request: "_TurnRequest") -> str:
        """Names how a request asks a hybrid model for its mode. The name is empty for other models."""
        if self.thinking_support != "hybrid":
            return ""
        if request.is_thinking_off:
            return "no_think (enable_thinking=False)"
        flag = find_last_flag(request.messages)
        return f"{request.switch.mode} ({flag})" if flag else str(request.switch.mode)

    def _render_completion_sample(self, row: Completion, counts: TurnCounts) -> Sample:
        """Renders a rollout's completion as a training sample. Raises TemplateError for one cut at its token limit."""
        if row.finish_reason == "length":
            raise TemplateError("was cut at its token limit; training it would teach the model not to stop")
        request = self._build_request(row.prompt, row.mode, row.flag)
        check_thinking_fits_mode(request.switch, extract_thinking(row.text))
        counts.trained[self._name_switch(request)] += 1
        return self._encode_sample(self._render_prompt_text(request), self._cut_thinking_prefix(request, row.text))

    def _render_turn_sample(self, request: "_TurnRequest", turn: Message) -> Sample:
        """Renders one assistant turn after its prompt as a training sample."""
        if self.thinking_support != "none" and has_thinking_tags(turn):
            raise TemplateError("its content holds a thinking tag; put the thinking into the field 'thinking'")
        if not (turn.content.strip() or turn.tool_calls):
            raise TemplateError("the assistant says nothing; drop the row")
        check_thinking_fits_mode(request.switch, turn.thinking)
        prompt = self._render_prompt_text(request)
        return self._encode_sample(prompt, self._render_completion_text(request, prompt, turn))

    def _encode_sample(self, prompt: str, completion: str) -> Sample:
        """Encodes prompt and completion separately to one training sample. Only the completion is in the loss."""
        prompt_ids, completion_ids = self.encode(prompt), self.encode(completion)
        return Sample([*prompt_ids, *completion_ids], [False] * len(prompt_ids) + [True] * len(completion_ids))

    def _render_side_text(self, request: "_TurnRequest", prompt: str, side: Message) -> str:
        """Renders the chosen or rejected completion of a preference pair to text.

        A completion with thinking tags is taken word for word.
        """
        return (
            self._cut_thinking_prefix(request, side.content)
            if has_thinking_tags(side)
            else self._render_completion_text(request, prompt, side)
        )

    def _render_prompt_text(self, request: "_TurnRequest") -> str:
        """Renders the messages of a turn request with the generation prompt for an answer."""
        if not request.messages or request.messages[-1].role == "assistant":
            found = "an assistant turn" if request.messages else "nothing"
            raise TemplateError(f"an answer needs a user or tool message before it, found {found}")
        return self._render_messages(request, request.messages, add_generation_prompt=True)

    def _render_completion_text(self, request: "_TurnRequest", prompt: str, turn: Message) -> str:
        """Renders the text that the model has to generate after the prompt, including the end-of-turn token."""
        if not (turn.thinking and turn.thinking.strip()):
            # Said to be empty, or the template would look for thinking inside the content.
            turn = turn.model_copy(update={"thinking": ""})
        completion = extract_continuation(prompt, self._render_messages(request, [*request.messages, turn]))
        completion, end, rest = completion.rpartition(self.traits.end_of_turn)
        if not end or rest.strip():
            raise TemplateError(f"the template does not end the answer with {self.traits.end_of_turn}")
        _check_turn_is_kept(turn, completion)
        return self._close_turn(completion)

    def _cut_thinking_prefix(self, request: "_TurnRequest", text: str) -> str:
        """Removes the thinking prefix, which the prompt already holds, from raw model output and closes the turn."""
        prefix = self.traits.thinking_prefix[request.switch.enable_thinking]
        if not text.startswith(prefix):
            raise TemplateError(f"raw output has to start with {prefix!r}, which its prompt supplies: {text[:40]!r}")
        return self._close_turn(text[len(prefix) :])

    def _close_turn(self, completion: str) -> str:
        """Appends the end-of-turn token to a completion.

        Raises TemplateError if the completion contains a stop token.
        """
        for stop in (self.tokenizer.id_to_token(stop_id) for stop_id in self.stop_ids):
            if stop is not None and stop in completion:
                raise TemplateError(f"holds {stop} before its end, where inference would stop; take it out")
        return completion + self.traits.end_of_turn

    def _render_messages(
        self, request: "_TurnRequest", messages: list[Message], *, add_generation_prompt: bool = False
    ) -> str:
        """Renders messages with the request's tools and thinking switch.

        Thinking goes into the content where the template knows none.
        """
        if self.thinking_support == "none":
            messages = [inline_thinking(message) for message in messages]
        return self.render_text(
            messages,
            tools=request.tools,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=request.switch.enable_thinking,
        )


class _TurnRequest(NamedTuple):
    """The input for rendering an answer: the flagged messages before it, the tools and the thinking switch."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None
    switch: ThinkingSwitch

    @property
    def is_thinking_off(self) -> bool:
        """Returns whether the template turns thinking off, so that its prompt ends with an empty thinking block."""
        return self.switch.enable_thinking is False


def _to_template_message(message: Message) -> dict[str, Any]:
    """Converts a message to the dictionary that chat templates read."""
    as_dict: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.thinking is not None:
        if message.role != "assistant":
            raise TemplateError(f"a {message.role} message has 'thinking', which only assistant turns can have")
        # transformers gives templates both names.
        as_dict["reasoning_content"] = as_dict["thinking"] = message.thinking
    if message.tool_calls is not None:
        as_dict["tool_calls"] = message.tool_calls
    return as_dict


def _check_turn_is_kept(turn: Message, completion: str) -> None:
    """Checks that a rendered completion contains the whole assistant turn unchanged.

    Raises TemplateError for what the template leaves out or garbles.
    """
    for name, part in (("content", turn.content), ("thinking", turn.thinking or "")):
        if part.strip() not in completion:
            raise TemplateError(f"the template does not write its {name} as it is; use another template or row")
    for call in turn.tool_calls or []:
        function = call.get("function", call)
        name, arguments = function.get("name"), function.get("arguments")
        if not isinstance(name, str) or name not in completion:
            raise TemplateError(f"a tool call needs {{'function': {{'name': ..., 'arguments': ...}}}}, found {call}")
        if isinstance(arguments, str) and arguments not in completion:
            raise TemplateError(
                f"the template quotes the arguments of tool call '{name}'; give them as an object, not as a string"
            )


def _look_up_ids(tokenizer: Tokenizer, *tokens: str | None) -> list[int]:
    """Returns the distinct ids of the given tokens that the tokenizer has."""
    ids = (tokenizer.token_to_id(token) for token in tokens if token is not None)
    return list(dict.fromkeys(token for token in ids if token is not None))


def _read_tokenizer_file(path: Path) -> Tokenizer:
    """Reads a tokenizer from tokenizer.json. Raises TemplateError for a truncated file or another format."""
    try:
        is_complete = "model" in json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        is_complete = False
    if not is_complete:
        raise TemplateError(f"{path}: is no tokenizer in JSON form, or is cut short; copy it again")
    return Tokenizer.from_file(str(path))
