"""Texts made to hang, to exhaust or to take over a verifier: judged in time from any thread, and nothing is run."""

import threading
import time
from pathlib import Path

import psutil
import pytest

from qwen_align.reward.math_answer import MathAnswer
from qwen_align.reward.verdict import Verdict

REWARD = MathAnswer()
WALL_LIMIT_S = 1.2
CPU_LIMIT_S = 9.0
"""For the whole table in this process and its children, a tenth of what Math-Verify 0.9.0 needs for 36 such items."""


def box_answer(answer: str) -> str:
    """Returns a completion with the answer in a box."""
    return rf"The final answer is $\boxed{{{answer}}}$."


def nest_roots(last: str, depth: int = 9) -> str:
    """Returns square roots nested to a depth, with `last` innermost."""
    return "".join(rf"\sqrt{{{n}+" for n in range(2, depth)) + last + "}" * (depth - 2)


ANSWERS = {
    "a tower of four": ("8^{8^{8^{8}}}", "3"),
    "a tower without braces": ("7^7^7^7^7", "7"),
    "a tower of tens": ("10^{10^{10^{10}}}", "10"),
    "towers on both sides": ("9^{9^{9^{9}}}", "9^{9^{9^{8}}}"),
    "a tower less itself": ("9^{9^{9}}-9^{9^{9}}+1", "2"),
    "a tower that a printer would evaluate": (r"\frac{7^{(7^{(7^{(7^7)})} - 2)} - 7}{12}", "4"),
    "a tower in an exponent": ("e^{10^{10^{10}}}", "1"),
    "a negative tower": ("2^{-10^{10^{5}}}", "0"),
    "Python's power": ("10**10**10", "1"),
    "a large power, modulo": (r"3^{10^{9}} \bmod 7", "100"),
    "a power of a surd": (r"(1+\sqrt{2})^{10^{8}}", "1"),
    "a power of i": ("i^{10^{12}+3}", "5"),
    "a factorial": (r"(10^{9})!", "6"),
    "a factorial of a factorial": ("((20!)!)!", "6"),
    "factorials in a row": ("9!!!!!!!!!!", "9"),
    "a double factorial": ("(99999999)!!", "9"),
    "a binomial": (r"\binom{10^{9}}{5\cdot 10^{8}}", "6"),
    "a choose": (r"{100000000 \choose 50000000}", "6"),
    "binomials nested": (r"\binom{\binom{\binom{60}{30}}{20}}{10}", "6"),
    "a sum": (r"\sum_{n=1}^{10^{10}} \frac{1}{n}", "24"),
    "a sum of powers": (r"\sum_{k=1}^{100000} k^{100000}", "24"),
    "sums nested": (r"\sum_{a=1}^{9999}\sum_{b=1}^{9999}\sum_{c=1}^{9999} abc", "1"),
    "a product": (r"\prod_{k=1}^{10^{9}} k", "1"),
    "products nested": (r"\prod_{a=1}^{5000}\prod_{b=1}^{5000} (a+b)", "1"),
    "an integral": (r"\int_0^1 \frac{\cos(x^{19})e^{x^5}\ln(2+x^7)}{1+x^{29}}dx", "3"),
    "integrals nested": (r"\int_0^1\int_0^x\int_0^y e^{x^2 y z^3}\sin(xyz)\,dz\,dy\,dx", "3"),
    "a limit": (r"\lim_{n\to\infty}\left(\frac{(n!)^{1/n}}{n}\right)^{\sin n}", "3"),
    "an exponent of a float": ("1e999999999999", "1"),
    "a small exponent of a float": ("1e-999999999999", "0"),
    "two exponents of floats": ("1e400000000-1e399999999", "0"),
    "a long integer": ("7" * 5_000, "7"),
    "long integers that differ": ("7" * 5_000, "7" * 4_999 + "8"),
    "a long fraction": (rf"\frac{{{'7' * 2_400}}}{{{'3' * 2_400}}}", "2"),
    "a long decimal": ("0." + "3" * 5_000, r"\frac13"),
    "brackets": ("(" * 2_000 + "2" + ")" * 2_000, "1"),
    "brackets open": ("(" * 5_000 + "1", "1"),
    "fractions nested": (r"\frac{1}{1+" * 300 + "1" + "}" * 300, "1"),
    "roots nested": (r"\sqrt{" * 400 + "5" + "}" * 400, "1"),
    "roots nested, near": (nest_roots("9", 12), nest_roots("10", 12)),
    "exponents nested": ("x^{" * 400 + "2" + "}" * 400, "x"),
    "minus signs": ("-" * 5_001 + "2", "2"),
    "absolute values": ("|" * 901 + "1" + "|" * 901, "2"),
    "a power of many letters": ("(a+b+c+d+f+g+h)^{80}", "(a+b+c+d+f+g+k)^{80}"),
    "powers of sums multiplied": (
        "(x+1)^{99}(y+1)^{99}(z+1)^{99}(w+1)^{99}",
        "(x+1)^{99}(y+1)^{99}(z+1)^{99}(w+2)^{99}",
    ),
    "powers of sines": (r"\sin^{40}x+\cos^{40}x+\sin(40x)\cos(60x)", r"\tan^{20}x+\sec^{20}x"),
    "many terms": ("+".join(rf"\sqrt{{{n}}}" for n in range(2, 400)), "1"),
    "many letters": ("+".join(f"x_{{{n}}}^{{{n}}}" for n in range(2, 300)), "1"),
    "a set of many": (",".join(map(str, range(3_000))), ",".join(map(str, range(1, 3_001)))),
    "signs in a row": (r"\pm 1" + r"\pm \sqrt{2}" * 40, r"\pm 2"),
    "a matrix of many": (r"\begin{pmatrix}" + r"1&2&3\\" * 900 + r"\end{pmatrix}", r"\begin{pmatrix}1\end{pmatrix}"),
    "a determinant of many": (
        r"\begin{vmatrix}" + (" & ".join(["a+1"] * 30) + r"\\") * 30 + r"\end{vmatrix}",
        "1",
    ),
    "dollars": ("$" * 8_001, "5"),
    "unions": (r"(0,1)\cup" * 900 + "(0,1)", "(0,2)"),
    "relations": ("1<" * 3_000 + "2", "2"),
    "letters one by one": ("a " * 5_000, "b"),
    "commas": ("," * 8_000, "5"),
    "words": (r"\text{a}" * 3_000, "5"),
    "ligatures that grow": ("\ufdfa" * 3_000, "5"),
    "Chinese numerals": ("一" * 5_000, "1"),
    "a base": ("1" * 5_000 + "_2", "1_2"),
    "percent signs": ("5" + "%" * 5_000, "5000"),
    "subscripts": ("a" + "_{1" * 900 + "}" * 900, "a"),
}
RESPONSES = {
    "boxes never closed": r"\boxed{" * 4_000,
    "boxes nested": r"\boxed{" * 4_000 + "4" + "}" * 4_000,
    "answer, answer": "answer " * 6_000,
    "the answer is, the answer is": "the answer is " * 6_000,
    "is, is": "is " * 9_000,
    "dollars": "$" * 20_001,
    "dollars and spaces": "$ " * 9_000,
    "inline formulas never closed": r"\(" * 9_000,
    "displayed formulas never closed": r"\[" * 9_000 + "4",
    "final answers": "Final Answer: " * 5_000,
    "Chinese answers": "答案是" * 6_000,
    "thinking tags": "<think>" * 5_000 + "</think>" * 5_000 + "4",
    "spaces": "The answer is" + " " * 200_000 + "4",
    "stars": "*" * 50_000 + "4" + "*" * 50_000,
    "digits": "1 " * 30_000,
    "backslashes": "\\" * 100_001,
    "a tower, unboxed": "The answer is $9^{9^{9^{9}}}$.",
    "a million letters": "a" * 1_000_000,
    "boxes in a row": r"\boxed{4}, " * 5_000,
}
TEXTS = {name: (box_answer(answer), gold) for name, (answer, gold) in ANSWERS.items()}
TEXTS |= {f"completion of {name}": (text, "5") for name, text in RESPONSES.items()}

