"""Rows and files that settings' effects are looked for in, made so that each setting meets what it is for."""

import json
from collections.abc import Iterator
from typing import Any

from qwen_align.align.rows import Chat, Completion, Message, Pair, Problem, Row, Steps, Text, Trace
from qwen_align.data_builders import Arithmetic
from qwen_align.reward.verdict import Verdict


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str, thinking: str | None = None) -> Message:
    return Message(role="assistant", content=text, thinking=thinking)


def make_completion(prompt_id: str, sample: int, value: float | None, answer: str, **more: Any) -> Completion:
    """A completion that thinks, unless `text` is given, with one verdict."""
    thinking = more.pop("thinking", "one and one")
    settings: dict[str, Any] = {
        "text": f"<think>\n{thinking}\n</think>\n\n{answer}",
        "prompt": [user(f"What is {prompt_id}?")],
        "finish_reason": "stop",
        "n_tokens": len(answer) + 4,
        "mode": "think",
        "gold": "2",
        "verdicts": judge(value),
    }
    return Completion(prompt_id=prompt_id, sample=sample, **settings | more)


def judge(value: float | None, format_value: float | None = 1.0) -> dict[str, Verdict]:
    return {
        "math_answer": Verdict(value=value, reason="judged"),
        "format": Verdict(value=format_value, reason="judged"),
        "random": Verdict(value=format_value, reason="judged"),
    }


def generate(rows: Any, n: int, seed: int) -> list[Any]:
    return list(Arithmetic(rows=rows, n=n, steps=[1, 2]).generate(seed))


LETTERS = "a b c d e f g h i j k l m n o p q r s t u v w x y z".split()


def data_stages() -> dict[str, list[Row]]:
    """Rows of the data stages that settings refer to, by name."""
    return {**trained_rows(), **sieved_rows(), **selected_rows(), **judged_rows(), **stepwise_rows(), "none": []}


def trained_rows() -> dict[str, Any]:
    problems = generate("problem", 12, 0)
    pairs = [
        Pair(
            id=f"pair{n}",
            messages=[user(f"What is {n} + 1?")],
            chosen=assistant(f"\\boxed{{{n + 1}}}"),
            rejected=assistant(f"\\boxed{{{n}}}, or so it seems"),
            margin=1.0 + n,
            kind="math_answer",
            mode="no_think",
        )
        for n in range(6)
    ]
    return {
        "problems": problems,
        "half_golds": [row.model_copy(update={"gold": None}) if n % 2 else row for n, row in enumerate(problems[:4])],
        "other": generate("problem", 6, 1),
        "coins": [row.model_copy(update={"reward": "random"}) for row in generate("problem", 8, 3)],
        "more_coins": [row.model_copy(update={"reward": "random"}) for row in generate("problem", 5, 4)],
        "traces": generate("trace", 8, 0),
        "direct": generate("direct", 8, 2),
        "more_direct": generate("direct", 5, 5),
        "texts": generate("text", 30, 0),
        "more_texts": generate("text", 40, 1),
        "pairs": pairs,
        "more_pairs": pairs[:4],
        "draws": [
            make_completion(row.id, sample, value, "\\boxed{2}", verdicts=judge(value, value if n < 6 else 1.0))
            for n, row in enumerate(problems)
            for sample, value in enumerate((0.0, n / 12))
        ],
        "later_draws": [
            make_completion(row.id, sample, value, "\\boxed{2}", verdicts=judge(value, 1.0 - value))
            for n, row in enumerate(problems)
            for sample, value in enumerate((1.0, float(n % 3 == 0)))
        ],
    }


