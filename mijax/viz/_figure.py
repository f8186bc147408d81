"""The figure that notebooks show inline. Imports matplotlib, which is slow."""

from matplotlib.figure import Figure

from mijax.viz._save import drawn

# Pixels of an inch in a notebook; the picture itself is finer.
_SCREEN = 96


class NotebookFigure(Figure):
    """A matplotlib figure that a notebook shows inline, without pyplot.

    Figures of pyplot show because pyplot keeps each one in global state. This one
    gives its own picture to the notebook when it is the value of a cell.
    """

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """Return the picture and the size at which it is shown."""
        width, height = self.get_size_inches()
        shown = {"width": round(_SCREEN * width), "height": round(_SCREEN * height)}
        return drawn(self, "png"), shown