EQUAL = {
    "a power of many letters": ("(a+b+c+d)^{70}", "(d+c+b+a)^{70}"),
    "many roots": ("2" + r"+\sqrt{3}" * 300, r"2+300\sqrt{3}"),
    "brackets": ("(" * 2_000 + "5" + ")" * 2_000, "5"),
    "a tower": ("9^{9^{9^{9}}}", "9^{9^{9^{9}}}"),
}


@pytest.fixture(scope="module", autouse=True)
def _start_workers() -> None:
    """Starts the workers before any time is measured."""
    REWARD.warm_up()


def judge_timed(text: str, gold: str) -> tuple[Verdict, float]:
    """Judges a text and returns the verdict and its wall time in seconds."""
    start = time.monotonic()
    verdict = REWARD.judge(text, gold)
    return verdict, time.monotonic() - start


def measure_cpu_s() -> float:
    """Returns the CPU seconds of this process and all its descendants, with those they have waited for."""
    children = psutil.Process().children(recursive=True)
    return time.process_time() + sum(sum(child.cpu_times()[:4]) for child in children if child.is_running())


@pytest.mark.parametrize("name", TEXTS)
def test_bomb_is_not_paid_and_does_not_hang(name: str) -> None:
    text, gold = TEXTS[name]
    verdict, wall_s = judge_timed(text, gold)
    assert verdict.value == 0.0
    assert wall_s < WALL_LIMIT_S


