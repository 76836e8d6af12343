"""A story told in turns: a person writes a line, the model goes on, and either may be changed.

conversation.py   the text so far, and what is done with it
words.py          the likeliest next words
commands.py       the lines that a person types, and what they are answered
"""
