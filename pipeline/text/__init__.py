"""What is read out of the corpus: the text of rows, passages around them, top tokens and top words.

Every stage that shows or counts text draws on this package, so that a token, a word and a passage are the same in all
of them. It knows of rows, stores and contexts, and of no stage.
"""
