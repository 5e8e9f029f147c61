"""Builders: each makes typed rows from one source. A new one is one new file and one line in the union."""

from typing import Annotated

from pydantic import Field

from qwen_align.data_builders.arithmetic import Arithmetic
from qwen_align.data_builders.benchmark import Question
from qwen_align.data_builders.contamination import Overlap, Qwen25MathOverlap, Qwen25Overlap, S1Overlap, SameWords
from qwen_align.data_builders.conversion_report import Report
from qwen_align.data_builders.domains import Domains
from qwen_align.data_builders.hub import Hub
from qwen_align.data_builders.local_file import LocalFile
from qwen_align.data_builders.near_duplicates import NearDuplicateFinder, NearDuplicates
from qwen_align.data_builders.pairs import Pairs
from qwen_align.data_builders.pass_rate import BANDS, Band, PassRate
from qwen_align.data_builders.reasoning_gym_tasks import GymTask, ReasoningGymTasks
from qwen_align.data_builders.selection_features import Attempts
from qwen_align.data_builders.selection_limo import ChainScore, Limo
from qwen_align.data_builders.selection_limr import Limr, alignment_scores
from qwen_align.data_builders.selection_s1 import S1
from qwen_align.data_builders.sieve import Drop, Drops, Sieve, Sources, sieve
from qwen_align.data_builders.think_mix import Switches, ThinkMix

Builder = Arithmetic | LocalFile | Hub | Pairs | ReasoningGymTasks | ThinkMix | Domains | PassRate | Limo | Limr | S1
BuilderSettings = Annotated[Builder, Field(discriminator="kind")]

__all__ = [
    "BANDS",
    "S1",
    "Arithmetic",
    "Attempts",
    "Band",
    "Builder",
    "BuilderSettings",
    "ChainScore",
    "Domains",
    "Drop",
    "Drops",
    "GymTask",
    "Hub",
    "Limo",
    "Limr",
    "LocalFile",
    "NearDuplicateFinder",
    "NearDuplicates",
    "Overlap",
    "Pairs",
    "PassRate",
    "Question",
    "Qwen25MathOverlap",
    "Qwen25Overlap",
    "ReasoningGymTasks",
    "Report",
    "S1Overlap",
    "SameWords",
    "Sieve",
    "Sources",
    "Switches",
    "ThinkMix",
    "alignment_scores",
    "sieve",
]
