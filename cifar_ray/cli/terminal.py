"""What a person sees while a model or a data set is examined."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn, Self

from tqdm import tqdm


class Bars:
    """One bar after the other, on stderr; nothing where that is no terminal. A context: it leaves the terminal clean."""

    def __init__(self) -> None:
        self._bar: tqdm[NoReturn] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def start(self, what: str, images: int) -> Callable[[int], None]:
        """Ends the bar before and starts one for so many images; the answer is told how many more are done."""
        if self._bar is not None:
            self._bar.close()
        bar = self._bar = tqdm(desc=what, total=images, unit=" images", unit_scale=True, file=sys.stderr, disable=None, dynamic_ncols=True)

        def advance(count: int) -> None:
            bar.update(count)

        return advance
