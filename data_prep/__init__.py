"""Converts text to uint8 token caches, for `python -m data_prep` and `nanoegg prepare`.

A cache is a 1-D uint8 .npy file: for each document of a split, in order, a 0x00 byte and the document's UTF-8 bytes.
Training reads these files and nothing else; this package does not depend on the models.

    options    command-line options -> a Source
    sources    Sources: local files, hub data sets, the standard library; the split of each document
    files      files in folders, pipes, fingerprints
    single     one text file, split by position
    saved      data sets of `datasets` in local folders, by their own splits
    hub        data sets of the Hugging Face hub
    streams    bytes of plain, gzip and zstd files and of pipes
    formats    readers of text, Parquet and Arrow files
    json_lines the reader of JSON lines
    tokens     Arrow text -> tokens
    pipeline   a Source -> caches and their manifest
    isolation  work in a child process, whose death becomes a sentence
    cache      cache files, published whole or not at all
    next_step  the command that trains on the caches
"""