def sieved_rows() -> dict[str, Any]:
    problem = Problem(id="a", messages=[user("What is 1 + 1, and how is it found?")], gold="2", reward="math_answer")
    chat = Chat(id="c", messages=[user("Hello there, how are you today?"), assistant("Quite well, and you?")])
    words = " ".join(LETTERS)
    benchmark = Problem(id="b", messages=[user(" ".join(LETTERS[:16]))], gold="1", reward="math_answer")
    near = [f"{words} {words} {word}" for word in ("one", "two")]
    return {
        "dirty": [
            problem,
            problem.model_copy(update={"id": "again"}),
            problem.model_copy(update={"id": "unusable", "messages": [user("What is nothing?")], "gold": ""}),
            chat.model_copy(update={"id": "thinks", "messages": [user("Hi, you"), assistant("<think> </think> Ho")]}),
            chat.model_copy(update={"id": "control", "messages": [user("Hi, you two"), assistant("Ho<|im_end|>")]}),
            chat.model_copy(update={"id": "disobeys", "messages": [user("Hi, you all /think"), assistant("Ho")]}),
            chat.model_copy(update={"id": "order", "messages": [user("Hi"), user("Anybody?"), assistant("Ho")]}),
            problem.model_copy(update={"id": "chinese", "messages": [user("一加一等于多少呢，请告诉我")]}),
            problem.model_copy(update={"id": "mixed", "messages": [user("what is 一加一 in the end of it")]}),
            chat,
            Text(id="near1", text=near[0]),
            Text(id="near2", text=near[1]),
        ],
        "alike": [
            Text(id="near1", text=near[0]),
            Text(id="near2", text=near[1]),
            Trace(id="t1", messages=[user(near[0])], thinking="x " * 90, answer="1", reward="math_answer", gold="1"),
            Trace(id="t2", messages=[user(near[1])], thinking="y " * 90, answer="1", reward="math_answer", gold="1"),
        ],
        "benchmark": [benchmark],
        "contaminated": [
            benchmark.model_copy(update={"id": f"n{n}", "messages": [user(" ".join([*LETTERS[:n], *LETTERS[20:]]))]})
            for n in (6, 9, 11, 13, 15)
        ]
        + [Chat(id="inside", messages=[user("Say the letters"), assistant(" ".join(LETTERS))])],
    }


def selected_rows() -> dict[str, Any]:
    def make(n: int) -> Trace:
        words = ["check"] * (n % 3) + ["perhaps"] * (n % 4) + ["therefore"] * (n % 5) + ["number"] * (n % 2)
        mark = " [asy] " if n % 6 == 3 else " "
        return Trace(
            id=f"q{n}",
            messages=[user(f"Question {n} of some length?" if n < 6 else f"Question{mark}number {n} of the list?")],
            thinking=" ".join([*words, *["so"] * (3 * n + 1)]),
            answer=f"\\boxed{{{n}}}",
            gold=str(n),
            reward="math_answer",
            source=f"src{n % 2}",
            meta={
                "domain": ["algebra", "geometry", "logic"][n % 3],
                "other_domain": ["left", "right"][n % 2],
                "solved": n % 4 == 0,
                "teacher": n != 1,
                "origin_solved": n in (2, 3),
                "length": 100 * n + 1,
                "other_length": 100 * (20 - n),
                "count": n % 5,
                "share": (n % 5) / 4,
                "either": n % 2,
                "curve": [n / 14, min(1.0, n / 7)],
                "other_curve": [1 - n / 14, n / 14],
                "score": n / 14,
                "other_score": 1 - n / 14,
                "origin": f"src{(n // 2) % 2}",
            },
        )

    pool = [make(n) for n in range(12)]
    talk = [
        user("What is 1 + 1?"),
        assistant("2", "one and one"),
        user("And What is 2 + 2?"),
        assistant("4", "two and two"),
    ]
    talks = [
        Chat(id=f"talk{n}", messages=[*talk[:2], user(f"What is {n} + 2?"), assistant(str(n + 2))]) for n in range(6)
    ]
    with_system = [
        one.model_copy(
            update={"id": f"{one.id}s", "messages": [Message(role="system", content="Be brief."), *one.messages]}
        )
        for one in talks
    ]
    return {
        "pool": pool,
        "pool_too": [make(n) for n in range(2, 14)],
        "talks": [*talks, *with_system],
        "talks_before": [Chat(id="before", messages=talks[0].messages[:2])],
        "later_talks": [Chat(id="later", messages=talks[0].messages[2:])],
        "polite_talks": [Chat(id="polite", messages=[user("please What is 1 + 1?"), assistant("2")])],
    }


