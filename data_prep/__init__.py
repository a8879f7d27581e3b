"""Text in, uint8 token caches out: what `python -m data_prep` and `nanoegg prepare` run.

A cache is a 1-D uint8 .npy file: over the documents of a split, in order, a 0x00 byte followed by
the document's UTF-8 bytes. Training reads these files and nothing else, so this package knows
nothing of models. `sources` says where documents come from, `formats` reads files, `tokens` turns
Arrow text into bytes, `cache` puts caches on disk.
"""


class PrepareError(Exception):
    """Something a user can put right; the message is one sentence that says what and how."""
