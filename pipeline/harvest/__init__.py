"""Text to activation stores.

==================  ==============================================================================
``sources``         files and datasets → documents
``corpus``          documents → one hashed corpus
``sites``           names of the places where activations are read, on any architecture
``models``          models found, described, loaded, or drawn at random
``reader``          activations by hooks, in a pass that stops at the deepest site
``gguf``            GGUF files dequantised once into a cache
``dictionary``      what a dictionary, and its format, is to the rest
``dictionaries``    dictionaries found by one string: a folder, a release, a repository of the hub
``formats``         SAELens's and Gemma Scope's, EleutherAI's, raw units and the random control
``topk``            linear encoder, ReLU, top-k
``site_check``      does this dictionary belong to this site?
``align``           two tokenisations → shared rows; pure functions over offsets
``pool``            activations of tokens → activations of rows
``rows``            corpus + both tokenizers → the table of rows and model inputs
``plan``            disk and memory that a harvest will need
``finite``          values that cannot be stored, refused with their place in the text
``run``             rows → stores, one Dask task a shard
``contexts``        stores → the top activating rows of every feature
==================  ==============================================================================

To add a dictionary format: register a function that returns a
:class:`~pipeline.harvest.dictionary.Dictionary` (``docs/extending.md``). To add an architecture:
nothing, as long as transformers loads it with ``AutoModel`` and its tokenizer gives offsets; names of its blocks' parts
that are new go into ``sites``.
"""
