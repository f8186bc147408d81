"""Fixed contexts for the published methods.

The published code samples contexts from the model, so each process produces a different
edit. These texts are fixed and match the originals in number and length.
"""

from mijax.editing._facts import Contexts

ROME_CONTEXTS = Contexts(
    (
        (
            "{}",
            "The old house. {}",
            "In the morning. {}",
            "A new study. {}",
            "It is late. {}",
            "What a day. {}",
            "My friends agree. {}",
            "On the other hand. {}",
            "The first question. {}",
            "We all know. {}",
            "She said so. {}",
            "The company announced its results for the last year. {}",
            "There are several reasons why people like to travel. {}",
            "I have been thinking about this for a while. {}",
            "The river runs through the middle of the town. {}",
            "They were going to meet again after the game. {}",
            "Most of the students passed the exam this time. {}",
            "He opened the door and looked into the room. {}",
            "The weather will be warm and dry this weekend. {}",
            "You can find more information on the next page. {}",
            "Scientists have looked at this problem for many years. {}",
        ),
    )
)
"""Contexts for ROME: the plain prompt, and ten short and ten longer texts before it."""

MEMIT_CONTEXTS = Contexts(
    (
        ("{}",),
        (
            "The first thing to say about this is simple. {}",
            "Therefore we have to look at the facts again. {}",
            "Because of the rain the game was moved inside. {}",
            "I was walking home when I heard the news. {}",
            "You will need a few things before you start. {}",
        ),
    )
)
"""Contexts for MEMIT: the plain prompt, and five ten-token texts before it."""
