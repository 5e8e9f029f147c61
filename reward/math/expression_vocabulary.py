"""The names of functions, constants and commands that the expression parser knows."""

from qwen_align.reward.math.expression_tokenizer import FUNCTION_WORDS

CLOSING_BRACKETS = {"(": ")", "[": "]", "{": "}", "|<": ">|", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
MULTI_ARGUMENT_FUNCTIONS = frozenset(("gcd", "lcm", "max", "min"))
FUNCTION_NAMES = frozenset(FUNCTION_WORDS) - {"sqrt"}
TRIGONOMETRIC_FUNCTIONS = frozenset("sin cos tan cot sec csc sinh cosh tanh coth sech csch".split())
FUNCTION_ALIASES = {
    "cotan": "cot",
    "Abs": "abs",
    "ceiling": "ceil",
    **{f"a{name}": f"arc{name}" for name in "sin cos tan cot sec csc sinh cosh tanh".split()},
}
OPAQUE_COMMANDS = frozenset(
    (
        r"\overline",
        r"\bar",
        r"\vec",
        r"\hat",
        r"\tilde",
        r"\widehat",
        r"\widetilde",
        r"\overrightarrow",
        r"\angle",
        r"\triangle",
    )
)
GREEK_LETTERS = frozenset(
    rf"\{name}"
    for name in (
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma "
        "tau upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell"
    ).split()
)
CONSTANTS = {"pi": "pi", "e": "e", "i": "i", r"\infty": "infinity"}
FACTOR_STARTS = (
    frozenset(("(", "[", "{", "|<", r"\lfloor", r"\lceil", "sqrt", "√", "pi", r"\infty", r"\frac", r"\binom"))
    | frozenset((r"\sum", r"\prod"))
    | FUNCTION_NAMES
    | GREEK_LETTERS
    | OPAQUE_COMMANDS
)
