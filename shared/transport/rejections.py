"""What a server refused, counted by reason, and logged without letting a peer fill the disk."""

from __future__ import annotations

import logging
from collections import Counter

REASONS_KEPT = 100
LOGGED_AT_FIRST = 3
LOGGED_CHARACTERS = 300

log = logging.getLogger(__name__)


class Rejections:
    """counts: by reason, exact; what a peer says may shape a reason, so all beyond REASONS_KEPT are "other"."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def count(self, reason: str, detail: str = "") -> None:
        """One more. Logged are, by their detail, the first few of each reason, then each power of ten."""
        reason = printable(reason)
        if reason not in self.counts and len(self.counts) >= REASONS_KEPT:
            reason = "other"
        self.counts[reason] += 1
        number = self.counts[reason]
        if number <= LOGGED_AT_FIRST or number == 10 ** (len(str(number)) - 1):
            log.warning("refused: %s (number %d of %r)", printable(detail or reason), number, reason)


def printable(text: str) -> str:
    """On one line, and not endless, whatever a peer has put into it."""
    return text[:LOGGED_CHARACTERS].encode("unicode_escape").decode("ascii")[:LOGGED_CHARACTERS]
