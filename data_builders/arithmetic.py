"""Generates arithmetic word problems and expressions with reasoning traces and checkable answers.

A problem is a start value and one to eight changes of 2-20, every value between 0 and 99, asked half
the time as a small story and half as an expression. Train, dev and test never share the numbers
of a problem: the split is a hash of start and changes alone, so no evaluation question, however worded,
can be in any training data, the base's included.
"""

import hashlib
from collections.abc import Iterator
from random import Random
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from qwen_align.align.errors import DataError
from qwen_align.align.rows import Chat, Message, Problem, Row, Text, Trace
from qwen_align.align.settings.base import Strict
from qwen_align.data_builders.sieve import Drops, Sources

Split = Literal["train", "dev", "test"]

REWARD = "math_answer"
_SOURCE = "arithmetic"
LARGEST_VALUE = 99
SMALLEST_CHANGE, LARGEST_CHANGE = 2, 20
N_FACTS_PER_CHAIN = 6  # about as many tokens as a solved problem, so that shares of documents are shares of tokens
MAX_REDRAWS = 1000  # duplicates in a row before a build says that the wordings are exhausted

NAMES = ("Ann", "Tom", "Mia", "Ben", "Eva", "Sam", "Lily", "Max", "Zoe", "Leo", "Kim", "Dan")
THINGS = ("apples", "coins", "books", "cards", "pens", "eggs", "stamps", "shells", "balls", "nuts")
PLACES = ("box", "bag", "jar", "shop")


class Total(NamedTuple):
    """A running total: the start value and the signed changes in order."""

    start: int
    changes: tuple[int, ...]


class Scene(NamedTuple):
    """The sentence templates of one type of story problem. `{n}` stands for the number."""

    openings: tuple[str, ...]
    gains: tuple[str, ...]
    losses: tuple[str, ...]
    questions: tuple[str, ...]


OWNER = Scene(
    openings=("{name} has {n} {things}.", "{name} starts with {n} {things}."),
    gains=(
        "{other} gives {name} {n} more.",
        "{name} buys {n} more.",
        "{name} finds {n} more.",
        "{name} gets {n} from {other}.",
    ),
    losses=("{name} gives {n} to {other}.", "{name} loses {n}.", "{name} sells {n}.", "{other} takes {n}."),
    questions=("How many {things} does {name} have now?", "How many {things} does {name} have in the end?"),
)
PLACE = Scene(
    openings=("There are {n} {things} in a {place}.", "A {place} holds {n} {things}."),
    gains=("{name} puts in {n} more.", "{n} more are added."),
    losses=("{name} takes out {n}.", "{n} are removed."),
    questions=("How many {things} are in the {place} now?", "How many {things} does the {place} hold now?"),
)
TRAIN = Scene(
    openings=("There are {n} people on a train.", "A train carries {n} people."),
    gains=("{n} people get on.", "{n} more get on."),
    losses=("{n} people get off.", "{n} get off."),
    questions=("How many people are on the train now?", "How many people does the train carry now?"),
)
SCENES = (OWNER, OWNER, PLACE, TRAIN)  # the owner's story has the most wordings, so it is told twice as often

EXPRESSIONS = (
    "What is {sum}?",
    "How much is {sum}?",
    "Compute {sum}.",
    "Calculate {sum}.",
    "Find {sum}.",
    "Work out {sum}.",
    "{sum}=?",
    "What does {sum} make?",
)


