"""Registers the data builders: classes of settings, each with a `build` method that yields data rows.

A new builder is one new file and one line in the union below.
"""

from typing import Annotated

from pydantic import Field

from qwen_align.data_builders.arithmetic import Arithmetic
from qwen_align.data_builders.benchmark_questions import Question
from qwen_align.data_builders.calculator_steps import CalculatorSteps
from qwen_align.data_builders.cold_start import ColdStart
from qwen_align.data_builders.contamination import Overlap, Qwen25MathOverlap, Qwen25Overlap, S1Overlap, SameWords
from qwen_align.data_builders.conversion_report import Report
from qwen_align.data_builders.hub import Hub
from qwen_align.data_builders.labelled_pairs import LabelledPairs
from qwen_align.data_builders.local_file import LocalFile
from qwen_align.data_builders.mixture import Ingredient, Mixture
from qwen_align.data_builders.near_duplicates import NearDuplicateFinder, NearDuplicates
from qwen_align.data_builders.question_split import QuestionPart, Split, Unused, normalize_question
from qwen_align.data_builders.reasoning_gym_tasks import GymTask, ReasoningGymTasks
from qwen_align.data_builders.rollout_labels import Labels
from qwen_align.data_builders.rollout_pairs import Pairs
from qwen_align.data_builders.scored_pairs import ScoredPairs
from qwen_align.data_builders.selection_domains import Domains
from qwen_align.data_builders.selection_inputs import Attempts
from qwen_align.data_builders.selection_limo import ChainScore, Limo
from qwen_align.data_builders.selection_limr import Limr, compute_alignment_scores
from qwen_align.data_builders.selection_pass_rate import BANDS, Band, PassRate
from qwen_align.data_builders.selection_s1 import S1
from qwen_align.data_builders.sieve import Drop, Drops, Sieve, Sources, sieve
from qwen_align.data_builders.step_labels import MonteCarloSteps, StepConsensus
from qwen_align.data_builders.step_prefixes_and_critiques import StepCritiques, StepPrefixes
from qwen_align.data_builders.think_mix import Switches, ThinkMix
from qwen_align.data_builders.thinking_flag_mixing import MixedFlags

Source = Arithmetic | Hub | LocalFile | ReasoningGymTasks
Selection = Domains | Limo | Limr | PassRate | S1
Mix = Mixture | Split | ThinkMix | Unused
Judged = ColdStart | LabelledPairs | Labels | Pairs | ScoredPairs
Stepwise = CalculatorSteps | MonteCarloSteps | StepConsensus | StepCritiques | StepPrefixes
Builder = Source | Selection | Mix | Judged | Stepwise
BuilderSettings = Annotated[Builder, Field(discriminator="kind")]

__all__ = [
    "BANDS",
    "S1",
    "Arithmetic",
    "Attempts",
    "Band",
    "Builder",
    "BuilderSettings",
    "CalculatorSteps",
    "ChainScore",
    "ColdStart",
    "Domains",
    "Drop",
    "Drops",
    "GymTask",
    "Hub",
    "Ingredient",
    "LabelledPairs",
    "Labels",
    "Limo",
    "Limr",
    "LocalFile",
    "MixedFlags",
    "Mixture",
    "MonteCarloSteps",
    "NearDuplicateFinder",
    "NearDuplicates",
    "Overlap",
    "Pairs",
    "PassRate",
    "Question",
    "QuestionPart",
    "Qwen25MathOverlap",
    "Qwen25Overlap",
    "ReasoningGymTasks",
    "Report",
    "S1Overlap",
    "SameWords",
    "ScoredPairs",
    "Sieve",
    "Sources",
    "Split",
    "StepConsensus",
    "StepCritiques",
    "StepPrefixes",
    "Switches",
    "ThinkMix",
    "Unused",
    "compute_alignment_scores",
    "normalize_question",
    "sieve",
]
