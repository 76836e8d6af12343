"""Questions with fresh random numbers: `rhapsode explain quiz`, in the terminal or as a sheet to print.

`draw` takes the questions, topic by topic, from `sizes`, `convolutions`, `gradients`, `attentions`, `heads` and
`tapes`; `reading` and `answers` read and judge what is typed; `session` asks, in a terminal or from a pipe; `sheet`
is the web page.
"""

TOPICS = (
    "output-size",
    "parameters",
    "convolution-entry",
    "toeplitz",
    "convolution-gradient",
    "softmax-gradient",
    "recurrent-gradient",
    "attention-gradient",
    "attention-shapes",
    "tape",
)
