"""Builds problems that ask a model to continue after each step of a solution, or to find its first wrong step."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from qwen_align.align.references import DataRef
from qwen_align.align.rows import Message, Problem, Row
from qwen_align.align.settings.base import Strict
from qwen_align.data_builders.row_questions import add_questions_to_meta
from qwen_align.data_builders.sieve import Drops, Sources
from qwen_align.data_builders.solution_steps import STEP_BREAK, Solution, read_solutions
from qwen_align.reward.settings import RewardName

GO_ON = (
    "{question}\n\nHere is how a solution begins:\n\n{steps}\n\n"
    "Go on from there, without starting again, and put the final answer within \\boxed{{}}."
)
FIND_ERROR = (
    "{question}\n\nA solution, its paragraphs numbered from 0:\n\n{steps}\n\nGo through the paragraphs one after "
    "the other. Put the number of the first paragraph that holds an error within \\boxed{{}}, or -1 if none does."
)


def check_prompt_template(prompt: str) -> str:
    """Returns a prompt template unchanged.

    Raises ValueError if it leaves out the question or the steps, or names anything else.
    """
    try:
        filled = prompt.format(question="\0q", steps="\0s")
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"holds more than {{question}} and {{steps}}: {error}; write other braces twice") from None
    if "\0q" not in filled or "\0s" not in filled:
        raise ValueError("has to hold {question} and {steps}")
    return prompt


Prompt = Annotated[str, AfterValidator(check_prompt_template)]


class StepPrefixes(Strict):
    """A builder of problems that ask a model to continue a solution after each of its steps but the last.

    The problem is the question with the steps so far. A `rollout` of them says how often each prefix still leads to the
    gold, which is what `monte_carlo_steps` reads. The prefix stands in the last user turn, so that any chat model can
    go on from it. The last step needs none: after it the answer is settled.
    """

    kind: Literal["step_prefixes"] = "step_prefixes"
    from_data: DataRef = Field(description="data stage with the solutions: traces, chats, labelled rows or completions")
    reward: RewardName = Field(default="math_answer", description="reward that judges the continuations")
    step_break: str = Field(default=STEP_BREAK, min_length=1, description="text between two steps")
    prompt: Prompt = Field(default=GO_ON, description="template of the last user turn, with {question} and {steps}")
    max_steps: int | None = Field(
        default=None, ge=1, description="most steps of a solution; longer ones are dropped; null: no limit"
    )

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Yields the problems in the order of the solutions and their steps.

        The solution's id and the step are in `meta`.
        """
        for solution, steps in _read_solutions_with_steps(self, sources, drops):
            if self.max_steps is not None and len(steps) > self.max_steps:
                drops.add(f"over {self.max_steps} steps", solution.id)
                continue
            if len(steps) == 1:  # its only prefix is all of it; perhaps step_break is another
                drops.add("single step", solution.id)
            for step_index in range(len(steps) - 1):
                yield Problem(
                    id=make_prefix_id(solution.id, step_index),
                    messages=_make_prompt(solution, self.prompt, self.step_break.join(steps[: step_index + 1])),
                    gold=solution.gold,
                    reward=self.reward,
                    source=solution.source,
                    meta={**_make_meta(solution), "step": step_index},
                )


class StepCritiques(Strict):
    """A builder of problems that ask a model for the first wrong step of a solution, or -1 if there is none.

    ProcessBench asks the same. `step_consensus` reads a rollout of them. They have no gold; rewards that need one give
    no verdict.
    """

    kind: Literal["step_critiques"] = "step_critiques"
    from_data: DataRef = Field(description="data stage with the solutions: traces, chats, labelled rows or completions")
    step_break: str = Field(default=STEP_BREAK, min_length=1, description="text between two steps")
    prompt: Prompt = Field(
        default=FIND_ERROR, description="template of the last user turn, with {question} and {steps}"
    )

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Yields the problems in the order of the solutions. The solution's id is in `meta`."""
        for solution, steps in _read_solutions_with_steps(self, sources, drops):
            numbered = "\n\n".join(f"[{step_index}] {step}" for step_index, step in enumerate(steps))
            yield Problem(
                id=f"{solution.id}@critique",
                messages=_make_prompt(solution, self.prompt, numbered),
                reward="constant",
                source=solution.source,
                meta={**_make_meta(solution), "n_steps": len(steps)},
            )


def make_prefix_id(solution_id: str, step_index: int) -> str:
    """Makes the row id of the problem that continues a solution after the step with the given index.

    Steps are counted from 0.
    """
    return f"{solution_id}@{step_index}"


def _make_meta(solution: Solution) -> dict[str, Any]:
    """Makes the meta of a problem: the solution's own meta, its questions and its id."""
    return {**add_questions_to_meta(solution.meta, solution.messages), "solution": solution.id}


def _make_prompt(solution: Solution, prompt: str, steps: str) -> list[Message]:
    """Returns a solution's prompt turns with the last user turn replaced by the filled template."""
    *earlier, question = solution.messages
    return [*earlier, Message(role="user", content=prompt.format(question=question.content, steps=steps))]


def _read_solutions_with_steps(
    builder: StepPrefixes | StepCritiques, sources: Sources, drops: Drops
) -> Iterator[tuple[Solution, list[str]]]:
    """Yields each solution with its steps. Those without a step, or a question before it, are dropped."""
    for solution in read_solutions(sources, builder.from_data):
        steps = solution.split_steps(builder.step_break)
        if not steps:
            drops.add("no step", solution.id)
        elif not solution.messages or solution.messages[-1].role != "user":
            drops.add("no question before the solution", solution.id)
        else:
            yield solution, steps
