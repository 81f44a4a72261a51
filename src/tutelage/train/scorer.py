"""A trained reward model as a reward function: texts in, scores out, as the pages and the active sampling ask it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tutelage.core.config import read_toml
from tutelage.core.errors import DataError
from tutelage.model.heads import RewardModel
from tutelage.model.hub import find_model_dir, load_model, load_tokenizer
from tutelage.text.chat import ensure_chat
from tutelage.text.tokenizer import ensure_pad
from tutelage.train.reward_data import add_features, encode_ranking, score_rankings
from tutelage.train.rewards import Reward, load_function


class RewardScorer:
    """reward(prompts, completions) -> scores, by a reward model. Prompts are strings or messages. Safe to call from
    several threads, one of which computes at a time.

    `sft`: the model whose log-probs the reward model reads, if it reads any. Text beyond `max_length` tokens is cut as
    in training: of the prompt its beginning.
    """

    def __init__(self, model: RewardModel, tokenizer: Any, sft: Any = None, max_length: int = 256) -> None:
        if model.features is not None and sft is None:
            raise DataError("the reward model reads the SFT model's log-probs, and no SFT model was given")
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.sft = sft
        self.max_length = max_length
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: str | Path) -> RewardScorer:
        """The reward model of a run directory of `tutelage reward`, or of a model folder where it needs no SFT model.

        DataError when there is none, or when the SFT model that it was trained beside is no longer to be found.
        """
        path = Path(path)
        model = RewardModel.load(path)
        config = read_toml(path / "config.toml") if (path / "config.toml").is_file() else {}
        sft = None
        if model.features is not None:
            sft = load_model(_beside(path, config.get("model")))[0].eval().requires_grad_(False)
        tokenizer = load_tokenizer(str(find_model_dir(path)))
        ensure_pad(tokenizer)
        ensure_chat(tokenizer)
        return cls(model, tokenizer, sft, int(config.get("max_length", 256)))

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> list[float]:
        """A score for each completion of its prompt; the columns are not looked at."""
        rows = [
            encode_ranking({"prompt": prompt, "responses": [text], "ranking": [[0]]}, self.tokenizer, self.max_length)
            for prompt, text in zip(prompts, completions, strict=True)
        ]
        if not rows:
            return []
        pad = self.tokenizer.pad_token_id
        with self._lock:
            if self.sft is not None and self.model.features is not None:
                add_features(rows, self.sft, pad)
            return [score for (score,) in score_rankings(self.model, rows, pad)]


def open_reward(spec: str) -> Reward:
    """A reward model's run directory, or file.py:function (module:function), as a reward function."""
    return load_function(spec) if ":" in spec else RewardScorer.load(spec)


def _beside(path: Path, named: Any) -> str:
    """The SFT model that the run's configuration names: there, or, if the folder of runs was moved, beside the run."""
    if not named:
        raise DataError(f"{path}: the reward model reads its SFT model's log-probs; give the run directory, not model/")
    for place in (Path(named), path.parent / Path(named).name):
        if find_model_dir(place) is not None:
            return str(place)
    if Path(named).is_absolute() or len(Path(named).parts) > 2:
        raise DataError(f"{path}: was trained beside the SFT model {named}, which is not there; put it back")
    return str(named)  # a hub id