class Arithmetic(Strict):
    """A builder that generates arithmetic problems, as problem rows, trace rows or raw texts.

    `steps` is cycled: `[2, 3, 4, 5, 5]` makes two in five problems five steps long. The last three
    settings shape `rows: text` only: shares of documents that are chains of facts and direct answers (the
    rest are problems of `steps` steps solved with a trace), and the steps of the direct ones.
    """

    kind: Literal["arithmetic"] = "arithmetic"
    rows: Literal["problem", "trace", "direct", "text"] = Field(
        description="kind of rows: problems with golds, traces, chats of direct answers, or raw texts"
    )
    n: int = Field(gt=0, le=100_000_000, description="number of rows")
    steps: list[Annotated[int, Field(ge=1, le=8)]] = Field(
        min_length=1,
        description="steps of the problems, used in turn: [2, 3] makes every other problem three steps long",
    )
    split: Split = Field(default="train", description="which of three sets without common problems the rows are from")
    seed: int | None = Field(default=None, description="seed of the draws; null: the recipe's")
    # Shares as in the prototype's base: 60 % facts knew its sums but could not copy numbers from a question.
    facts_share: float = Field(
        0.20,
        ge=0,
        le=1,
        description="share of documents that are chains of addition and subtraction facts; rows: text only",
    )
    direct_share: float = Field(
        0.18, ge=0, le=1, description="share of documents that give a problem's answer without steps; rows: text only"
    )
    direct_steps: list[Annotated[int, Field(ge=1, le=8)]] = Field(
        [1, 1, 1, 1, 1, 1, 2],
        min_length=1,
        description="steps of the problems answered directly, one drawn for each; rows: text only",
    )

    @model_validator(mode="after")
    def _check_text_settings(self) -> "Arithmetic":
        """Raises ValueError for text settings without `rows: text`, or for shares that add up to more than 1."""
        if self.rows != "text":
            idle_settings = sorted({"facts_share", "direct_share", "direct_steps"} & self.model_fields_set)
            if idle_settings:
                raise ValueError(f"{', '.join(idle_settings)} shape 'rows: text' only; rows is '{self.rows}'")
        elif self.facts_share + self.direct_share > 1:
            raise ValueError(f"facts_share + direct_share is {self.facts_share + self.direct_share}; at most 1")
        return self

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Generates the data rows through the interface of every builder. It reads no other stage and drops nothing."""
        return self.generate(seed)

    def generate(self, seed: int) -> Iterator[Row]:
        """Generates `n` distinct data rows, the same for the same settings and seed.

        `seed` counts where `self.seed` is None.
        """
        seed = seed if self.seed is None else self.seed
        # Rows and split are in the stream's seed, or two data sets of one recipe would draw alike problems.
        random = Random(f"arithmetic {self.rows} {self.split} {seed}")
        row_ids: set[str] = set()
        for index in range(self.n):
            for _ in range(MAX_REDRAWS):
                row = self._draw_row(random, index)
                if row.id not in row_ids:
                    break
            else:
                raise DataError(
                    f"arithmetic: only {index} of {self.n} distinct rows found for rows '{self.rows}', steps "
                    f"{self.steps}, split '{self.split}'; ask for fewer rows or more steps"
                )
            row_ids.add(row.id)
            yield row

    def _draw_row(self, random: Random, index: int) -> Row:
        """Draws one data row of the kind that the setting `rows` names."""
        if self.rows == "text":
            return self._draw_text(random)
        total = draw_total(random, self.steps[index % len(self.steps)], self.split)
        question, form = draw_question(random, total)
        prompt = [Message(role="user", content=question)]
        gold = str(compute_final_value(total))
        shared_fields: dict[str, Any] = {
            "id": compute_content_id(question),
            "source": _SOURCE,
            "meta": {"steps": len(total.changes), "form": form},
        }
        if self.rows == "problem":
            return Problem(messages=prompt, gold=gold, reward=REWARD, **shared_fields)
        if self.rows == "trace":
            thinking = "\n".join(write_equations(total))
            return Trace(
                messages=prompt, thinking=thinking, answer=box_answer(gold), gold=gold, reward=REWARD, **shared_fields
            )
        return Chat(
            messages=[*prompt, Message(role="assistant", content=box_answer(gold))], mode="no_think", **shared_fields
        )

    def _draw_text(self, random: Random) -> Text:
        """Draws one raw document: a chain of equations, a direct answer or a problem solved with a trace."""
        drawn = random.random()
        if drawn < self.facts_share:
            text = "\n".join(write_equations(draw_random_walk(random, N_FACTS_PER_CHAIN)))
        else:
            is_direct = drawn < self.facts_share + self.direct_share
            steps = random.choice(self.direct_steps if is_direct else self.steps)
            total = draw_total(random, steps, self.split)
            text = format_raw_document(draw_question(random, total)[0], total, direct=is_direct)
        return Text(id=compute_content_id(text), text=text, language="en", source=_SOURCE)


def format_raw_document(question: str, total: Total, *, direct: bool) -> str:
    """Formats a question and its solution as a raw document for pretraining the base model.

    It has the equations, or with `direct` the bare answer.

    Question and answer open a line, as they open a chat turn, so that their first words are the same tokens.
    """
    return format_raw_prompt(question, direct=direct) + format_raw_solution(total, direct=direct)


def format_raw_prompt(question: str, *, direct: bool) -> str:
    """Formats a question as a prompt in the layout of the base model's pretraining documents."""
    return f"Question:\n{question}\n{'Answer' if direct else 'Steps'}:\n"