@pytest.mark.parametrize("name", EQUAL)
def test_a_large_right_answer_is_paid(name: str) -> None:
    verdict, wall_s = judge_timed(box_answer(EQUAL[name][0]), EQUAL[name][1])
    assert verdict.value == 1.0
    assert wall_s < WALL_LIMIT_S


def test_from_another_thread_too_and_the_pool_is_well_afterwards() -> None:
    late: dict[str, float] = {}
    start = measure_cpu_s()

    def judge_all() -> None:
        """Judges all texts and notes those that took too long or got another verdict than 0."""
        for name, (text, _) in TEXTS.items():
            verdict, wall_s = judge_timed(text, "1001")  # a gold that no verdict is kept for
            if wall_s >= WALL_LIMIT_S or verdict.value != 0.0:
                late[name] = wall_s

    thread = threading.Thread(target=judge_all, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert late == {}
    assert measure_cpu_s() - start < CPU_LIMIT_S
    for gold, answer in (("2", r"\int_0^{\pi}\sin t\,dt"), (r"\frac{1}{3}", r"\int_0^1 t^2\,dt")):
        verdict, wall_s = judge_timed(box_answer(answer), gold)
        assert verdict.value == 1.0
        assert wall_s < WALL_LIMIT_S


@pytest.mark.slow
def test_judging_gold_bombs_is_bounded() -> None:
    slow = {}
    for name, (answer, _) in ANSWERS.items():
        start = time.monotonic()
        REWARD.judge_gold(answer)
        REWARD.judge(box_answer("1"), answer)
        wall_s = time.monotonic() - start
        if wall_s > 2 * WALL_LIMIT_S:
            slow[name] = wall_s
    assert slow == {}


INJECTIONS = [
    "__import__('os').mkdir('{}')",
    "[__import__('os').mkdir('{}')]",
    r"1\pi if __import__('os').mkdir('{}') else 1",
    "exec('import os; os.mkdir(\"{}\")')",
    "eval(\"open('{}','w')\")",
    "open('{}','w')",
    "open('{}','w') and 5",
    "[open('{}','w'),2]",
    "(lambda: open('{}','w'))()",
    "getattr(__import__('os'),'mkdir')('{}')",
    "().__class__.__base__.__subclasses__()[104]().load_module('os').mkdir('{}')",
    'sympify(\'open("{}","w")\')',
    r"\frac{{open('{}','w')}}{{1}}",
    r"\sqrt{{__import__('os').mkdir('{}')}}",
    r"\int_0^1 open('{}','w') dx",
    r"\sum_{{k=1}}^{{3}} open('{}','w')",
    r"\lim_{{x\to 0}} __import__('os').mkdir('{}')",
    "5; import os; os.mkdir('{}')",
    "{{{{open('{}','w')}}}}",
    'f\'{{open("{}","w")}}\'',
]
GOLDS = ["5", "x+1", r"2\pi", r"\begin{pmatrix}1\\2\end{pmatrix}", r"\int_0^1 x\,dx", r"\{1,2\}"]


@pytest.mark.parametrize("gold", GOLDS)
def test_python_in_an_answer_is_not_run(gold: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for code in INJECTIONS:
        answer = code.format(marker)
        for text in (box_answer(answer), answer, f"The answer is ${answer}$"):
            assert REWARD.judge(text, gold).value == 0.0
            REWARD.judge(text, answer)
            REWARD.judge_gold(answer)
    assert list(tmp_path.iterdir()) == []
