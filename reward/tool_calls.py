"""The `tool_calls` reward, which compares the tool calls of an answer with the gold's calls.

A call is one of Qwen's `<tool_call>` blocks, each of one JSON object.
"""

import json
from collections import Counter
from collections.abc import Hashable
from functools import cache
from typing import Any, ClassVar, Literal

from pydantic import Field

from qwen_align.align.rows import Completion
from qwen_align.reward.base import BaseReward, Probe
from qwen_align.reward.strict_json import JsonError, parse_json
from qwen_align.reward.thinking import cut_at_turn_end, strip_thinking
from qwen_align.reward.tool_call_gold import ToolCall, ToolCallGold, is_tool_call, make_call_key, parse_tool_gold
from qwen_align.reward.verdict import Verdict

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_MOST_CALLS = 256  # blocks that are read


class ToolCalls(BaseReward):
    """A reward of 1.0 for an answer whose tool calls are the gold's calls, each as often, else 0.0.

    Gold: `{"calls": [{"name": ..., "arguments": {...}}, ...], "tools": [...]}`, calls and tools also in OpenAI's
    wrapping (`{"type": "function", "function": {...}}`, arguments as a JSON text); `tools` may be left out, and
    `"calls": []` wants an answer without a call. A call is a `<tool_call>` block that holds one JSON object of name
    and arguments and ends at the first `</tool_call>`, as in Qwen's chat template and vLLM's `hermes` parser. Text
    around blocks is allowed. Numbers are compared by value (1 is 1.0), strings exactly, keys in any order; an argument
    that only says its default in the tool's schema counts as left out.

    A gold whose tools are no JSON schemas, or whose calls break them, is unusable; so what is paid fits the schemas.
    Calls may come in any order unless `order_matters`. With `partial_credit` the value is the share of calls that
    match, of the larger of both numbers, so that guesses cost.
    """

    role: ClassVar[Literal["outcome", "shaping"]] = "outcome"
    judges_gold: ClassVar[bool] = True
    kind: Literal["tool_calls"] = "tool_calls"
    order_matters: bool = Field(default=False, description="calls have to come in the gold's order")
    partial_credit: bool = Field(
        default=False, description="pay the share of calls that match, of the larger of both numbers of calls"
    )

    def judge(self, completion: str | Completion, gold: Any = None) -> Verdict:
        """Compares one completion's tool calls with a gold, by default its own, and returns the verdict."""
        text = completion if isinstance(completion, str) else completion.text
        if gold is None and not isinstance(completion, str):
            gold = completion.gold
        tool_gold = parse_tool_gold(gold)
        if isinstance(tool_gold, str):
            return Verdict(value=None, reason=tool_gold)
        answer = strip_thinking(cut_at_turn_end(text))
        if answer is None:
            return Verdict(value=0.0, reason="unfinished thinking")
        calls = parse_tool_calls(answer)
        if isinstance(calls, str):
            return Verdict(value=0.0, reason=calls)
        if not tool_gold.calls:
            return _judge_no_calls(calls, answer)
        return self._compare_calls(calls, tool_gold)

    def _compare_calls(self, calls: list[ToolCall], tool_gold: ToolCallGold) -> Verdict:
        """Compares an answer's tool calls with a gold that expects at least one and returns the verdict."""
        gold_keys = tool_gold.keys
        keys = [make_call_key(call, tool_gold.schemas) for call in calls]
        if self.order_matters:
            matched = sum(key == gold_key for key, gold_key in zip(keys, gold_keys, strict=False))
        else:
            matched = (Counter(keys) & Counter(gold_keys)).total()
        n_most = max(len(gold_keys), len(keys))
        if matched == n_most:
            return Verdict(value=1.0, reason="correct")
        value = matched / n_most if self.partial_credit else 0.0
        return Verdict(value=value, reason=_describe_mismatch(calls, keys, tool_gold))

    def judge_gold(self, gold: Any) -> Verdict:
        """Judges a completion that states exactly the gold's calls.

        Any verdict other than 1.0 makes the gold unusable.
        """
        tool_gold = parse_tool_gold(gold)
        calls = [] if isinstance(tool_gold, str) else tool_gold.calls
        return self.judge("\n".join(map(render_call, calls)) or "No call is needed.", gold)

    def probes(self) -> list[Probe]:
        """Returns probe answers with right calls, guessed calls, calls inside the thinking or copied tool lists."""
        right, wrong = ToolCall("add", {"a": 3, "b": 4}), ToolCall("add", {"a": 3, "b": 5})
        properties = {"a": {"type": "number"}, "b": {"type": "number"}}
        tool = {"name": "add", "parameters": {"type": "object", "properties": properties, "required": ["a", "b"]}}
        gold = {"calls": [right._asdict()], "tools": [tool]}
        no_calls: dict[str, Any] = {"calls": [], "tools": [tool]}
        call_text = render_call(right)
        return [
            Probe("the call", call_text, gold, True),
            Probe(
                "keys and number otherwise written", call_text.replace('"a": 3, "b": 4', '"b":4.0,"a":3'), gold, True
            ),
            Probe("after thinking", f"<think>\nSo {render_call(wrong)}\n</think>\n\n{call_text}", gold, True),
            Probe("only in the thinking", f"<think>\n{call_text}\n</think>\n\nDone.", gold, False),
            Probe("another argument", render_call(wrong), gold, False),
            Probe("a number as a string", call_text.replace("3", '"3"'), gold, False),
            Probe("true for 1", render_call(ToolCall("add", {"a": True, "b": 4})), gold, False),
            Probe("a guess beside the call", f"{call_text}\n{render_call(wrong)}", gold, False),
            Probe("said twice", f"{call_text}\n{call_text}", gold, False),
            Probe("key said twice", call_text.replace('"a": 3', '"a": 5, "a": 3'), gold, False),
            Probe("no tags", json.dumps(right._asdict()), gold, False),
            Probe("not closed", call_text.removesuffix(_CLOSE), gold, False),
            Probe("copied tool list", json.dumps(tool), gold, False),
            Probe("empty", "", gold, False),
            Probe("none wanted, none made", "Seven.", no_calls, True),
            Probe("none wanted, one made", call_text, no_calls, False),
            Probe("none wanted, nothing said", " ", no_calls, False),
            Probe("unusable gold", call_text, {"calls": [wrong._asdict() | {"name": "sub"}], "tools": [tool]}, False),
        ]


