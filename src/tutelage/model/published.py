"""What was published of the models that have a preset: year, parameters, training tokens, text; and what follows.

Nothing here needs torch, so that the table prints at once: the parameters of our configs stand beside the published
ones, and `count_parameters` (and a test of every row) counts them again.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

Counted = Literal["all", "without embeddings", "output embedding counted apart"]


@dataclass(frozen=True)
class Published:
    """One published model. `parameters`: as the source rounds them; `counted`: what of the model that figure holds."""

    year: float
    """With the month as a fraction: when the paper or announcement appeared."""
    parameters: str
    """In millions (M) or billions (B), with the digits of the source."""
    computed: int
    """Of our config, of what `counted` says; exact."""
    vocab_size: int
    context: int
    source: str
    tokens: float | None = None
    """Tokens that training saw, repetitions counted; None where the authors name no figure."""
    text_gb: float | None = None
    """Size of the training text; None where the authors give it in no unit of bytes."""
    counted: Counted = "all"
    per_token: int = 6
    """FLOPs per parameter and token: 6, but 3 in an encoder-decoder, where a token passes one of its halves."""
    note: str = ""

    @property
    def flops(self) -> float | None:
        """Training FLOPs, 6ND (Brown et al. 2020, appendix D)."""
        return self.per_token * self.computed * self.tokens if self.tokens else None

    @property
    def agrees(self) -> bool:
        """Whether the computed parameters, rounded as the published ones are, equal them."""
        return rounded_like(self.computed, self.parameters) == figure(self.parameters)


_GPT1 = "Radford et al. 2018, section 4.1; the count in Radford et al. 2019, table 2"
_GPT2 = "Radford et al. 2019; the counts as corrected in the released code (124M, 355M, 774M, 1558M)"
_GPT3 = "Brown et al. 2020, table D.1"
_BERT = "Devlin et al. 2019, section 3; tokens: Brown et al. 2020, table D.1; text: Liu et al. 2019, section 3.2"
_ROBERTA = "Liu et al. 2019; counts: fairseq's model list; tokens: Brown et al. 2020, table D.1"
_T5 = "Raffel et al. 2020, section 3.7; tokens: Brown et al. 2020, table D.1"
_FLAN = "Chung et al. 2022, table 2; tokens: T5's 1T and 100B of LM adaptation (Lester et al. 2021)"


def _gpt3(parameters: str, computed: int) -> Published:
    return Published(2020.41, parameters, computed, 50257, 2048, _GPT3, 300e9, 570)


def _t5(parameters: str, computed: int, **more: Any) -> Published:
    return Published(2019.81, parameters, computed, 32128, 512, _T5, 1000e9, 750, per_token=3, **more)


def _flan(parameters: str, computed: int) -> Published:
    return Published(2022.80, parameters, computed, 32128, 512, _FLAN, 1100e9, 750, per_token=3)


PUBLISHED: dict[str, Published] = {
    "gpt": Published(2018.44, "117M", 116_534_784, 40478, 512, _GPT1,
                     note="BooksCorpus, 100 epochs of 800M words; the authors name no tokens"),
    "gpt2": Published(2019.12, "124M", 124_439_808, 50257, 1024, _GPT2, text_gb=40),
    "gpt2-medium": Published(2019.12, "355M", 354_823_168, 50257, 1024, _GPT2, text_gb=40),
    "gpt2-large": Published(2019.12, "774M", 774_030_080, 50257, 1024, _GPT2, text_gb=40),
    "gpt2-xl": Published(2019.12, "1558M", 1_557_611_200, 50257, 1024, _GPT2, text_gb=40,
                         note="the paper itself says 1542M, and less for the others; its authors corrected that"),
    "gpt3-125m": _gpt3("125M", 125_226_240),
    "gpt3-350m": _gpt3("356M", 355_871_744),
    "gpt3-760m": _gpt3("760M", 760_300_032),
    "gpt3-1.3b": _gpt3("1320M", 1_315_723_264),
    "gpt3-2.7b": _gpt3("2650M", 2_651_553_280),
    "gpt3-6.7b": _gpt3("6660M", 6_658_404_352),
    "gpt3-13b": _gpt3("12850M", 12_853_386_240),
    "gpt3-175b": _gpt3("174600M", 174_604_259_328),
    "turing-nlg": Published(2020.12, "17B", 17_176_845_728, 50257, 1024,
                            "Rosset 2020 (announcement, Microsoft Research)", 300_000 * 512 * 1024, 174,
                            note="300,000 steps of 512 x 1024 tokens; vocabulary taken to be GPT-2's"),
    "lamda-pt": Published(2021.38, "137B", 137_440_010_240, 32000, 2048,
                          "Thoppilan et al. 2022, section 6; tokens: Hoffmann et al. 2022, table 1", 168e9,
                          counted="without embeddings",
                          note="LaMDA's own 3.55e23 FLOPs would be 430B tokens at 6ND; context length assumed"),
    "bert-base": Published(2018.78, "110M", 110_106_428, 30522, 512, _BERT, 250e9, 16),
    "bert-large": Published(2018.78, "340M", 336_226_108, 30522, 512, _BERT, 250e9, 16,
                            note="table D.1 of Brown et al. says 355M, RoBERTa's count"),
    "roberta-base": Published(2019.56, "125M", 124_697_433, 50265, 512, _ROBERTA, 2000e9, 160),
    "roberta-large": Published(2019.56, "355M", 355_412_057, 50265, 512, _ROBERTA, 2000e9, 160),
    "t5-small": _t5("60M", 60_506_624),
    "t5-base": _t5("220M", 222_903_552),
    "t5-large": _t5("770M", 770_567_168, counted="output embedding counted apart",
                    note="the released weights, with input and output embedding shared, have 738M"),
    "t5-3b": _t5("3B", 2_851_598_336, note="the paper's text says 2.8B"),
    "t5-11b": _t5("11B", 11_307_321_344),
    "flan-t5-small": _flan("80M", 76_961_152),
    "flan-t5-base": _flan("250M", 247_577_856),
    "flan-t5-large": _flan("780M", 783_150_080),
    "flan-t5-xl": _flan("3B", 2_849_757_184),
    "flan-t5-xxl": _flan("11B", 11_135_332_352),
}  # fmt: skip
"""Preset -> what was published of it."""


def figure(words: str) -> float:
    """The number that "117M" or "2.8B" stands for."""
    return float(words[:-1]) * {"M": 1e6, "B": 1e9}[words[-1]]


def rounded_like(count: int, words: str) -> float:
    """`count` rounded to the last digit of `words` that says something: "1320M" to 10M, "17B" to 1B, "2.8B" to 0.1B."""
    number, unit = words[:-1], {"M": 1e6, "B": 1e9}[words[-1]]
    whole, _, part = number.partition(".")
    step = 10.0 ** -len(part) if part else 10.0 ** (len(whole) - len(whole.rstrip("0")))
    return round(math.floor(count / unit / step + 0.5) * step * unit)


def rows() -> list[dict[str, Any]]:
    """The published models as plain values, oldest first; for a file."""
    return [
        {"model": name, **asdict(one), "published_count": figure(one.parameters), "flops": one.flops,
         "agrees": one.agrees}
        for name, one in sorted(PUBLISHED.items(), key=lambda pair: pair[1].year)
    ]  # fmt: skip
