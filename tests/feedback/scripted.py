"""Engines that answer by a rule, for the tests of what asks them."""

import math

from tutelage.engine.requests import Completion, Output, Score


class Scripted:
    """`reply(prompt)` -> text; `odds(context)` -> P(first option). Speaks as a server does: it is no LocalEngine."""

    def __init__(self, reply=None, odds=None):
        self.reply, self.odds, self.on_done = reply, odds, None
        self.asked, self.params = [], []

    def generate(self, prompts, params):
        self.asked += prompts
        self.params += params
        return [
            Output((), tuple(Completion(self.reply(p), (), (), "stop") for _ in range(q.n)))
            for p, q in zip(prompts, params, strict=True)
        ]

    def score(self, pairs):
        out = []
        for i, (context, _) in enumerate(pairs):
            p = self.odds(context)
            out.append(Score(math.log(p if i % 2 == 0 else 1 - p) - 3.0))
        return out
