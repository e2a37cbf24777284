"""A tokenizer of one token per character, and what an engine would sample in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rollout.sample import Sample
from shared.episodes import Int32Array, VersionSpan


class CharacterChat:
    """0 ends the turn."""

    tells_the_day = False

    def prompt_ids(self, text: str) -> list[int]:
        return self.prompt(text).tolist()

    def prompt(self, text: str) -> Int32Array:
        return np.array([*map(ord, text)], dtype=np.int32)

    def check_shown(self, texts: list[str]) -> None:
        """Every character is a token."""

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(i) for i in ids if i)


def make_sample(text: str, version: int = 0) -> Sample:
    ids = np.array([*map(ord, text), 0], dtype=np.int32)
    logprobs = np.full(len(ids), -0.25, dtype=np.float32)
    return Sample(ids, logprobs, (VersionSpan(version, 0, len(ids)),), truncated=False)


def answer(content: str) -> str:
    return f"<answer>{content}</answer>"


def write_tokenizer(folder: Path) -> None:
    """A tokenizer.json that decodes as CharacterChat does; the end of a turn is shown as <end>."""
    from tokenizers import Tokenizer, decoders, models

    vocabulary = {"<end>" if i == 0 else chr(i): i for i in range(0x3000) if not 0xD800 <= i < 0xE000}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
