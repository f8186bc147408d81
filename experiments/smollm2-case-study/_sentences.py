"""Sentences for and against, prompts that say neither, and words of both kinds."""

# Each with its opposite: the same matter, judged well and judged badly.
PAIRS = (
    ("The film was a delight from start to finish.", "The film was a bore throughout."),
    ("I loved every minute of the concert.", "I hated every minute of the concert."),
    ("What a wonderful meal we had.", "What a dreadful meal we had."),
    ("The staff were friendly and quick.", "The staff were rude and slow."),
    ("Her new book is brilliant.", "Her new book is rubbish."),
    ("This phone works perfectly.", "This phone never works."),
    ("The room was clean and bright.", "The room was dirty and dark."),
    ("He gave a superb performance.", "He gave a terrible performance."),
    ("The weather was glorious all week.", "The weather was miserable all week."),
    ("I would gladly come back here.", "I would never come back here."),
    ("The plot is clever and moving.", "The plot is stupid and dull."),
    ("They played a fantastic match.", "They played an awful match."),
    ("The garden looked beautiful.", "The garden looked ugly."),
    ("It was the best holiday of my life.", "It was the worst holiday of my life."),
    ("The teacher was kind and patient.", "The teacher was cruel and impatient."),
    ("We are thrilled with the result.", "We are disgusted with the result."),
    ("The soup tasted delicious.", "The soup tasted disgusting."),
    ("Her speech was inspiring.", "Her speech was depressing."),
    ("The journey was smooth and pleasant.", "The journey was rough and painful."),
    ("This is an excellent piece of work.", "This is a poor piece of work."),
    ("The children were happy with the gift.", "The children were sad about the gift."),
    ("The new design is a great success.", "The new design is a complete failure."),
    ("I highly recommend this place.", "I strongly advise against this place."),
    ("The music filled me with joy.", "The music filled me with anger."),
)
NEUTRAL = (
    "I watched the movie yesterday. I think it was",
    "My friend told me about the book. She said it was",
    "We went to the new restaurant. The food was",
    "Here is my opinion of the film: it is",
    "He listened to the whole album and found it",
    "After a week with the new phone, I would say it is",
    "The hotel was near the station, and our room was",
    "They asked me what I thought of the play. It was",
    "The guests talked about the party. Everyone agreed that it was",
    "Last summer we visited the city. The trip was",
    "The teacher read my essay and told me it was",
    "The critics wrote about the new show. They called it",
)
GOOD = (
    *("good", "great", "wonderful", "excellent", "amazing", "beautiful", "fantastic"),
    *("perfect", "nice", "lovely", "brilliant", "delicious", "happy", "best"),
    *("pleasant", "impressive", "enjoyable", "incredible", "fun", "inspiring"),
)
BAD = (
    *("bad", "terrible", "awful", "horrible", "poor", "boring", "disgusting", "worst"),
    *("ugly", "sad", "wrong", "painful", "useless", "dull", "disappointing", "dirty"),
    *("stupid", "annoying", "miserable", "cold"),
)
