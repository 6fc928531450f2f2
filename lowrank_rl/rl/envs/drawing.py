"""Just enough drawing for ``render``: thick strokes on a white image of 400 x 600 pixels."""

import numpy as np

HEIGHT, WIDTH = 400, 600
DARK, RED, BLUE, GROUND = (40, 40, 40), (205, 60, 50), (50, 90, 170), (190, 190, 180)
_ROW, _COLUMN = np.mgrid[:HEIGHT, :WIDTH]


def blank() -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), 255, dtype=np.uint8)


def fill_below(image: np.ndarray, row: float | np.ndarray, colour: tuple[int, int, int]) -> None:
    """Everything below ``row``, a number or one per column."""
    image[row <= _ROW] = colour


def stroke(image: np.ndarray, start: tuple[float, float], end: tuple[float, float], width: float,
           colour: tuple[int, int, int]) -> None:
    """A line with round ends, from and to (column, row); a disc when both are the same."""
    (x, y), (dx, dy) = start, (end[0] - start[0], end[1] - start[1])
    along = ((_COLUMN - x) * dx + (_ROW - y) * dy) / max(dx**2 + dy**2, 1e-9)
    along = along.clip(0, 1)
    image[np.hypot(_COLUMN - x - along * dx, _ROW - y - along * dy) <= width / 2] = colour
