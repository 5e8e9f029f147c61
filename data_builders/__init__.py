"""Builders: each makes typed rows from one source. A new one is one new file and one line in the union."""

from typing import Annotated

from pydantic import Field

from qwen_align.data_builders.arithmetic import Arithmetic
from qwen_align.data_builders.local_file import LocalFile
from qwen_align.data_builders.pairs import Pairs
from qwen_align.data_builders.reasoning_gym_tasks import GymTask, ReasoningGymTasks
from qwen_align.data_builders.sieve import Drop, Drops, Sieve, Sources, sieve
from qwen_align.data_builders.think_mix import Switches, ThinkMix

Builder = Arithmetic | LocalFile | Pairs | ReasoningGymTasks | ThinkMix
BuilderSettings = Annotated[Builder, Field(discriminator="kind")]

__all__ = [
    "Arithmetic",
    "Builder",
    "BuilderSettings",
    "Drop",
    "Drops",
    "GymTask",
    "LocalFile",
    "Pairs",
    "ReasoningGymTasks",
    "Sieve",
    "Sources",
    "Switches",
    "ThinkMix",
    "sieve",
]
