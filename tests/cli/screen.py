"""A terminal for tests: a stream that knows what a person would see on it."""

import io
import re

_SEQUENCE = re.compile(r"\x1b\[(?P<arguments>[?0-9;]*)(?P<command>[A-Za-z])|(?P<break>\n)|(?P<return>\r)|(?P<text>[^\x1b\n\r]+)")


class Screen(io.StringIO):
    """Takes what rich writes to a terminal of 80 columns."""

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        """What stands on it now, without colours."""
        lines, row, column = [""], 0, 0
        for found in _SEQUENCE.finditer(self.getvalue()):
            if found["break"]:
                row, column = row + 1, 0
                lines += [""] * (row + 1 - len(lines))
            elif found["return"]:
                column = 0
            elif found["text"]:
                line = lines[row].ljust(column)
                lines[row] = line[:column] + found["text"] + line[column + len(found["text"]) :]
                column += len(found["text"])
            elif found["command"] == "A":
                row -= int(found["arguments"] or 1)
                assert row >= 0
            elif found["command"] == "K":
                assert found["arguments"] == "2"
                lines[row] = ""
            else:
                assert found["command"] in "mhl", found[0]  # colours, and hiding the cursor
        return [line.rstrip() for line in lines]

    @property
    def has_colours(self) -> bool:
        return re.search(r"\x1b\[[0-9;]+m", self.getvalue()) is not None