def judged_rows() -> dict[str, Any]:
    def chain(n: int, sample: int, value: float, thinking: str, answer: str, **more: Any) -> Completion:
        return make_completion(f"c{n}", sample, value, answer, thinking=thinking, **more)

    rollouts = [
        make_completion("p0", 0, 1.0, "\\boxed{2}"),
        make_completion("p0", 1, 0.0, "\\boxed{3}", thinking="one and one and more"),
        make_completion("p0", 2, 0.5, "\\boxed{5} or so, it is hard to say", n_tokens=50, verdicts=judge(0.5, 0.0)),
        make_completion("p0", 3, 0.5, "\\boxed{4} or so", n_tokens=16),
        make_completion("p1", 0, 1.0, "\\boxed{2}", thinking="first\n\nsecond"),
        make_completion("p1", 1, 1.0, "\\boxed{2}", thinking="wait, check that perhaps"),
        make_completion("p2", 0, 0.0, "\\boxed{7}", thinking="no idea"),
        make_completion("p2", 1, 0.0, "\\boxed{8}", mode="no_think", text="\\boxed{8}"),
    ]
    return {
        "rollouts": rollouts,
        "malformed": [
            make_completion("p0", 0, 1.0, "\\boxed{2}"),
            make_completion("p0", 1, 1.0, "\\boxed{2}", text="no thinking, \\boxed{2}"),
            make_completion("p0", 2, 0.0, "\\boxed{3}", text="no thinking, \\boxed{3}"),
        ],
        "chains": [
            chain(0, 0, 1.0, "one and one is 2", "\\boxed{2}"),
            chain(0, 1, 1.0, "one and one and a bit more thinking is 2", "\\boxed{2}"),
            chain(0, 2, 0.5, "one and one is 2, or so it may be", "\\boxed{2}"),
            chain(1, 0, 1.0, "the answer is something else", "\\boxed{2}"),
            chain(2, 0, 1.0, "一加一等于 2 也就是二", "\\boxed{2}", prompt=[user("What is one more, please?")]),
            chain(3, 0, 1.0, "one one one one one one is 2", "\\boxed{2}"),
            chain(4, 0, 1.0, "it is 2", "\\boxed{2}", verdicts=judge(1.0, 0.0)),
            chain(5, 0, 0.0, "it is 2", "\\boxed{3}"),
        ],
        "chains_asked": [Problem(id="x", messages=[user("What is c0?")], gold="2", reward="math_answer")],
    }


def stepwise_rows() -> dict[str, Any]:
    def marked(row_id: str, text: str) -> Chat:
        return Chat(id=row_id, messages=[user("How many in all?"), assistant(text)])

    def walk(row_id: str, *steps: str) -> Trace:
        return Trace(
            id=row_id,
            messages=[user("How many?")],
            thinking="hm",
            answer="\n\n".join(steps),
            gold="9",
            reward="math_answer",
        )

    def go_on(prompt_id: str, *values: float) -> Iterator[Completion]:
        for sample, value in enumerate(values):
            yield make_completion(
                prompt_id,
                sample,
                value,
                "\\boxed{9}",
                gold="9",
                verdicts=judge(value, 1.0 - value),
                mode=None,
                text="9",
            )

    def steps(row_id: str, *labels: bool | float) -> Steps:
        texts = [f"step {n}" for n in range(len(labels))]
        return Steps(id=row_id, messages=[user("How many?")], steps=texts, labels=list(labels), gold="9")

    def judgement(row_id: str, *boxes: int) -> Iterator[Completion]:
        for sample, box in enumerate(boxes):
            meta = {"solution": row_id}
            yield make_completion(f"{row_id}@critique", sample, 1.0, "", text=f"\\boxed{{{box}}}", meta=meta)

    walks = [walk("s", "2+3=5 and on.", "5+4=9 and more.", "So \\boxed{9}."), walk("w", "1+1=3.", "So \\boxed{3}.")]
    continued = [*go_on("s@0", 1.0, 1.0, 0.0), *go_on("s@1", 0.0, 0.5), *go_on("w@0", 0.0, 0.0, 1.0)]
    lines = [
        "3 boxes hold 3*4=<<3*4=12>>12 pens. All of them.\nHalf of it is 12/5=<<12/5=2.4>>2.4 pens\n#### 2.4",
        "It is 7/3=<<7/3=2.33>>2.33 of them. Or so.\nSo 2+2=<<2+2=5>>5 => 5\n#### 5",
        "2+2=<<2+2=4>>4\nand 4*3=<<4*3=12>>12\n#### 12",
    ]
    return {
        "marked": [marked(f"m{n}", line) for n, line in enumerate(lines)],
        "marked_too": [marked("other", lines[2])],
        "walks": walks,
        "walks_too": walks[:1],
        "continued": continued,
        "continued_too": [*go_on("s@0", 0.0, 0.0, 0.0), *go_on("s@1", 1.0, 1.0), *go_on("w@0", 1.0, 1.0, 1.0)],
        "labelled_steps": [steps("s", True, False), steps("w", True, True)],
        "soft_steps": [steps("s", 0.9, 0.5), steps("w", 0.3, 0.9)],
        "judgements": [*judgement("s", 1, 1, -1), *judgement("w", 0, -1, -1)],
        "other_judgements": [*judgement("s", 0, 0, 0), *judgement("w", 1, 1, 1)],
    }


