"""Text to activation stores.

==================  ==============================================================================
``sources``         files and datasets → documents
``corpus``          documents → one hashed corpus
``models``          models found, described, loaded; sites resolved; activations by hooks
``gguf``            GGUF files dequantised once into a cache
``dictionaries``    sparse autoencoders and the identity behind one interface
``align``           two tokenisations → shared rows; pure functions over offsets
``pool``            activations of tokens → activations of rows
``rows``            corpus + both tokenizers → the table of rows and model inputs
``plan``            disk and memory that a harvest will need
``finite``          values that cannot be stored, refused with their place in the text
``run``             rows → stores, one Dask task a shard
``contexts``        stores → the top activating rows of every feature
==================  ==============================================================================

To add a dictionary format: write a loader that returns a
:class:`~pipeline.harvest.dictionaries.Dictionary`, and name it in ``load_dictionary``. To add an architecture: nothing,
as long as transformers loads it with ``AutoModel`` and its tokenizer gives offsets.
"""
