"""From token ids on record to text, with the tokenizer's file alone: no model library is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launch.run_records import RunRecords, tokenizer_folder
from shared.errors import ModelFolderError


class TokenText:
    """Decodes with the tokenizer.json of a model folder; ModelFolderError when that cannot be read."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises nothing narrower
            raise ModelFolderError(f"cannot load a tokenizer from {folder}: {error}") from error

    @classmethod
    def of_run(cls, run: RunRecords, folder: Path | None = None) -> TokenText:
        """That of the run, or of a model folder that the user names instead."""
        found = folder or tokenizer_folder(run.folder, run.settings)
        if found is None:
            raise ModelFolderError(
                f"the tokenizer of the run in {run.folder} is gone: there is no {run.settings.get('model.path')} any "
                "more; name the folder of a model with the same tokenizer, with --tokenizer FOLDER"
            )
        return cls(found)

    def text(self, ids: Sequence[int]) -> str:
        """All tokens as text, control tokens included."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each token as text by itself; a token that is a part of a character shows as a replacement character."""
        return [self.text([token]) for token in ids]