def write_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def judged_file(*, is_turned: bool = False) -> list[dict[str, Any]]:
    """Lines of judged answers and of scored responses."""
    return [
        {
            "question": f"What is {n} + 1?",
            "prompt": f"And {n} + 1?",
            "tries": [
                {"solution": f"<<{n}+1={n + 1}>>{n + 1}", "is_correct": not is_turned, "text": "yes", "ok": False},
                {"solution": f"{n}", "is_correct": n == 2, "text": "no", "ok": True},
                {"solution": "a long answer, and wrong", "is_correct": is_turned, "text": "a", "ok": False},
            ],
            "more": [{"solution": "7", "is_correct": False, "text": "b", "ok": True}],
            "responses": ["first", "second one", "third answer of all"],
            "others": ["a", "b", "c"],
            "rewards": [0.1, 0.5, 0.9],
            "scores": [0.9, 0.5, 0.1],
        }
        for n in range(4)
    ]


def one_sided_file() -> list[dict[str, Any]]:
    (first, second, *_) = judged_file()
    return [first, {**second, "tries": second["tries"][:1]}]


JUDGES = """
import time

def judge(completion, gold):
    return float(gold in completion.text)

def slow(completion, gold):
    time.sleep(1.0)
    return 1.0

def hungry(completion, gold):
    return float(len(bytearray(500_000_000)) > 0)

def group(completions):
    return [float(completion.n_tokens) / 100 for completion in completions]
"""
DOMAINS = """
import time

def domain(question):
    return "even" if len(question) % 2 else "odd"

def other(question):
    return "all"

def slow(question):
    time.sleep(0.3)
    return "all"

def hungry(question):
    return "all" * len(bytearray(500_000_000)[:1])
"""
FILES = {
    "judge.py": JUDGES,
    "other_judge.py": "def judge(completion, gold):\n    return 0.25\n",
    "domains.py": DOMAINS,
    "other_domains.py": "def domain(question):\n    return 'another'\n",
    "questions.jsonl": write_lines([{"q": " ".join(LETTERS[:16]), "r": "nothing of the kind at all"}]),
    "nothing.jsonl": write_lines([{"q": "nothing of the kind at all"}]),
    "solved.jsonl": write_lines(
        [
            {"question": f"What is {n} + 1?", "answer": f"So it is.\n#### {n + 1}", "other": "Which?", "level": n}
            for n in range(4)
        ]
    ),
    "marks.jsonl": write_lines([{"question": "Half of 4?", "answer": "4/2=<<4/2=2>>2\n#### 2"}]),
    "echoes.jsonl": write_lines([{"prompt": "Half of 4?", "chosen": "Half of 4? 2", "rejected": "Half of 4? 3"}]),
    "echoed_answers.jsonl": write_lines(
        [{"prompt": "Half of 4?", "responses": ["Half of 4? 2", "Half of 4? 3"], "rewards": [1, 0]}]
    ),
    "bad.jsonl": write_lines([{"question": "Half of 4?", "answer": "2"}, {"question": 3}]),
    "judged.jsonl": write_lines(judged_file()),
    "other_judged.jsonl": write_lines(judged_file(is_turned=True)),
    "one_sided.jsonl": write_lines(one_sided_file()),
    "scores.json": json.dumps([{"prompt": f"Question {n} of some length?", "score": n / 6} for n in range(6)]),
    "other_scores.json": json.dumps(
        [{"prompt": f"Question {n} of some length?", "score": 1 - n / 6} for n in range(6)]
    ),
}