def render_call(call: ToolCall) -> str:
    """Formats a tool call as Qwen's chat template writes it."""
    return f"{_OPEN}\n{json.dumps(call._asdict(), ensure_ascii=False)}\n{_CLOSE}"


def parse_tool_calls(text: str) -> list[ToolCall] | str:
    """Parses all tool calls in a text. Returns the reason as text if they cannot be read."""
    calls: list[ToolCall] = []
    before, *blocks = text.split(_OPEN)
    if _CLOSE in before:
        return "malformed tags"
    if len(blocks) > _MOST_CALLS:
        return "too many calls"
    for block in blocks:
        content, closed, rest = block.partition(_CLOSE)
        if not closed or _CLOSE in rest:
            return "malformed tags"
        try:
            call = parse_json(content)
        except JsonError as error:
            return str(error)
        if not (is_tool_call(call) and len(call) == 2):
            return "malformed call"
        calls.append(ToolCall(**call))
    return calls


def _judge_no_calls(calls: list[ToolCall], answer: str) -> Verdict:
    """Returns the verdict on an answer whose gold expects no tool call."""
    if calls:
        return Verdict(value=0.0, reason="call not asked for")
    return Verdict(value=1.0, reason="correct") if answer.strip() else Verdict(value=0.0, reason="no answer")


def _describe_mismatch(calls: list[ToolCall], keys: list[Hashable], tool_gold: ToolCallGold) -> str:
    """Describes what is wrong with the first tool call that does not match the gold."""
    names, schemas = [call.name for call in tool_gold.calls], tool_gold.schemas
    for call, key in zip(calls, keys, strict=True):
        if key in tool_gold.keys:
            continue
        if call.name not in names:
            return "wrong tool" if schemas is None or call.name in schemas else "unknown tool"
        if schemas is not None and not _get_linear_validator()(schemas[call.name]).is_valid(call.arguments):
            return "arguments break the schema"
        return "wrong arguments"
    if not calls:
        return "no call"
    return "wrong order" if Counter(keys) == Counter(tool_gold.keys) else "wrong number of calls"


@cache
def _get_linear_validator() -> Any:
    """Returns a JSON-schema validator without the keywords that hostile arguments can make slow.

    A `pattern` may backtrack for ever, `uniqueItems` is quadratic, references may recurse.
    """
    from jsonschema.validators import Draft202012Validator, create

    keywords = ("type", "properties", "required", "enum", "const", "minimum", "maximum", "minItems", "maxItems")
    checks = {keyword: Draft202012Validator.VALIDATORS[keyword] for keyword in keywords}
    return create(Draft202012Validator.META_SCHEMA, validators=checks, type_checker=Draft202012Validator.TYPE_CHECKER)