def format_raw_solution(total: Total, *, direct: bool) -> str:
    """Formats the solution that follows the prompt of `format_raw_prompt` in a pretraining document."""
    answer = box_answer(str(compute_final_value(total)))
    return answer if direct else "\n".join([*write_equations(total), "Answer:", answer])


def box_answer(answer: str) -> str:
    r"""Wraps an answer in LaTeX's `\boxed{}`."""
    return f"\\boxed{{{answer}}}"


def compute_final_value(total: Total) -> int:
    """Returns the value at which a running total ends."""
    return total.start + sum(total.changes)


def write_equations(total: Total) -> list[str]:
    """Returns one equation such as `12+3=15` for each change of a running total."""
    lines, current = [], total.start
    for change in total.changes:
        lines.append(f"{current}{change:+d}={current + change}")
        current += change
    return lines


def format_expression(total: Total) -> str:
    """Formats the start and changes of a running total as an expression such as `33+12-5`."""
    return f"{total.start}" + "".join(f"{change:+d}" for change in total.changes)


def assign_split(total: Total) -> Split:
    """Assigns a problem to train, dev or test (8:1:1) by a hash of its numbers."""
    tenth = hashlib.sha256(format_expression(total).encode()).digest()[0] % 10
    return "test" if tenth == 0 else "dev" if tenth == 1 else "train"


def draw_total(random: Random, steps: int, split: Split) -> Total:
    """Draws a running total whose numbers belong to the given split (train, dev or test).

    It starts at 2 or more, since nobody has 0 or 1 apples to begin with.
    """
    while True:
        total = draw_random_walk(random, steps, smallest_start=SMALLEST_CHANGE)
        if assign_split(total) == split:
            return total


def draw_random_walk(random: Random, steps: int, smallest_start: int = 0) -> Total:
    """Draws a start value and random changes that keep the running total between 0 and 99.

    A change goes up or down alike wherever both are possible.
    """
    start = current = random.randint(smallest_start, LARGEST_VALUE)
    changes = []
    for _ in range(steps):
        largest_increase, largest_decrease = min(LARGEST_CHANGE, LARGEST_VALUE - current), min(LARGEST_CHANGE, current)
        goes_up = largest_decrease < SMALLEST_CHANGE or (largest_increase >= SMALLEST_CHANGE and random.random() < 0.5)
        size = random.randint(SMALLEST_CHANGE, largest_increase if goes_up else largest_decrease)
        changes.append(size if goes_up else -size)
        current += changes[-1]
    return Total(start, tuple(changes))


def draw_question(random: Random, total: Total) -> tuple[str, str]:
    """Draws the wording of a problem and returns the question with its form, `words` or `expression`."""
    if random.random() < 0.5:
        return random.choice(EXPRESSIONS).format(sum=format_expression(total)), "expression"
    return draw_story(random, total), "words"


def draw_story(random: Random, total: Total) -> str:
    """Draws a story problem about one owner, place or train, with one sentence for each change."""
    scene = random.choice(SCENES)
    name, other = random.sample(NAMES, 2)
    words = {"name": name, "other": other, "things": random.choice(THINGS), "place": random.choice(PLACES)}
    sentences = [random.choice(scene.openings).format(n=total.start, **words)]
    for change in total.changes:
        sentences.append(random.choice(scene.gains if change > 0 else scene.losses).format(n=abs(change), **words))
    sentences.append(random.choice(scene.questions).format(**words))
    return " ".join(sentences)


def compute_content_id(content: str) -> str:
    """Hashes a question's text to a stable row id. Equal questions have equal ids in whatever kind of row."""
    return f"arithmetic-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
