"""Sets of slots, each kept once: a block's holders are a small number that stands for one of them.

Millions of blocks share few sets (who holds the system prompt, who alone holds a conversation), so a set is a Python int
used as bits, and a block keeps four bytes. A slot that is given up is taken out of every set at once, without looking at
a single block.
"""

from __future__ import annotations

from typing import Final

EMPTY: Final = 0  # the number of the empty set


class Masks:
    """The sets in use. Who keeps a number says so with `keep` and `release`."""

    def __init__(self) -> None:
        self.of: list[int] = [0]  # number -> set
        self._numbers: dict[int, int] = {0: EMPTY}
        self._users: list[int] = [0]
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self.of) - len(self._free)

    def keep(self, mask: int) -> int:
        """Return the number of a set, for one more user."""
        number = self._numbers.get(mask)
        if number is None:
            number = self._new(mask)
        self._users[number] += 1
        return number

    def release(self, number: int) -> None:
        """One user less; a set without users is forgotten."""
        self._users[number] -= 1
        if not self._users[number] and number != EMPTY:
            if self._numbers.get(self.of[number]) == number:
                del self._numbers[self.of[number]]
            self._free.append(number)

    def withdraw(self, slots: int) -> None:
        """Take these slots out of every set. Two numbers may stand for equal sets from then on."""
        for number, mask in enumerate(self.of):
            if mask & slots:
                if self._numbers.get(mask) == number:
                    del self._numbers[mask]
                self.of[number] = mask & ~slots
                if self._users[number]:
                    self._numbers.setdefault(mask & ~slots, number)

    def _new(self, mask: int) -> int:
        if self._free:
            number = self._free.pop()
            self.of[number] = mask
        else:
            number = len(self.of)
            self.of.append(mask)
            self._users.append(0)
        self._numbers[mask] = number
        return number
