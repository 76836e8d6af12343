"""The course's mathematics in plain NumPy, one chapter per file: to read, and to check the fast kernels by.

Read in this order: `softmax`, `tape`, `recurrent`, `convolution`, `attention`, `language_model`; then `residual`,
`pairs`, `gated`, `copying`, `stacked` and `optimizer`, the model that this project trains and how it is trained.
Everything is float64, nothing is optimised, and no chapter imports PyTorch or any other room of this package.
"""
