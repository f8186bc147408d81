"""Pages that notebooks show in a frame."""

from html import escape


class Page(str):
    """HTML of a whole page: a string to save, which a notebook shows in a frame.

    The frame keeps the page's styles and identifiers apart from the notebook's.

    Examples:
        >>> page = Page("<!doctype html><p>a</p>")
        >>> page.startswith("<!doctype html>"), page._repr_html_()[:7]
        (True, '<iframe')
        >>> page
        <Page of 23 characters>
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<Page of {len(self):,} characters>"

    def _repr_html_(self) -> str:
        """Return a frame that holds the page."""
        # Without a base, links to places in the page would load the notebook.
        page = self.replace("<head>", '<head><base href="about:srcdoc">', 1)
        return (
            f'<iframe srcdoc="{escape(page)}" title="mijax" style="width: 100%; '
            'height: 640px; border: 0" sandbox="allow-scripts"></iframe>'
        )
