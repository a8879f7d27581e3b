"""Converts text to uint8 token caches, for `python -m data_prep` and `nanoegg prepare`.

A cache is a 1-D uint8 .npy file: for each document of a split, in order, a 0x00 byte and the document's UTF-8 bytes.
Training reads these files and nothing else; this package does not depend on the models.

    options    command-line options -> a Source
    sources    Sources: local files, hub data sets, the standard library; the split of each document
    formats    readers of text, JSON lines, Parquet and Arrow files
    hub        data sets of the Hugging Face hub
    tokens     Arrow text -> tokens
    pipeline   a Source -> caches and their manifest
    cache      cache files, published whole or not at all
"""
