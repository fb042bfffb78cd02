"""A model of one's own, from its files to a low-bit folder and the truth about it, in one go.

`source` opens the model or says why it cannot, `plan` chooses how much is learned in the time and memory there is,
`work` keeps what is done so far, `conversion` walks the `steps`, which go `around` a pipeline that draws by itself
(`drawing`, `calls`), `trial` draws and times what came out, and `card` writes it down.
"""
