"""Instructions found by a model: APE, instruction induction, SPELL, mutual information. All give a ranked list."""

from tutelage.icl.instructions.bandit import upper_confidence
from tutelage.icl.instructions.engineer import ApeSettings, ape
from tutelage.icl.instructions.induction import Induction, induce, induction_prompts, read_pairs, read_prompts
from tutelage.icl.instructions.information import by_information
from tutelage.icl.instructions.judges import execution_judge, judge_all, likelihood_judge
from tutelage.icl.instructions.metrics import metric
from tutelage.icl.instructions.perplexity import by_perplexity, expand, spell
from tutelage.icl.instructions.prompts import MetaPrompts, in_format, load_prompts, whole_template
from tutelage.icl.instructions.proposals import propose, resample
from tutelage.icl.instructions.ranked import Pair, Ranked, pairs_of
from tutelage.icl.instructions.search import InstructionSearch, check_search, search_instructions

__all__ = [
    "ApeSettings", "Induction", "InstructionSearch", "MetaPrompts", "Pair", "Ranked", "ape", "by_information",
    "by_perplexity", "check_search", "execution_judge", "expand", "in_format", "induce", "induction_prompts",
    "judge_all", "likelihood_judge", "load_prompts", "metric", "pairs_of", "propose", "read_pairs", "read_prompts",
    "resample", "search_instructions", "spell", "upper_confidence", "whole_template",
]  # fmt: skip
